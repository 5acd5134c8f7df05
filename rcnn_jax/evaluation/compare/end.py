"""How a ladder or a sweep ends: by the page of a comparison, or by a line that says why there is none."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from rcnn_jax.data.source import DataError
from rcnn_jax.evaluation.compare import comparison, inputs, page
from rcnn_jax.evaluation.compare import costs as all_costs
from rcnn_jax.evaluation.compare.costs import Cost
from rcnn_jax.evaluation.compare.files import ComparisonError
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.experiment import ExperimentError
from rcnn_jax.files import FileError


def end(
  output: pathlib.Path,
  runs: Sequence[str] = (),
  sweep: str | None = None,
  costs: Mapping[str, Cost] | None = None,
) -> str:
  """Compares finished runs, or a sweep's trials, and writes the page; what was trained is not harmed by a failure.

  Args:
    output: folder of the page.
    runs: as `inputs.read` takes them.
    sweep: the directory of a sweep.
    costs: by variant, where they are known better than from the runs.

  Returns:
    A line for people: where the page is, or why there is none.
  """
  try:
    found = inputs.read(runs, sweep)
    compared = comparison.compare(found)
    path = page.write(found, compared, output, all_costs.from_runs(found) | dict(costs or {}))
  except (ComparisonError, DataError, EvaluationError, ExperimentError, FileError, OSError) as error:
    return f"no comparison: {' '.join(str(error).split())}"
  return f"comparison: {path}"
