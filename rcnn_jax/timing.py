"""Times that can be compared: contestants in turns, medians, ratios round by round, and where they were taken."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax

from rcnn_jax import aot
from rcnn_jax.types import Batch

if TYPE_CHECKING:
  from rcnn_jax.training.checkpoint import Run


def alternate(contestants: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
  """Seconds of each contestant's repeats, taken in turns after one uncounted round."""
  seconds = {name: [] for name in contestants}
  for round_ in range(repeats + 1):
    for name, repeat in contestants.items():
      taken = repeat()
      if round_:
        seconds[name].append(taken)
  return seconds


def summary(seconds: dict[str, list[float]], iterations: int, batch_size: int) -> dict:
  """Medians, and the ratio ours / peer of each round (below 1: ours is faster)."""
  found = {}
  for name, taken in seconds.items():
    each = [value / iterations for value in taken]
    median = statistics.median(each)
    found[name] = {
      "s": median,
      "s_min": min(each),
      "s_max": max(each),
      "images_per_s": batch_size / median,
      "repeats": len(each),
    }
  if "peer" in seconds:
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["peer"])]
    found["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
  return found


def repeated(function: Callable, *inputs, iterations: int = 1) -> Callable[[], float]:
  """A function that runs another one several times and returns the seconds of all, the device's work included."""

  def repeat() -> float:
    began = time.perf_counter()
    for _ in range(iterations):
      found = function(*inputs)
    jax.block_until_ready(found)
    return time.perf_counter() - began

  return repeat


def compile_timed(function: Callable, *inputs) -> tuple[Callable, dict]:
  """Compiles a jitted function for its inputs; also says how long that took and what the program needs."""
  began = time.perf_counter()
  lowered = function.lower(*inputs)
  compiled = lowered.compile()
  facts = {"compile_s": time.perf_counter() - began}
  memory, cost = compiled.memory_analysis(), aot.counted(lowered.compiler_ir("hlo").as_hlo_module())
  if memory is not None:
    facts["program_memory_MiB"] = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20
  if "flops" in cost:
    facts["GFLOP"] = cost["flops"] / 1e9
  return compiled, facts


def detection(run: Run, batches: Sequence[Batch]) -> Callable[[], float]:
  """A function that detects in all batches, one after another, and returns the mean seconds of an image."""
  model = run.experiment.model.with_data(run.categories, run.keypoints)
  detect = jax.jit(lambda variables, batch: model.apply(variables, batch, method="detect"))
  num_images = sum(int(batch.valid.sum()) for batch in batches)
  variables, batches = jax.device_put((run.variables, [batch.replace(truth=None) for batch in batches]))

  def repeat() -> float:
    began = time.perf_counter()
    for batch in batches:
      jax.block_until_ready(detect(variables, batch))
    return (time.perf_counter() - began) / num_images

  return repeat


def environment() -> dict:
  """Device and versions, for the record."""
  import flax
  import optax

  device = jax.devices()[0]
  return {
    "date": datetime.date.today().isoformat(),
    "device": f"{len(jax.devices())} x {device.device_kind}",
    "cores": len(os.sched_getaffinity(0)),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "flax": flax.__version__,
    "optax": optax.__version__,
  }


def is_accelerated() -> bool:
  """Whether JAX runs on something other than the CPU."""
  return jax.default_backend() != "cpu"


def peak_memory() -> float:
  """MiB at the highest: the accelerator's own count where it has one, else this process's resident set."""
  stats = jax.devices()[0].memory_stats() or {}
  peak = stats.get("peak_bytes_in_use")
  return (peak if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**20
