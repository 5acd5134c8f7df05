"""The keys of classes: their names, distinct and in one line, whatever the data set calls them."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from rcnn_jax.evaluation.classes import class_keys
from rcnn_jax.evaluation.coco import coco_metrics, truth_dataset
from rcnn_jax.evaluation.evaluate import measure, tables
from rcnn_jax.evaluation.results import Results
from rcnn_jax.evaluation.tables import text_table
from tests.scenes import Category, annotations, entry


@pytest.mark.parametrize(
  "names, keys",
  [
    (["cat", "dog"], ["cat", "dog"]),
    (["cell", "cell"], ["cell (id 0)", "cell (id 1)"]),
    (["", "dog"], ["(id 0)", "dog"]),
    ([" traffic\n light ", "a\tb"], ["traffic light", "a b"]),
    (["a", "a", "a (id 1)"], ["a (id 0)", "a (id 1) (id 1)", "a (id 1) (id 2)"]),
    (["nul\x00", "\ud800"], ["nul\ufffd", "\ufffd"]),
    (["猫", "ねこ\u200d"], ["猫", "ねこ\u200d"]),  # joiners are part of a script
    ([1, 1.5], ["1", "1.5"]),
  ],
)
def test_keys(names, keys):
  assert list(class_keys(enumerate(names)).values()) == keys


@hypothesis.given(st.lists(st.text(st.sampled_from("ab (id1)\n"), max_size=9), max_size=9))
def test_keys_are_distinct_lines_of_text_with_the_name_in_front(names):
  keys = class_keys(enumerate(names))
  assert list(keys) == list(range(len(names)))
  assert len(set(keys.values())) == len(names)
  for name, key in zip(names, keys.values()):
    assert key and len(key.splitlines()) == 1 and key.startswith(" ".join(name.split()))


def test_two_classes_of_one_name_are_two_rows_and_count_both_in_the_means():
  classes = (Category(1, "square"), Category(4, "square"))
  truth = truth_dataset([annotations(1, [[0, 0, 10, 10], [20, 20, 30, 30]], [1, 2])], classes)
  metrics, curves = measure(truth, Results.from_entries([entry(1, 1, [0, 0, 10, 10], 0.9)]))
  assert [metrics[name] for name in ("bbox/AP", "voc/mAP_11pt", "voc/mAP_area")] == pytest.approx([0.5] * 3)
  for metric in ("bbox/AP", "voc/AP_11pt", "voc/AP_area"):
    assert [metrics[f"{metric}/square (id {number})"] for number in (1, 4)] == pytest.approx([1, 0])
  assert [curves["bbox"][f"square (id {number})"][0] for number in (1, 4)] == pytest.approx([1, 0])
  rows = tables(metrics, list(class_keys((c.id, c.name) for c in classes).values())).splitlines()
  assert [row.split()[3:] for row in rows if row.startswith("square")] == [["100.0"] * 3, ["0.0"] * 3]


@pytest.mark.parametrize("name", ["", "a/b", "line\nbreak", "$5 bill$", "_hidden", "猫", "\x00", "AP"])
def test_any_name_is_measured_and_tabulated(name):
  classes = (Category(3, name), Category(4, "other"))
  truth = truth_dataset([annotations(1, [[0, 0, 10, 10]], [1])], classes)
  numbers, curves = coco_metrics(truth, Results.from_entries([entry(1, 3, [0, 0, 10, 10], 0.9)]))
  keys = class_keys((c.id, c.name) for c in classes)
  assert numbers[f"bbox/AP/{keys[3]}"] == pytest.approx(1) and list(curves) == [keys[3]]
  rows = tables(numbers, list(keys.values())).split("class, %")[1].splitlines()[2:]
  assert [row.split("  ")[0] for row in rows] == [keys[3], "other", "mean over classes"]


def test_columns_are_as_wide_as_a_terminal_draws_them_and_a_row_is_one_line():
  rows = text_table(["class", "n"], [["猫", "1"], ["é", "2"], ["a\nb", "3"]]).splitlines()
  assert rows == ["class  n", "-----  -", "猫     1", "é      2", "a b    3"]
