"""What a trial of a sweep is given: cores, memory, devices, machines, time; and on which terms they are lent."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

from rcnn_jax.fields import ExperimentError, Text, checked, field_hint


@dataclasses.dataclass(frozen=True)
class Resources:
  """Of ONE trial; None leaves the choice to the cluster. A part of a Sweep, changed by `--resource=NAME=VALUE`."""

  cpus: int | None = None  # of each node
  memory_gb: float | None = None  # of each node
  gpus: int | None = None  # of each node, for SLURM
  nodes: int = 1
  hours: float = 24.0  # the time limit for SLURM, after which a trial is queued again and goes on
  notice_s: int = 120  # seconds before the limit in which the step is finished and saved
  partition: str | None = None
  account: str | None = None
  slurm: tuple[tuple[str, str], ...] = ()  # further options of sbatch: (("constraint", "a100"), ("qos", "long"))
  accelerators: str | None = None  # for SkyPilot: "A100:8", "tpu-v5e-8"
  infra: str | None = None  # for SkyPilot: "gcp", "aws/us-east-1", "k8s"; None: the cheapest that has them
  spot: bool = True  # machines that may be taken away, at a third of the price; SkyPilot starts the trial anew
  bucket: str | None = None  # for SkyPilot, "gs://NAME/PATH": where the trials are kept
  mounts: tuple[tuple[str, str], ...] = ()  # for SkyPilot: (("/data/coco", "gs://my-coco"),)
  setup: str = "pip install --constraint constraints.txt --editable ."  # once on each machine, where the code lies


def changed(resources: Resources, assignments: Iterable[str]) -> Resources:
  """The resources with values replaced, from the command line's `name=value` strings.

  Raises:
    ExperimentError: for a name that is none, or a value of another type.
  """
  names = [field.name for field in dataclasses.fields(Resources)]
  for assignment in assignments:
    name, equals, text = assignment.partition("=")
    if not equals or name not in names:
      near = difflib.get_close_matches(name, names, n=3) or names
      raise ExperimentError(f"--resource={assignment}: expected NAME=VALUE, e.g. gpus=8; names: {', '.join(near)}")
    value = checked(Text(text), field_hint(Resources, name), f"--resource={name}", getattr(resources, name))
    resources = dataclasses.replace(resources, **{name: value})
  _check(resources)
  return resources


def _check(resources: Resources) -> None:
  for name in ("cpus", "memory_gb", "gpus", "nodes", "hours"):
    value = getattr(resources, name)
    if value is not None and not (value > 0 or name == "gpus" and value == 0):
      raise ExperimentError(f"resources.{name} is {value}: it must be more than 0")
  if resources.notice_s >= resources.hours * 3600:
    raise ExperimentError(
      f"resources.notice_s is {resources.notice_s}: it must be less than the time limit, {resources.hours} h"
    )
