"""Resizing within a program: equal to what the host's libraries give the input pipeline."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn_jax.data import transforms
from rcnn_jax.ops import resize

ROOM, CANVAS = (60, 70), (80, 90)
# Where a position in 90 pixels is off by the last bit of float32, in either direction.
LAST_BITS = 2 * 255 * float(np.spacing(np.float32(90)))
sides = lambda room: st.tuples(*(st.integers(1, most) for most in room))


@functools.cache
def compiled(interpolation: str):
  return jax.jit(functools.partial(getattr(resize, interpolation), canvas=CANVAS))


def in_a_corner(image):
  """On an array that is otherwise full of noise."""
  array = np.random.default_rng(1).integers(0, 256, (*ROOM, 3)).astype(image.dtype)
  array[: image.shape[0], : image.shape[1]] = image
  return array


def resized(image, size, interpolation):
  sizes = (jnp.array(each, jnp.int32) for each in (image.shape[:2], size))
  return np.asarray(compiled(interpolation)(in_a_corner(image), *sizes))[: size[0], : size[1]]


@pytest.mark.parametrize(
  "interpolation, dtype, most",
  [
    ("linear", "uint8", 0),
    ("linear", "float32", LAST_BITS),
    ("pillow", "uint8", 1),
    ("pillow", "float32", LAST_BITS),
  ],
)
@settings(max_examples=40, deadline=None)
@given(size=sides(ROOM), new_size=sides(CANVAS), seed=st.integers(0, 99))
def test_an_image_is_resized_as_on_the_host(interpolation, dtype, most, size, new_size, seed):
  image = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(dtype)
  expected = transforms.resize(image, new_size, interpolation)
  difference = np.abs(resized(image, new_size, interpolation) - expected.astype(np.float64))
  assert difference.max() <= most
