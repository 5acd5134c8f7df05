"""Detectors of other libraries: what is the same for each of them when parameters are taken over, and given back.

A library differs in the names that it gives and in a few layouts, which is what a `Library` holds; everything else,
strictness and its messages above all, stands here. Kernels are transposed in any case (OIHW and [out, in] in
PyTorch; HWIO and [in, out] here).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flax import traverse_util

from rcnn_jax.weights.backbone import inputs_reordered, to_flax
from rcnn_jax.weights.errors import WeightsError, listed

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a tensor differs by more than its transposition: both ways, in PyTorch's order of axes, of a Detector."""

  to_ours: Callable[[np.ndarray, Any], np.ndarray]
  to_theirs: Callable[[np.ndarray, Any], np.ndarray]


PLAIN = Layout(lambda tensor, detector: tensor, lambda tensor, detector: tensor)
# PyTorch's deconvolutions have their inputs first (IOHW).
DECONVOLUTION = Layout(lambda tensor, detector: tensor.swapaxes(0, 1), lambda tensor, detector: tensor.swapaxes(0, 1))
# The first layer over a pooled RoI reads its cells channel by channel there (CHW), cell by cell here (HWC).
FIRST_OF_ROI = Layout(
  lambda tensor, detector: inputs_reordered(tensor, (-1, *_cells(detector)), (0, 2, 3, 1)),
  lambda tensor, detector: inputs_reordered(tensor, (*_cells(detector), -1), (0, 3, 1, 2)),
)


def unused_rows(count: int) -> Layout:
  """The first rows are the background's, which nothing ever reads: left out here, zeros in what is exported."""
  return Layout(
    lambda tensor, detector: tensor[count:],
    lambda tensor, detector: np.concatenate([np.zeros_like(tensor[:1]).repeat(count, axis=0), tensor]),
  )


@dataclasses.dataclass(frozen=True)
class Library:
  """How a library names and lays out the parameters of its detectors."""

  title: str
  mark: str  # what the names of parameters begin with that every detector of the library's has, and no other
  classes: tuple[str, ...]  # the kernels that score the K + 1 classes; a file has one of them
  name_of: Callable[[str, Any], str | None]  # of a path such as 'trunk/fc6/bias' in a Detector; None: nothing like it
  layouts: tuple[tuple[str, Layout], ...]  # by paths, of which the first that matches counts; otherwise PLAIN
  prepare: Callable[[Tensors, Any], Tensors]  # the parameters of a file for a Detector, by their present names
  class_agnostic: bool  # whether predictors can be

  def num_classes(self, tensors: Tensors) -> int:
    """K, without the background; raises WeightsError where the tensors are not a detector's."""
    name = next((name for name in self.classes if name in tensors), None)
    if name is None:
      raise WeightsError(f"no tensor {self.classes[0]}: not a detector of {self.title}'s")
    shape = tensors[name].shape
    if len(shape) != 2 or shape[0] < 2 or not shape[1]:
      raise WeightsError(f"{name} is {shape}: no scores of a background and classes")
    return shape[0] - 1

  def load(self, tensors: Tensors, variables: dict, detector: Any, skip: str | None = None) -> dict:
    """`variables` with the values of a detector of the library's.

    Args:
      tensors: all of them, by the library's names (those of older files too).
      variables: of the same architecture; only shapes and dtypes are read, but for what is skipped.
      detector: the Detector that they belong to.
      skip: a regular expression; variables whose whole path ('box/classes/kernel') matches it stay as they are.

    Raises:
      WeightsError: naming every kind of misfit: a tensor that is missing or has another shape, holds NaN, or that
        nothing here answers to.
    """
    tensors = self.prepare(tensors, detector)
    flat = traverse_util.flatten_dict(variables, sep="/")
    names = self._names(flat, detector)
    skipped = _matching(skip, flat) if skip else set()
    taken = {path: name for path, name in names.items() if path not in skipped}
    missing = sorted(f"no tensor {name} (for {path})" for path, name in taken.items() if name not in tensors)
    unused = sorted(f"nothing here answers to {name}" for name in set(tensors) - set(names.values()))
    present = {path: tensors[name] for path, name in taken.items() if name in tensors}
    unfit = [self._misfit(path, names[path], tensor, flat[path], detector) for path, tensor in present.items()]
    faults = [fault for fault in unfit if fault], missing, unused
    if any(faults):
      raise WeightsError("; ".join(listed(kind) for kind in faults if kind))
    loaded = {path: self._to_ours(path, tensor, detector) for path, tensor in present.items()}
    return traverse_util.unflatten_dict(flat | loaded, sep="/")

  def export(self, variables: dict, detector: Any) -> Tensors:
    """The variables as the library's state dict, float32; `load` gives them back to the last bit.

    Raises:
      WeightsError: a part that the library's detectors do not have.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    theirs = {path: self._to_theirs(path, np.asarray(leaf), detector) for path, leaf in flat.items()}
    return {name: np.ascontiguousarray(theirs[path]) for path, name in self._names(flat, detector).items()}

  def _names(self, paths: Iterable[str], detector: Any) -> dict[str, str]:
    agnostic = any(getattr(head, "class_agnostic", False) for head in (detector.box, *detector.heads))
    if agnostic and not self.class_agnostic:
      raise WeightsError(f"{self.title}'s predictors are not class-agnostic")
    names = {path: self.name_of(_inner(path), detector) for path in paths}
    strange = [_inner(path) for path, name in names.items() if name is None]
    if strange:
      raise WeightsError(f"{self.title}'s detectors have nothing like {listed(strange)}")
    return names

  def _misfit(self, path: str, name: str, tensor: np.ndarray, leaf: Any, detector: Any) -> str | None:
    """Why a tensor cannot become the variable `leaf`, or None."""
    expected = self._to_theirs(path, np.broadcast_to(np.float32(0), leaf.shape), detector).shape
    if tensor.shape != expected:
      return f"{name} is {tensor.shape}, the model has {expected}"
    if not np.isfinite(tensor).all():
      return f"{name} holds NaN or infinity"
    return None

  def _to_ours(self, path: str, tensor: np.ndarray, detector: Any) -> np.ndarray:
    """A tensor in the library's layout, as ours; float32."""
    return np.ascontiguousarray(to_flax(self._layout(path).to_ours(tensor, detector)))

  def _to_theirs(self, path: str, leaf: np.ndarray, detector: Any) -> np.ndarray:
    """The inverse of `_to_ours`."""
    tensor = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
    return self._layout(path).to_theirs(tensor, detector)

  def _layout(self, path: str) -> Layout:
    return next((layout for pattern, layout in self.layouts if re.fullmatch(pattern, _inner(path))), PLAIN)


def renamed(rules: Iterable[tuple[str, Any]], name: str) -> str | None:
  """The name by the first of the rules (pattern, replacement) whose pattern matches it as a whole, or None."""
  return next((re.sub(f"^{rule}$", new, name) for rule, new in rules if re.fullmatch(rule, name)), None)


def _inner(path: str) -> str:
  """'params/trunk/fc6/bias' without its collection."""
  return path.partition("/")[2]


def _cells(detector: Any) -> tuple[int, int]:
  return detector.pool.output_size, detector.pool.output_size


def _matching(skip: str, paths: Iterable[str]) -> set[str]:
  try:
    found = {path for path in paths if re.fullmatch(skip, _inner(path))}
  except re.error as error:
    raise WeightsError(f"{skip!r} is no regular expression: {error}") from error
  if not found:
    raise WeightsError(f"{skip!r} matches no parameter's path, such as 'box/classes/kernel'")
  return found
