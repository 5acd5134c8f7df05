"""Devices: the mesh with its axes 'data' and 'model', and how batches and states are laid out on it.

A batch is divided over all devices, whatever the axes: no loss and no sample depends on the mesh. The axes tell apart
over which devices parameters are divided (`experiment.Sharding`) and over which they are copied.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcnn_jax import experiment as experiments
from rcnn_jax.experiment import Sharding
from rcnn_jax.training.optim import TrainingError, matching


def data_mesh(num_devices: int | None = None) -> Mesh:
  """A mesh with one axis, 'data', over the first `num_devices` devices of all processes (None: all of them)."""
  devices = jax.devices()
  if num_devices is not None and not 1 <= num_devices <= len(devices):
    raise TrainingError(f"{num_devices} devices asked for, {len(devices)} are there")
  return Mesh(np.asarray(devices[:num_devices]), ("data",))


def make(settings: experiments.Mesh) -> Mesh:
  """The experiment's mesh, with the axes 'data' and 'model'; raises TrainingError where there are not the devices."""
  there = len(jax.devices())
  data = there // settings.model if settings.data is None else settings.data
  asked = max(data, 1) * settings.model
  if asked > there or (settings.data is None and asked != there):
    raise TrainingError(f"mesh.data={settings.data}, mesh.model={settings.model}: {there} device(s) are there")
  if jax.process_count() > 1 and asked != there:
    raise TrainingError(f"mesh.data={settings.data}, mesh.model={settings.model}: several processes need all {there}")
  return Mesh(np.asarray(jax.devices()[:asked]).reshape(data, settings.model), ("data", "model"))


def flat(mesh: Mesh) -> Mesh:
  """The same devices along 'data' alone, as evaluation takes them."""
  return Mesh(mesh.devices.reshape(-1), ("data",))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises TrainingError unless every device gets the same number of images."""
  if batch_size % mesh.size:
    raise TrainingError(f"the batch size {batch_size} is not divisible by the number of devices, {mesh.size}")


def replicated(mesh: Mesh) -> NamedSharding:
  """The layout of parameters that every device has a copy of."""
  return NamedSharding(mesh, PartitionSpec())


def along_data(mesh: Mesh) -> NamedSharding:
  """The layout of batches: the leading axis divided over all devices."""
  return NamedSharding(mesh, rows(mesh))


def rows(mesh: Mesh) -> PartitionSpec:
  """The leading axis divided over all axes of the mesh."""
  return PartitionSpec(mesh.axis_names)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
  """This process' part of a batch (numpy) -> the global batch on the devices."""
  sharding = along_data(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """The same values in every process -> arrays with a copy on every device, sharing no memory with the input."""
  return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def place(tree: Any, layout: Any) -> Any:
  """The same values in every process -> arrays laid out so, sharing no memory with the input."""

  def placed(leaf, sharding):
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.array(leaf[index]))

  return jax.tree.map(placed, tree, layout)


def copied(tree: Any, mesh: Mesh) -> Any:
  """Arrays on the devices of a mesh, however they are laid out -> with a copy on every device; all must call this."""
  if all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree)):
    return tree
  return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def layout(state: Any, mesh: Mesh, rules: tuple[Sharding, ...]) -> Any:
  """How a training state is laid out: a NamedSharding for each of its leaves.

  What belongs to a parameter (its momentum, its average) is laid out as that; everything else is copied.

  Raises:
    TrainingError: for a rule that matches no parameter, or whose axes do not fit one that it matches.
  """
  shapes = {_path(at): np.shape(leaf) for at, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
  matched = {rule: set(matching(rule.pattern, shapes)) for rule in rules}
  idle = [rule.pattern for rule, paths in matched.items() if not paths]
  if idle:
    raise TrainingError(
      f"mesh.rules that match no parameter: {', '.join(idle)}; parameters are named like {next(iter(shapes))}"
    )
  specs = {}
  for path, shape in shapes.items():
    rule = next((rule for rule in rules if path in matched[rule]), None)
    specs[path] = PartitionSpec() if rule is None else _spec(rule, path, shape, mesh)

  def of(at, leaf):
    path = _path(at)
    fits = path in specs and np.shape(leaf) == shapes[path]
    return NamedSharding(mesh, specs[path] if fits else PartitionSpec())

  return jax.tree_util.tree_map_with_path(of, state)


def _path(at: tuple) -> str:
  """'backbone/conv1/kernel' of a leaf's place in a tree, wherever in a state it stands."""
  return "/".join(str(key.key) for key in at if isinstance(key, jax.tree_util.DictKey))


def _spec(rule: Sharding, path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  unknown = {axis for axis in (rule.largest, *(rule.axes or ())) if axis is not None} - set(mesh.axis_names)
  if unknown or (rule.largest is None) == (rule.axes is None):
    raise TrainingError(
      f"mesh.rules, {rule.pattern}: give exactly one of axes and largest, of the axes data and model"
    )
  if rule.largest is not None:
    count = mesh.shape[rule.largest]
    longest = max((side for side in shape if side % count == 0), default=0)
    if count == 1 or longest < count:
      return PartitionSpec()
    place = shape.index(longest)
    return PartitionSpec(*(None,) * place, rule.largest)
  if len(rule.axes) > len(shape):
    raise TrainingError(
      f"mesh.rules, {rule.pattern}: {path} has {len(shape)} dimensions, axes names {len(rule.axes)}"
    )
  axes = (None,) * (len(shape) - len(rule.axes)) + rule.axes
  for side, axis in zip(shape, axes):
    if axis is not None and side % mesh.shape[axis]:
      raise TrainingError(
        f"mesh.rules, {rule.pattern}: {path} is {shape}, which {axis}={mesh.shape[axis]} does not divide"
      )
  return PartitionSpec(*axes)
