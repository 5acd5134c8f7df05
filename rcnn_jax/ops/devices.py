"""What the devices of a batch that is divided over them know together."""

from __future__ import annotations

from typing import Any

import jax


def across_devices(tree: Any) -> Any:
  """The sum of each array over the devices; the arrays themselves outside of a `shard_map`.

  Inside of one, a device sees its own images alone. Everything else of a step is computed on the device that has the
  image; counts, statistics of batch norm, and gradients are what devices tell each other.
  """
  axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
  return jax.lax.psum(tree, axes) if axes else tree
