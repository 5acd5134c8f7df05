"""A trace of some steps, which TensorBoard and xprof open."""

from __future__ import annotations

import pathlib
from typing import Any

import jax

from rcnn_jax.training.optim import TrainingError


class Trace:
  """Written of the steps first to last into WORKDIR/tensorboard; of none where no steps are asked for."""

  def __init__(self, steps: tuple[int, int] | None, workdir: str | pathlib.Path, start: int, total: int):
    """`start`: where the training goes on, `total`: its last step. Raises TrainingError for steps that it has not."""
    if steps is not None and not start < steps[0] <= steps[1] <= total:
      raise TrainingError(
        f"--profile={steps[0]}:{steps[1]}: the training has the steps {start + 1} to {total} before it"
      )
    self._steps, self._folder, self._running = steps, pathlib.Path(workdir, "tensorboard"), False

  def begin(self, step: int) -> None:
    """Begins the trace, where it begins with this step."""
    if self._steps is not None and step == self._steps[0]:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def end(self, step: int, result: Any) -> bool:
    """Ends the trace once `result` is there, where it ends with this step; says whether it does."""
    if self._steps is None or step != self._steps[1]:
      return False
    jax.block_until_ready(result)
    self.close()
    return True

  def close(self) -> None:
    """Ends the trace if it is under way."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
