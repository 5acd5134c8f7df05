"""The losses of a model on data that it is not trained on."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from rcnn_jax.experiment import override
from rcnn_jax.models.layers import FROZEN
from rcnn_jax.ops import random
from rcnn_jax.ops.devices import across_devices
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training import optim
from rcnn_jax.training.stages import Sgd
from rcnn_jax.training.step import counted
from rcnn_jax.types import Batch


def losses(
  model: nn.Module, stage: Sgd, variables: dict, batches: Iterable[Batch], mesh: Mesh, seed: int
) -> dict[str, float]:
  """The loss and its terms, each the mean over the batches by their numbers of images.

  Nothing is updated: batch norms normalise by the statistics that they have kept. Regions are sampled as in training,
  always the same ones of an image.

  Args:
    model: as for `make_train_step`.
    stage: whose terms count, with what it changes in the model.
    variables: of the model, with a copy on every device of the mesh or none on any.
    batches: this process' rows of each batch, as evaluation reads them, with their objects.
    mesh: whose devices the rows are divided over.
    seed: of the experiment.
  """
  step = functools.partial(_losses, override(model, dict(stage.model)), stage.losses, mesh)
  key = random.named(jax.random.key(seed), "validate")
  found = [step(variables, meshes.shard_batch(batch, mesh), key) for batch in batches]
  rows = jax.device_get(found)
  count = sum(float(row["count"]) for row in rows)
  names = [name for name in (rows[0] if rows else {}) if name != "count"]
  return {name: float(sum(row[name] * row["count"] for row in rows) / max(count, 1.0)) for name in names}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _losses(model, names, mesh, variables, batch, key) -> dict[str, Any]:
  statistics = variables.get("batch_stats", {})
  norms = {path.rpartition("/")[0] for path in optim.flatten(statistics)}
  fixed = {FROZEN: optim.unflatten({f"{norm}/norm": True for norm in norms})} if norms else {}

  def on_a_device(variables, batch, key):
    terms = counted(model.apply(variables | fixed, batch, key, method="losses", mutable=["batch_stats"])[0], names)
    measured = {"loss": sum(terms.values())} | {f"loss/{name}": term for name, term in terms.items()}
    return across_devices(measured | {"count": batch.valid.sum().astype(jnp.float32)})

  specs = (PartitionSpec(), meshes.rows(mesh), PartitionSpec())
  return jax.shard_map(on_a_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)(
    variables, batch, key
  )
