"""Hostile VOC folders, images and TFDS records: each ends in one line or is read. The long tests take many more."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcnn_jax.data import images
from tests import fuzz_targets_voc as fuzz

SEEDS = fuzz.seeds()
PIECES = (b"<", b">", b"&", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"../", b"/", b"nan", b"1e999", b" 1")


@st.composite
def spoilt(draw, sound: list[bytes]) -> bytes:
  """A sound input of which a few pieces are changed, taken out or put in."""
  contents = bytearray(draw(st.sampled_from(sound)))
  for _ in range(draw(st.integers(1, 4))):
    place, length = draw(st.integers(0, len(contents))), draw(st.integers(0, 8))
    contents[place : place + length] = draw(st.sampled_from(PIECES) | st.binary(max_size=8))
  return bytes(contents)


@pytest.mark.parametrize("target", SEEDS)
def test_whatever_the_bytes_are(target):
  @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
  @given(spoilt(SEEDS[target]) | st.binary(max_size=200))
  def check(data: bytes) -> None:
    getattr(fuzz, target)(data)

  check()


def test_the_inputs_to_start_from_are_sound():
  for target, inputs in SEEDS.items():
    for data in inputs:
      getattr(fuzz, target)(data)
  assert all(images.decode(data, "a").shape == (6, 8, 3) for data in SEEDS["image"])
  opened, strictly = fuzz._read_all(fuzz.VocFolder(str(fuzz._folder()), "fuzzed_xml"))
  assert opened.faults == strictly.faults == () and opened.table.file_names == ("fuzzed.png", "a.png")
  features, form = fuzz._features()
  found, faults = fuzz.tfds._read(fuzz._Records(features, SEEDS["tfds_record"][0]), 0, "a", form)
  assert faults == [] and len(found.boxes) == 2
