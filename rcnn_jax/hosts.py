"""What several processes, one on each host, tell each other beside arrays on devices."""

from __future__ import annotations

import pickle
from typing import Any

import jax
import numpy as np


def gathered(value: Any) -> list[Any]:
  """The values of every process, by process index; every process must call this, with a value that can be pickled."""
  if jax.process_count() == 1:
    return [value]
  from jax.experimental import multihost_utils

  data = np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(data), np.int32))
  padded = multihost_utils.process_allgather(np.pad(data, (0, lengths.max() - len(data))))
  return [pickle.loads(row[:length].tobytes()) for row, length in zip(padded, lengths, strict=True)]


def whole(tree: Any) -> Any:
  """Arrays on devices, of all processes if need be -> numpy arrays of the same global values; all must call this."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)
