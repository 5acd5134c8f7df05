"""Trials on SLURM, through submitit: one array job for a sweep, queued again when machines are taken away.

What queues a job again:
- the time limit: `Resources.notice_s` before it SLURM sends submitit's signal (SIGUSR2); the trial finishes its step
  and saves, and submitit queues the job again;
- preemption and failing nodes: SLURM itself, since the jobs say --requeue. The trial has SLURM's grace time to save;
- a trial that is killed (SIGKILL), for want of memory say: as at the time limit, MAX_KILLED times.
`scancel` ends a job for good; it saves. The sweep, started again, submits it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import io
import os
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from rcnn_jax.files import FileError, read_json, write_json
from rcnn_jax.sweeping import attempt as attempts
from rcnn_jax.sweeping import trials
from rcnn_jax.sweeping.attempt import Attempt
from rcnn_jax.sweeping.local import MAX_KILLED
from rcnn_jax.sweeping.resources import Resources
from rcnn_jax.sweeping.trials import SweepError, Units

MAX_TIMEOUTS = 100  # how often a job goes on after its time limit
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "SUSPENDED", "SPECIAL_EXIT", "RESV_DEL_HOLD")


@dataclasses.dataclass
class Job:
  """What SLURM runs: a unit of trials, one after another, each in a process of its own. submitit pickles it."""

  workdir: pathlib.Path
  trials: list[tuple[str, list[str]]]  # (name, the command that runs it, and does nothing where it is finished)
  killed: int = 0  # how often the system has killed a trial of it
  running: Attempt | None = None

  def __call__(self) -> None:
    """Runs what is not finished."""
    is_first = os.environ.get("SLURM_PROCID", "0") == "0"
    for name, words in self.trials:
      self.running = attempts.start(words, self.workdir / name, claims=is_first)
      if self.running is None:
        print(f"{name}: another worker is at it", flush=True)
        continue
      code = self.running.process.wait()
      status = self.running.end()
      print(f"{name}: {status.state} {status.reason}".rstrip(), flush=True)
      if code == -signal.SIGKILL and self.killed < MAX_KILLED:
        self.killed += 1
        os.kill(os.getpid(), signal.SIGUSR2)  # what submitit takes for SLURM's notice
      if code and (status.state == "preempted" or name.startswith("trained/")):
        return

  def checkpoint(self) -> Any:
    """Called by submitit upon SLURM's notice: the trial saves and ends; what is returned is queued again."""
    from submitit.helpers import DelayedSubmission

    if self.running is not None:
      pid = self.running.process.pid
      with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended by itself
        os.kill(pid, signal.SIGUSR1)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # not `wait`, which this may have interrupted
    return DelayedSubmission(Job(self.workdir, self.trials, self.killed))


def submit(
  units: Units,
  words: Callable[[str], list[str]],
  workdir: pathlib.Path,
  name: str,
  resources: Resources,
  at_once: int,
) -> dict[str, str]:
  """Submits units of trials as one array job; returns SLURM's job of each trial, which `slurm.json` has too.

  Args:
    units: what is to be done.
    words: the name of a trial -> the command that runs it.
    workdir: the sweep's folder, which all nodes share.
    name: of the job, for squeue.
    resources: of each trial; with several nodes, each runs a process of it.
    at_once: how many run at the same time at most.

  Raises:
    SweepError: no SLURM here, no submitit, or sbatch refuses the job.
  """
  check()
  import submitit

  distributed = ["--distributed"] if resources.nodes > 1 else []
  jobs = [Job(workdir.absolute(), [(name, [*words(name), *distributed]) for name in unit]) for unit in units]
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):  # submitit prints what sbatch says, and raises it
      executor = submitit.SlurmExecutor(workdir.absolute() / "slurm", max_num_timeout=MAX_TIMEOUTS)
      executor.update_parameters(**parameters(name, resources, at_once))
      with executor.batch():
        submitted = [executor.submit(job) for job in jobs]
  except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
    lines = [line.strip() for line in f"{said.getvalue()}\n{error}".splitlines() if "sbatch:" in line]
    raise SweepError(f"--executor=slurm: {lines[-1] if lines else error}") from error
  found = {name: job.job_id for unit, job in zip(units, submitted, strict=True) for name in unit}
  with trials.locked(workdir):
    write_json(workdir / "slurm.json", _known(workdir) | found)
  return found


def check() -> None:
  """Raises SweepError where nothing can be submitted: no SLURM, or no submitit."""
  if shutil.which("sbatch") is None or shutil.which("srun") is None:
    raise SweepError("--executor=slurm: there is no sbatch on this machine; start it where jobs are submitted from")
  try:
    import submitit  # noqa: F401
  except ModuleNotFoundError as error:
    raise SweepError("--executor=slurm needs submitit: pip install 'rcnn-jax[slurm]'") from error


def parameters(name: str, resources: Resources, at_once: int) -> dict[str, Any]:
  """submitit's parameters of a trial."""
  given = {
    "job_name": name,
    "time": max(1, round(resources.hours * 60)),
    "nodes": resources.nodes,
    "ntasks_per_node": 1,
    "cpus_per_task": resources.cpus,
    "gpus_per_node": resources.gpus,
    "mem": resources.memory_gb and f"{round(resources.memory_gb * 1024)}M",
    "partition": resources.partition,
    "account": resources.account,
    "signal_delay_s": resources.notice_s,
    "array_parallelism": at_once,
    "stderr_to_stdout": True,
    "additional_parameters": {"requeue": True} | dict(resources.slurm),
  }
  return {key: value for key, value in given.items() if value is not None}


def jobs(workdir: pathlib.Path) -> dict[str, str]:
  """name -> 'queued' or 'running' of the trials that SLURM still has; none where SLURM does not answer."""
  known = _known(workdir)
  if not known or shutil.which("squeue") is None:
    return {}
  asked = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i %T"]
  answer = subprocess.run(asked, capture_output=True, text=True, check=False)
  states = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines())
  found = {name: states[job] for name, job in known.items() if job in states}
  return {name: "queued" if state in QUEUED else "running" for name, state in found.items()}


def _known(workdir: pathlib.Path) -> dict[str, str]:
  try:
    return read_json(workdir / "slurm.json")
  except (OSError, FileError):
    return {}
