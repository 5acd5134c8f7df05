"""Devices: the mesh with its data axis, and how a batch and a state are laid out on it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcnn_jax.training.optim import TrainingError


def data_mesh(num_devices: int | None = None) -> Mesh:
  """A mesh with one axis, 'data', over the first `num_devices` devices of all processes (None: all of them)."""
  devices = jax.devices()
  if num_devices is not None and not 1 <= num_devices <= len(devices):
    raise TrainingError(f"{num_devices} devices asked for, {len(devices)} are there")
  return Mesh(np.asarray(devices[:num_devices]), ("data",))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises TrainingError unless every device gets the same number of images."""
  if batch_size % mesh.size:
    raise TrainingError(f"the batch size {batch_size} is not divisible by the number of devices, {mesh.size}")


def replicated(mesh: Mesh) -> NamedSharding:
  """The layout of parameters: a copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def along_data(mesh: Mesh) -> NamedSharding:
  """The layout of batches: the leading axis divided over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
  """This process' part of a batch (numpy) -> the global batch on the devices."""
  sharding = along_data(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """The same values in every process -> arrays with a copy on every device, sharing no memory with the input."""
  sharding = replicated(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda _: np.array(x)), tree)
