"""Names in any script are drawn, and what no font has is told once and shown by its id: never as empty boxes."""

from __future__ import annotations

import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from rcnn_jax.evaluation import lettering, plots
from rcnn_jax.evaluation.draw import draw, side_by_side
from tests.scenes import entry

# Two names of equally many characters in each script: empty boxes would look the same.
SCRIPTS = {
  "Latin": ("cat", "dog"),
  "Vietnamese": ("mèo", "chó"),
  "Greek": ("γάτα", "σκύλ"),
  "Cyrillic": ("кот", "пёс"),
  "Chinese": ("猫", "狗"),
  "Japanese": ("ねこ", "いぬ"),
  "Korean": ("고양이", "강아지"),
  "beyond the first plane": ("𠮷", "𠀋"),
  "Arabic": ("قطة", "كلب"),
  "Persian": ("گربه", "پلنگ"),
  "Hebrew": ("חתול", "כלבה"),
  "Devanagari": ("बाघ", "हाथ"),
  "Bengali": ("বাঘ", "হাঁ"),
  "Tamil": ("பூனை", "நாய்"),
  "Thai": ("แมว", "หมา"),
  "Khmer": ("ឆ្មា", "ឆ្កែ"),
  "Georgian": ("კატა", "ძაღლ"),
  "Armenian": ("կատու", "շունը"),
  "Ethiopic": ("ድመት", "ውሻዎ"),
  "emoji": ("🐱", "🐶"),
  "family of emoji": ("👩‍👩‍👧", "👨‍👨‍👦"),
  "symbols": ("±→", "≤∑"),
}
UNKNOWN = "\U00012000"  # cuneiform
GREY = np.full((60, 80, 3), 90, np.uint8)


def written(text: str) -> np.ndarray:
  """u8[60, 300]: dark where there is ink."""
  canvas = Image.new("L", (300, 60), 255)
  lettering.line(text, 24).write(ImageDraw.Draw(canvas), (10, 40), 0)
  return np.asarray(canvas)


@pytest.mark.parametrize("names", SCRIPTS.values(), ids=SCRIPTS)
def test_names_of_a_script_have_ink_and_differ(names):
  assert all(lettering.is_covered(name) for name in names)
  one, other = map(written, names)
  assert (one < 128).sum() > 20 and (other < 128).sum() > 20
  assert (one != other).any()


@pytest.mark.parametrize("name", ["قطة", "חתול"])
def test_a_name_from_the_right_stands_before_its_score(name):
  """The score's ink is where it is behind a name from the left: at the end of the line."""
  alone, scored = lettering.line(name, 24), lettering.line(f"{name} 0.87", 24)
  assert scored.width > alone.width
  head = int(10 + alone.width)
  assert np.array_equal(written(name)[:, :head], written(f"{name} 0.87")[:, :head])


def test_arabic_is_shaped():
  """Letters of a word are joined: it is narrower than they are one by one."""
  word = "عربية"
  assert lettering.line(word, 24).width < sum(lettering.line(letter, 24).width for letter in word) - 5


def test_the_box_of_a_line_holds_its_ink():
  for text in ("cat", "猫 gy", "قطة 0.87", "บ้าน"):
    left, top, right, bottom = lettering.line(text, 24).box()
    ys, xs = np.nonzero(written(text) < 128)
    assert 10 + left <= xs.min() and xs.max() < 10 + right + 1
    assert 40 + top <= ys.min() and ys.max() < 40 + bottom + 1


def test_line_breaks_and_nothing_at_all_can_be_written():
  assert np.array_equal(written("a\nb\tc"), written("a b c"))
  assert (written("") == 255).all() and lettering.line("", 24).box() == (0, 0, 0, 0)


def test_a_class_that_no_font_has_is_shown_by_its_id_and_told_once(caplog):
  names = {7: UNKNOWN, 9: "green"}
  pictures = [draw(GREY, [entry(1, 7, [5, 30, 70, 55], 0.5)], names) for _ in range(2)]
  told = [message for message in caplog.messages if "no font has all characters" in message]
  assert told == [f"no font has all characters of the class {UNKNOWN!r} (id 7): pictures show its id"]
  assert np.array_equal(pictures[0], draw(GREY, [entry(1, 7, [5, 30, 70, 55], 0.5)], {7: "id 7", 9: "green"}))
  assert lettering.writable(f"a{UNKNOWN}b") == "a?b"
  assert np.array_equal(written(f"a{UNKNOWN}b"), written("a?b"))


def test_without_the_packages_of_fonts_the_systems_are_taken_and_none_is_needed(monkeypatch):
  cached = [one for one in vars(lettering).values() if hasattr(one, "cache_clear")]
  for forget in cached:
    forget.cache_clear()
  monkeypatch.setattr(lettering, "PACKAGES", ("no_such_package",))
  monkeypatch.setattr(lettering, "_of_the_system", lambda: ())
  try:
    assert lettering.is_covered("кот γάτα mèo") and not lettering.is_covered("猫")
    assert lettering.legible({1: "猫", 2: "кот"}) == {1: "id 1", 2: "кот"}
  finally:
    for forget in cached:
      forget.cache_clear()


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.lists(st.text(max_size=6), min_size=1, max_size=3))
def test_any_names_can_be_drawn(names):
  objects = [entry(1, number, [5, 10 * number, 70, 55], 0.5) for number in range(len(names))]
  picture = side_by_side(GREY, objects, objects, dict(enumerate(names)), title=names[0])
  assert picture.dtype == np.uint8 and picture.ndim == 3


def test_any_name_stands_in_the_legend_of_a_plot_as_it_is():
  names = ["$5 bill$", "$x", "_hidden", "猫", "قطة", "बाघ", "🐱", UNKNOWN]
  curves = {name: np.linspace(1, 0, 101).tolist() for name in names}
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # of a glyph that is missing, or a label that is left out
    figure = plots.precision_recall_figure(curves, "bbox")
    figure.draw_without_rendering()
    points = [(name, 0.1 * (n + 1), 0.1 * n) for n, name in enumerate(names)]
    plots.trade_off_figure(points, "t").draw_without_rendering()
  texts = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
  assert texts == [*names[:-1], "?"]
