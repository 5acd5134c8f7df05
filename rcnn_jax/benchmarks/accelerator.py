"""The whole table for one accelerator: steps of the published detectors at full size, then the operations.

It ends within a budget of seconds: what no time is left for is left out, and said to be.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from rcnn_jax import chips
from rcnn_jax import experiment as experiments
from rcnn_jax.benchmarks import step
from rcnn_jax.benchmarks.step import Settings
from rcnn_jax.experiment import Experiment

CANVAS, DTYPE = (800, 1344), "bfloat16"


@dataclasses.dataclass(frozen=True)
class Row:
  """One step that is measured."""

  experiment: Experiment
  what: str  # 'train' or 'detect'
  batch_size: int


def rows() -> list[Row]:
  """The published detectors at 800 x 1344 in bfloat16, the most telling ones first."""
  mask, faster, keypoint = (
    experiments.load(f"torchvision_{name}_resnet50_fpn").override({"data.canvases": (CANVAS,), "model.dtype": DTYPE})
    for name in ("maskrcnn", "fasterrcnn", "keypointrcnn")
  )
  large = [Row(mask, "train", 16), Row(mask, "detect", 8), Row(faster, "train", 16), Row(faster, "detect", 8)]
  return [
    *large,
    Row(mask, "detect", 1),
    Row(mask, "train", 2),
    Row(keypoint, "train", 16),
    Row(keypoint, "detect", 8),
  ]


def measure(
  asked: Sequence[Row],
  settings: Settings,
  budget: float,
  report: Callable[[dict], None],
  make_peer: Callable[[Row], Any] | None = None,
) -> list[dict]:
  """A dict for each row: what was asked, and either `step.measured` or why it was 'left_out'.

  Args:
    asked: in this order, as long as time is left.
    settings: how there is something to do, and how often it is done.
    budget: seconds. A row is begun where as much is left as the longest one took.
    report: is given each row as soon as it is there.
    make_peer: a row to its `benchmarks.peer.Peer`.
  """
  began, longest, found = time.perf_counter(), 0.0, []
  for row in asked:
    facts = {"experiment": row.experiment.name, "what": row.what}
    start = time.perf_counter()
    if budget - (start - began) < longest:
      facts |= {"batch_size": row.batch_size, "left_out": f"{budget - (start - began):.0f} s were left"}
    else:
      facts |= _fitted(row, settings, make_peer)
      longest = max(longest, time.perf_counter() - start)
    found.append(facts)
    report(facts)
  return found


def _fitted(row: Row, settings: Settings, make_peer: Callable[[Row], Any] | None) -> dict:
  """The measurement at the row's batch size, or at the largest half of it, a quarter, … that fits the device."""
  while True:
    peer = make_peer(row) if make_peer else None
    try:
      measure_peer = (lambda: peer.measure(row.what)) if peer else None
      facts = step.measured(row.what, row.experiment, row.batch_size, settings, measure_peer)
      return facts | utilisation(facts, row.experiment) | ({"peer_says": peer.versions} if peer else {})
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error) or row.batch_size == 1:
        return {"batch_size": row.batch_size, "left_out": " ".join(str(error).split())[:300]}
      row = dataclasses.replace(row, batch_size=row.batch_size // 2)
    finally:
      if peer:
        peer.close()


def utilisation(facts: dict, experiment: Experiment) -> dict[str, float]:
  """{'peak_share'}: FLOP/s of the step by those of all devices; {} where either is not known.

  Of a head that runs over the rows that exist, the work is counted as if there were all.
  """
  kind = jax.devices()[0].device_kind
  known = [chip for chip in chips.CHIPS.values() if chip.kind == kind]
  if not known or "GFLOP" not in facts or experiment.model.heads:
    return {}
  return {"peak_share": facts["GFLOP"] * 1e9 / facts["ours"]["s"] / getattr(known[0], experiment.model.dtype)}
