"""Sweeps at work: claims, statuses, the pool of this machine, what is shown; trials are scripts of one line."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import re
import signal
import sys
import threading
import time

import pytest
import tiny

from rcnn_jax.experiment import ExperimentError, to_json
from rcnn_jax.files import write_json
from rcnn_jax.sweep import Sweep
from rcnn_jax.sweeping import attempt, follow, resources, trials
from rcnn_jax.sweeping import claim as claims
from rcnn_jax.sweeping import status as statuses
from rcnn_jax.sweeping.local import Pool
from rcnn_jax.sweeping.resources import Resources
from rcnn_jax.sweeping.slots import Slot, slots
from rcnn_jax.sweeping.status import Status
from rcnn_jax.sweeping.trials import SweepError
from rcnn_jax.training.preemption import Stopped

BASE = tiny.experiment()
SWEEP = Sweep(BASE, {"model.dropout": (0.25, 0.5)}, seeds=(0, 1))
NAMES = list(SWEEP.trials())
WHOLE = Slot((), {})


def finish(workdir: pathlib.Path, name: str, sweep: Sweep = SWEEP) -> None:
  """A trial's result: its AP is its dropout."""
  experiment = sweep.runs()[name]
  trials.write_result(workdir / name, experiment, {"bbox/AP": experiment.model.dropout})


class Scripts:
  """Starts a script in the place of each trial: 'raise' ends with a line, 'sleep' waits, others finish the trial."""

  def __init__(self, workdir: pathlib.Path, scripts: dict[str, str] | None = None, sweep: Sweep = SWEEP):
    self.workdir, self.scripts, self.sweep = workdir, scripts or {}, sweep
    self.started: list[str] = []
    for name, experiment in sweep.runs().items():
      result = {"experiment": to_json(experiment), "metrics": {"bbox/AP": experiment.model.dropout}}
      write_json(workdir / "results" / name / "trial.json", result)

  def __call__(self, name: str, slot: Slot) -> attempt.Attempt | None:
    folder, experiment = self.workdir / name, self.sweep.runs()[name]
    finished = f"import os; os.link({str(self.workdir / 'results' / name / 'trial.json')!r}, 'trial.json')"
    script = f"import os; os.chdir({str(folder)!r}); " + self.scripts.get(name, finished)
    self.started.append(name)
    done = lambda: trials.result_of(folder, experiment) is not None
    words = [sys.executable, "-S", "-c", script]
    return attempt.start(words, folder, slot.environment, slot.cores, is_finished=done)


def run(workdir: pathlib.Path, start: Scripts, at_once: int = 2, sweep: Sweep = SWEEP) -> tuple[Pool, list[str]]:
  said: list[str] = []
  pool = Pool(workdir, slots(at_once, (0,)), start, said.append)
  pool.run(trials.to_do(sweep, workdir, sweep.units()))
  return pool, said


# ---------------------------------------------------------------------------------------------------------- the pool


def test_one_failure_stops_nothing_and_only_what_is_not_finished_runs_again(tmp_path):
  failing = Scripts(tmp_path, {NAMES[1]: "print('x'); raise SystemExit('error: no space left')"})
  pool, said = run(tmp_path, failing)
  assert failing.started == NAMES
  assert pool.failed == {NAMES[1]: "no space left"}
  assert f"{NAMES[1]}: failed: no space left" in said and f"{NAMES[3]}: finished" in said
  again = Scripts(tmp_path)
  pool, _ = run(tmp_path, again)
  assert again.started == [NAMES[1]] and not pool.failed
  written = trials.write_summary(SWEEP, tmp_path)
  assert written["settings"]["dropout=0.25"] == {"bbox/AP": {"mean": 0.25, "sd": 0.0, "n": 2}}
  assert written["differences"] == {"dropout=0.5": {"bbox/AP": {"mean": 0.25, "low": None, "high": None}}}
  assert json.loads((tmp_path / "sweep.json").read_text())["trials"][NAMES[3]] == {"bbox/AP": 0.5}


def test_a_trial_that_is_killed_goes_on_and_one_that_is_killed_each_time_fails(tmp_path):
  kill = "os.kill(os.getpid(), 9)"
  once = f"os.path.exists('once') or (open('once', 'w').close(), {kill}); raise SystemExit('error: the second time')"
  pool, said = run(tmp_path, Scripts(tmp_path, {NAMES[0]: once, NAMES[1]: kill}))
  assert pool.failed == {NAMES[0]: "the second time", NAMES[1]: "killed by SIGKILL"}
  assert said.count(f"{NAMES[1]}: killed by SIGKILL; it goes on from its last checkpoint") == 2


def test_a_trial_that_was_told_to_stop_stops_the_sweep_and_the_others_are_told(tmp_path):
  told = (
    "import signal, time; signal.signal(15, lambda *_: (print('saved'), os._exit(75))); print('up'); time.sleep(60)"
  )
  waiting = f"import time\nwhile not os.path.exists({str(tmp_path / NAMES[0] / 'output.log')!r}): time.sleep(0.01)\n"
  stopped = waiting + "time.sleep(0.3); os.kill(os.getpid(), 15)"
  start = Scripts(tmp_path, {NAMES[0]: told, NAMES[1]: stopped})
  with pytest.raises(Stopped, match=f"stopped in trial {NAMES[1]}; start again"):
    run(tmp_path, start)
  assert start.started == NAMES[:2]
  assert (tmp_path / NAMES[0] / "output.log").read_text() == "up\nsaved\n"
  assert [statuses.read(tmp_path / name).state for name in NAMES[:2]] == ["preempted", "preempted"]


def test_sigterm_ends_the_sweep_and_all_its_trials(tmp_path):
  sleeping = Scripts(tmp_path, dict.fromkeys(NAMES, "import time; time.sleep(60)"))
  threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
  began = time.monotonic()
  with pytest.raises(Stopped):
    run(tmp_path, sleeping)
  assert time.monotonic() - began < 30
  assert not any(claims.is_claimed(tmp_path / name) for name in NAMES)


def test_settings_that_share_a_training_follow_it_or_fail_with_it(tmp_path):
  shared = dataclasses.replace(SWEEP, seeds=(1, 2), trained_once=True)
  start = Scripts(tmp_path, {"trained/seed=2": "raise SystemExit('error: no data')"}, shared)
  pool, _ = run(tmp_path, start, 1, shared)
  assert start.started == ["trained/seed=1", "dropout=0.25/seed=1", "dropout=0.5/seed=1", "trained/seed=2"]
  assert pool.failed == {
    "trained/seed=2": "no data",
    "dropout=0.25/seed=2": "trained/seed=2 failed",
    "dropout=0.5/seed=2": "trained/seed=2 failed",
  }


def test_workers_on_one_folder_do_no_trial_twice(tmp_path):
  lines = "import time; open(%r, 'a').write('x'); time.sleep(0.2); " % str(tmp_path / "done")
  both = []
  for _ in range(2):
    start = Scripts(tmp_path)
    link = {
      name: lines + f"os.link({str(tmp_path / 'results' / name / 'trial.json')!r}, 'trial.json')" for name in NAMES
    }
    start.scripts = link
    both.append(Pool(tmp_path, (WHOLE,), start, lambda line: None))
  left = trials.to_do(SWEEP, tmp_path, SWEEP.units())
  other = threading.Thread(target=both[1].run, args=(left,))
  other.start()
  both[0].run(left)
  other.join()
  assert (tmp_path / "done").read_text() == "x" * len(NAMES)
  assert not trials.to_do(SWEEP, tmp_path, SWEEP.units())


# ----------------------------------------------------------------------------------------------------------- claims


def test_a_claim_is_held_until_it_is_closed_and_shared_with_the_process_it_is_passed_to(tmp_path):
  assert not claims.is_claimed(tmp_path / "trial")
  first = claims.claim(tmp_path / "trial")
  assert claims.is_claimed(tmp_path / "trial")
  assert claims.claim(tmp_path / "trial") is None
  with pytest.raises(claims.TrialBusy, match="another process is at work on it"):
    with claims.held(tmp_path / "trial"):
      pass
  first.close()
  begun = attempt.start([sys.executable, "-S", "-c", "import time; time.sleep(60)"], tmp_path / "trial")
  begun._claimed.close()  # as if the process that started it had been killed
  assert claims.is_claimed(tmp_path / "trial")
  begun.process.kill()
  begun.process.wait()
  assert not claims.is_claimed(tmp_path / "trial")


# ---------------------------------------------------------------------------------------------------------- statuses


@pytest.mark.parametrize(
  "error, state, reason",
  [(None, "finished", ""), (Stopped("saved"), "preempted", "saved"), (ValueError("bad"), "failed", "bad")],
)
def test_a_trial_says_how_it_ended(tmp_path, error, state, reason):
  try:
    with statuses.recorded(tmp_path, lambda: 30, str):
      during = statuses.read(tmp_path)
      if error:
        raise error
  except (Stopped, ValueError):
    pass
  assert (during.state, during.num_steps, during.pid) == ("running", 30, os.getpid())
  after = statuses.read(tmp_path)
  assert (after.state, after.reason, after.attempts) == (state, reason, 1)
  assert statuses.settle(tmp_path, os.getpid(), 1, "something else") == after


def test_a_status_that_cannot_be_read_is_none(tmp_path):
  (tmp_path / "status.json").write_text('{"state": "runn')
  assert statuses.read(tmp_path) == Status()


# --------------------------------------------------------------------------------------------------------- the folder


def test_a_folder_belongs_to_one_sweep_which_may_grow(tmp_path):
  trials.enter(SWEEP, tmp_path)
  trials.enter(dataclasses.replace(SWEEP, seeds=(0, 1, 2), metrics=("bbox/AP50",)), tmp_path)
  trials.enter(Sweep(BASE.override({"checkpoints.keep_last": 3}), {"model.dropout": (0.75,)}), tmp_path)
  with pytest.raises(
    SweepError, match="another sweep: of model.dropout, and this one is of model.norm; choose another"
  ):
    trials.enter(Sweep(BASE, {"model.norm": (True,)}), tmp_path)
  longer = dataclasses.replace(SWEEP, base=BASE.override({"stages.0.steps": 7}))
  with pytest.raises(SweepError, match=r"of dropout=0\.\d+/seed=\d, stages.0.steps is \d+ there and 7 here; choose"):
    trials.enter(longer, tmp_path)


def test_the_folder_of_an_older_version_is_the_same_if_its_values_are(tmp_path):
  trials.enter(SWEEP, tmp_path)
  form = json.loads((tmp_path / "plan.json").read_text())
  del form["runs"][NAMES[0]]["max_skipped_steps"]  # a field that was not there yet has its default
  (tmp_path / "plan.json").write_text(json.dumps(form))
  trials.enter(SWEEP, tmp_path)


def test_a_trial_of_another_experiment_is_not_taken_for_finished(tmp_path):
  for name in NAMES:
    finish(tmp_path, name)
  assert trials.to_do(SWEEP, tmp_path, SWEEP.units()) == ()
  longer = dataclasses.replace(SWEEP, base=BASE.override({"stages.0.steps": 7}))
  assert trials.to_do(longer, tmp_path, longer.units()) == longer.units()


@pytest.mark.parametrize("surplus, finished", [({}, True), ({"unheard_of": 1}, False)])
def test_a_trial_of_an_older_version_is_finished_if_its_values_are_the_same(tmp_path, surplus, finished):
  finish(tmp_path, "dropout=0.5/seed=0")
  path = tmp_path / "dropout=0.5/seed=0" / "trial.json"
  form = json.loads(path.read_text())
  # A field that was not there yet has its default; one that is there no more is of another experiment.
  form["experiment"]["evaluation"] = {"class": "rcnn_jax.experiment:Evaluation"} | surplus
  path.write_text(json.dumps(form))
  metrics = trials.result_of(path.parent, SWEEP.trials()["dropout=0.5/seed=0"])
  assert metrics == ({"bbox/AP": 0.5} if finished else None)


def test_the_outlook_has_steps_changes_and_the_time_by_what_has_finished(tmp_path):
  sweep = dataclasses.replace(SWEEP, base=BASE.override({"stages.0.steps": 30}), seeds=(1,))
  assert trials.outlook(sweep, tmp_path, sweep.units()).splitlines() == [
    "to run    dropout=0.25/seed=1  30 steps  model.dropout=0.25, seed=1",
    "to run    dropout=0.5/seed=1  30 steps  "
    + ("seed=1" if BASE.model.dropout == 0.5 else "model.dropout=0.5, seed=1"),
    "2 of 2 to run, 60 steps; how long they take is known once one has finished",
  ]
  finish(tmp_path, "dropout=0.25/seed=1", sweep)
  statuses.write(tmp_path / "dropout=0.25/seed=1", Status(state="finished", seconds=120.0))
  last = trials.outlook(sweep, tmp_path, sweep.units(), at_once=2).splitlines()[-1]
  assert last == (
    "1 of 2 to run, 30 steps: about 0:01:00, 2 at a time (by 1 finished, 4 s a step with start and evaluation)"
  )


@pytest.mark.parametrize("text, part", [("1/2", "ace"), ("2/2", "bd"), ("3/3", "c"), ("5/5", "e"), (None, "abcde")])
def test_parts_of_a_sweep_for_several_machines(text, part):
  units = tuple((letter,) for letter in "abcde")
  assert "".join(letter for (letter,) in trials.shard(units, text)) == part


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "a/b", "-1/3", "1/3/3"])
def test_a_part_out_of_range(text):
  with pytest.raises(SweepError, match=f"--shard={re.escape(text)}: expected I/N with 1 <= I <= N"):
    trials.shard((("a",),), text)


# ------------------------------------------------------------------------------------------------- cores and devices


def test_cores_and_devices_are_divided():
  one, two = slots(2, (0, 1, 2, 3, 4), gpus=("0", "1", "2", "3"))
  assert (one.cores, two.cores) == ((0, 1), (2, 3, 4))
  assert (one.environment["CUDA_VISIBLE_DEVICES"], two.environment["CUDA_VISIBLE_DEVICES"]) == ("0,1", "2,3")
  assert two.environment["OMP_NUM_THREADS"] == "3"
  three = slots(3, (0, 1), gpus=("7",))
  assert [slot.cores for slot in three] == [(0,), (1,), (0,)]
  assert {slot.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in three} == {"0.30"}
  assert slots(1, (0, 1), gpus=("0",)) == (WHOLE,)
  assert [slot.environment["TPU_VISIBLE_CHIPS"] for slot in slots(2, (0,), num_tpus=4)] == ["0", "1"]
  with pytest.raises(ValueError, match="--at_once=3: this machine has 2 TPU chips"):
    slots(3, (0,), num_tpus=2)


def test_a_trial_has_its_cores_alone(tmp_path):
  core = min(os.sched_getaffinity(0))
  script = "import os; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
  begun = attempt.start([sys.executable, "-S", "-c", script], tmp_path, {"OMP_NUM_THREADS": "1"}, (core,))
  begun.process.wait()
  assert begun.output().decode() == f"[{core}] 1\n"
  assert begun.end().state == "failed"  # it has written no result


def test_resources_are_changed_by_name():
  changed = resources.changed(Resources(gpus=1), ["gpus=8", "memory_gb=64", "partition=a100", "spot=false"])
  assert changed == Resources(gpus=8, memory_gb=64.0, partition="a100", spot=False)


@pytest.mark.parametrize(
  "text, said",
  [
    ("gpu=8", "--resource=gpu=8: expected NAME=VALUE, e.g. gpus=8; names: gpus"),
    ("gpus", "--resource=gpus: expected NAME=VALUE"),
    ("gpus=many", "--resource=gpus: expected"),
    ("nodes=0", "resources.nodes is 0: it must be more than 0"),
    ("hours=0.01", "resources.notice_s is 120: it must be less than the time limit, 0.01 h"),
  ],
)
def test_resources_that_are_none(text, said):
  with pytest.raises(ExperimentError, match=re.escape(said)):
    resources.changed(Resources(), [text])


# ---------------------------------------------------------------------------------------------------------- the table


def test_the_table_of_all_trials(tmp_path):
  finish(tmp_path, NAMES[0])
  statuses.write(tmp_path / NAMES[0], Status(state="finished", num_steps=40))
  statuses.write(tmp_path / NAMES[1], Status(state="failed", reason="error: the loss is not finite", num_steps=40))
  running = claims.claim(tmp_path / NAMES[2])
  statuses.write(tmp_path / NAMES[2], Status(state="running", host="node7", num_steps=40))
  rows = [
    {"step": 10, "kind": "train", "images_per_s": 4.0},
    {"step": 20, "kind": "train", "images_per_s": 2.0},
    {"step": 20, "kind": "eval", "bbox/AP": 0.125},
  ]
  (tmp_path / NAMES[2] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  batch_size = BASE.data.batch_size[0]
  follower = follow.Follower(SWEEP, tmp_path, SWEEP.units())
  found = follower.rows({NAMES[3]: "queued"})
  assert found == [
    follow.Row(NAMES[0], "finished", 40, 40, 0.25),
    follow.Row(NAMES[1], "failed", None, 40, note="error: the loss is not finite"),
    follow.Row(NAMES[2], "running", 20, 40, 0.125, 20 * batch_size / 2.0, "node7"),
    follow.Row(NAMES[3], "queued"),
  ]
  running.close()
  assert follower.rows()[2].state == "killed"
  again = follower.rows(
    {NAMES[1]: "running", NAMES[2]: "queued"}
  )  # SLURM has begun with one, and has the other again
  assert [row.state for row in again[1:3]] == ["queued", "queued"]
  shown = io.StringIO()
  view = follow.View(follower, lambda: {NAMES[3]: "queued"}, file=shown)
  with view:
    view.update(at_once=True)
    view.update(at_once=True)
  assert shown.getvalue().count("4 trials: 1 finished, 1 failed, 1 killed, 1 queued") == 1
