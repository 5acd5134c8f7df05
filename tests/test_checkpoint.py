"""Run directories: resuming bit for bit, refusing, keeping the best, starting from another run, SIGTERM."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import tiny

from rcnn_jax.experiment import Checkpoints, Evaluation
from rcnn_jax.training import checkpoint, checksums, log, loop
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.checkpoint import CheckpointError
from rcnn_jax.training.optim import TrainingError

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENT = tiny.experiment().override({"data.canvases": ((4, 8), (4, 8))})


class Killed(Exception):
  """Stands for the end of the process."""


class Fragile(tiny.Loader):
  """Dies when asked for the batch of step `dies_at`, as a process does that is killed there."""

  dies_at = 5

  def __next__(self):
    if self.given + 1 == self.dies_at:
      raise Killed
    return super().__next__()


class Terminated(tiny.Loader):
  """A signal arrives while the batch of step 2 is read."""

  by = signal.SIGTERM

  def __next__(self):
    if self.given + 1 == 2:
      os.kill(os.getpid(), self.by)
    return super().__next__()


def train(workdir, exp=EXPERIMENT, loader=tiny.Loader, evaluate=None):
  checkpoint.write_experiment(workdir, exp, tiny.CATEGORIES)
  return loop.run(
    exp,
    workdir,
    tiny.model_of(exp),
    tiny.variables_of(exp),
    tiny.STEPS_PER_EPOCH,
    functools.partial(loader, exp.data, exp.seed),
    evaluate=evaluate,
    mesh=meshes.data_mesh(1),
    log_every=2,
  )


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture
def compiled_once(monkeypatch):
  """Runs that do not test compilation share their compiled steps."""
  monkeypatch.setattr(loop, "make_train_step", compiled_step)


compiled_step = functools.lru_cache(loop.make_train_step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run of six steps that nothing disturbed: (directory, last state)."""
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, train(workdir)


def results(workdir):
  """The rows of metrics.jsonl without the clock's."""
  return [{k: v for k, v in row.items() if k not in ("images_per_s", "data_wait")} for row in log.rows(workdir)]


@pytest.mark.parametrize("dies_at", [2, 5])  # before the first checkpoint (step 3) and after it
def test_killed_and_started_again_ends_bit_for_bit_the_same(dies_at, whole, tmp_path, monkeypatch):
  monkeypatch.setattr(Fragile, "dies_at", dies_at)
  with pytest.raises(Killed):
    train(tmp_path, loader=Fragile)
  same(train(tmp_path), whole[1])
  assert results(tmp_path) == results(whole[0])  # no row twice, none missing, none different


def test_a_run_that_is_beyond_its_end_is_told(whole):
  shorter = EXPERIMENT.override({"stages.0.steps": 3})  # as when stages are given in epochs and images are gone
  loader = functools.partial(tiny.Loader, shorter.data, shorter.seed)
  arguments = (tiny.model_of(shorter), tiny.variables_of(shorter), tiny.STEPS_PER_EPOCH, loader)
  with pytest.raises(TrainingError, match="the run is at step 6 and ends at step 3: has its data set shrunk"):
    loop.run(shorter, whole[0], *arguments, mesh=meshes.data_mesh(1))


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGUSR1])
def test_a_notice_saves_and_says_so_and_asks_to_be_started_again(by, whole, tmp_path, compiled_once, monkeypatch):
  monkeypatch.setattr(Terminated, "by", by)
  with pytest.raises(loop.Stopped, match=f"{by.name} at step 2 of 6") as stopped:
    train(tmp_path, loader=Terminated)
  assert stopped.value.exit_status == os.EX_TEMPFAIL == 75
  assert checkpoint.load_run(tmp_path, "latest").step == 2
  same(train(tmp_path), whole[1])
  assert results(tmp_path) == results(whole[0])


def test_a_notice_stops_an_evaluation_at_once(whole, tmp_path, compiled_once):
  def evaluate(variables, step):
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("it went on")

  with pytest.raises(loop.Stopped, match="stopped by SIGTERM"):
    train(tmp_path, evaluate=evaluate)
  same(train(tmp_path, evaluate=lambda variables, step: {"bbox/AP": 0.5}), whole[1])
  assert [row["step"] for row in log.rows(tmp_path) if row["kind"] == "eval"] == [6]


def test_a_second_notice_ends_the_process(tmp_path):
  code = "import os, signal\nfrom rcnn_jax.training import preemption\nwith preemption.noting() as noted:\n"
  code += "  for number in range(2):\n    os.kill(os.getpid(), signal.SIGTERM)\n    print(noted, flush=True)"
  ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert (ended.stdout, ended.returncode) == ("['SIGTERM']\n", -signal.SIGTERM)


def largest_file(folder):
  """That of the arrays; what each process wrote before all was put together is not read."""
  return max((folder / "d").iterdir(), key=os.path.getsize)


def flipped(path):
  """One bit in the middle of the file is another."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def emptied(path):
  path.write_bytes(b"")


def of_another_step(path):
  """All files are sound, and those of step 3: what only the checksum tells."""
  step = path.parents[[parent.name for parent in path.parents].index("variables")]
  shutil.rmtree(step)
  shutil.copytree(step.parents[1] / "3" / "variables", step)


@pytest.mark.parametrize("harm", [flipped, emptied, os.remove, of_another_step])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(harm, whole, tmp_path, compiled_once, capsys):
  workdir = shutil.copytree(whole[0], tmp_path / "run")
  harm(largest_file(workdir / "checkpoints" / "6" / "variables"))
  with pytest.raises(checkpoint.DamagedError, match="checkpoints/6: the checkpoint (cannot be read|is not what was)"):
    checkpoint.load_run(workdir, "latest")
  same(train(workdir), whole[1])
  first, second, *_ = capsys.readouterr().out.splitlines()
  assert first.startswith(f"{workdir}/checkpoints/6: the checkpoint ")
  assert first.endswith(f"; put aside into {workdir}/damaged/6") and second == "resuming at step 3 of 6"
  assert results(workdir) == results(whole[0])


def test_where_no_checkpoint_is_whole_nothing_is_moved_and_the_run_says_so(whole, tmp_path):
  workdir = shutil.copytree(whole[0], tmp_path / "run")
  for step in (3, 6):
    flipped(largest_file(workdir / "checkpoints" / str(step) / "variables"))
  with pytest.raises(CheckpointError, match="checkpoints/6: .*; no older checkpoint is whole: to begin anew, move"):
    train(workdir)
  assert checkpoint.saved_steps(workdir) == [3, 6]


def test_a_checkpoint_from_before_there_were_checksums_is_read(whole, tmp_path):
  workdir = shutil.copytree(whole[0], tmp_path / "run")
  host = workdir / "checkpoints" / "6" / "host" / "metadata"
  form = json.loads(host.read_text())
  assert set(form) == {"loaders", "unlogged", "skipped", "checksums"}
  host.write_text(json.dumps({name: form[name] for name in ("loaders", "unlogged")}))
  assert checkpoint.load_run(workdir, "latest").step == 6
  same(train(workdir), whole[1])


@hypothesis.given(st.integers(1, 6), st.integers(1, 6), st.data())
@hypothesis.settings(max_examples=20, deadline=None)
def test_a_checksum_tells_one_bit_and_two_words_that_have_changed_places(rows, columns, data):
  array = np.arange(1, rows * columns + 1, dtype=np.float32).reshape(rows, columns)
  known = checksums.checksums({"w": array})
  assert checksums.differing({"w": array.copy()}, known) == []
  words = array.copy().view(np.uint32)
  place = data.draw(st.integers(0, rows * columns - 1))
  words.flat[place] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
  assert checksums.differing({"w": words.view(np.float32)}, known) == ["['w']"]
  other = data.draw(st.integers(0, rows * columns - 1))
  swapped = array.copy()
  swapped.flat[[place, other]] = swapped.flat[[other, place]]
  assert checksums.differing({"w": swapped}, known) == ([] if place == other else ["['w']"])


def test_a_finished_run_is_left_as_it_is(whole):
  before = results(whole[0])
  same(train(whole[0]), whole[1])
  assert results(whole[0]) == before


def test_accumulation_resumes_between_two_updates(tmp_path, compiled_once):
  exp = EXPERIMENT.override({"stages.0.accumulate": 2})  # the checkpoint of step 3 holds half a gradient
  expected = train(tmp_path / "whole", exp)
  with pytest.raises(Killed):
    train(tmp_path / "killed", exp, Fragile)
  same(train(tmp_path / "killed", exp), expected)


def test_resuming_in_the_second_stage(tmp_path, compiled_once):
  stage = dataclasses.replace(EXPERIMENT.stages[0], steps=3)
  exp = dataclasses.replace(EXPERIMENT, stages=(stage, stage), checkpoints=Checkpoints(every_steps=1))
  expected = train(tmp_path / "whole", exp)
  with pytest.raises(Killed):
    train(tmp_path / "killed", exp, Fragile)
  same(train(tmp_path / "killed", exp), expected)


def test_another_experiment_is_refused(whole):
  other = EXPERIMENT.override({"stages.0.schedule.peak": 0.25, "seed": 1})
  with pytest.raises(CheckpointError, match="another experiment: ") as caught:
    train(whole[0], other)
  assert "experiment.stages.0.schedule.peak: 0.5 there, 0.25 asked for" in str(caught.value)
  assert "experiment.seed: 0 there, 1 asked for" in str(caught.value)
  with pytest.raises(CheckpointError, match="categories.2.name: 'blue' there, 'violet' asked for"):
    names = (*tiny.CATEGORIES[:2], tiny.Category(11, "violet"))
    checkpoint.write_experiment(whole[0], EXPERIMENT, names)


def test_a_run_from_before_a_value_existed_has_its_default(whole, tmp_path):
  workdir = shutil.copytree(whole[0], tmp_path / "run")
  form = json.loads((workdir / "experiment.json").read_text())
  del form["experiment"]["stages"][0]["accumulate"]
  (workdir / "experiment.json").write_text(json.dumps(form))
  checkpoint.write_experiment(workdir, EXPERIMENT, tiny.CATEGORIES)
  checkpoint.check_experiment(workdir, EXPERIMENT)
  with pytest.raises(CheckpointError, match="experiment.stages.0.accumulate: 1 there, 2 asked for"):
    checkpoint.write_experiment(workdir, EXPERIMENT.override({"stages.0.accumulate": 2}), tiny.CATEGORIES)


def test_a_directory_without_a_step_can_be_claimed_anew(tmp_path):
  checkpoint.write_experiment(tmp_path, EXPERIMENT, tiny.CATEGORIES)
  other = EXPERIMENT.override({"seed": 1})  # a start that failed, e.g. for a misspelt rule, is corrected
  checkpoint.write_experiment(tmp_path, other, tiny.CATEGORIES)
  assert checkpoint.read_experiment(tmp_path) == (other, tiny.CATEGORIES, None)


def test_a_run_is_read_back_whole(whole):
  run = checkpoint.load_run(str(whole[0]), "latest")
  assert (run.experiment, run.categories, run.keypoints, run.step) == (EXPERIMENT, tiny.CATEGORIES, None, 6)
  same(run.variables, whole[1].variables())  # the moving average, since this run keeps one
  assert checkpoint.load_run(whole[0], "best").step == 6  # nothing was evaluated: the latest
  assert checkpoint.load_run(whole[0], 3).step == 3
  with pytest.raises(CheckpointError, match="no checkpoint 4; it has best, latest, 3, 6"):
    checkpoint.load_run(whole[0], 4)
  with pytest.raises(CheckpointError, match="not a run directory"):
    checkpoint.load_run(whole[0] / "checkpoints")


def test_the_best_and_the_last_checkpoints_are_kept(tmp_path, compiled_once):
  exp = dataclasses.replace(EXPERIMENT, evaluation=Evaluation(1), checkpoints=Checkpoints(keep_last=1))
  scores = {1: 0.1, 2: 0.7, 3: None, 4: 0.2, 5: 0.3, 6: 0.3}
  train(tmp_path, exp, evaluate=lambda variables, step: {"bbox/AP": scores[step]})
  assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 6]
  assert checkpoint.load_run(tmp_path, "best").step == 2


def test_an_evaluation_that_was_cut_off_is_done_on_resuming(tmp_path, compiled_once):
  def cut_off(variables, step):
    raise Killed

  with pytest.raises(Killed):
    train(tmp_path, evaluate=cut_off)
  train(tmp_path, evaluate=lambda variables, step: {"bbox/AP": 0.5})
  assert [(row["step"], row["bbox/AP"]) for row in log.rows(tmp_path) if row["kind"] == "eval"] == [(6, 0.5)]


def test_a_row_cut_short_by_a_crash_is_dropped(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n{"step": 2, "ki')
  assert log.rows(tmp_path) == [{"step": 1, "kind": "train"}]


def test_imported_variables_are_a_run(tmp_path):
  variables = tiny.variables_of(EXPERIMENT)
  checkpoint.write_experiment(tmp_path, EXPERIMENT, tiny.CATEGORIES)
  checkpoint.save_variables(tmp_path, variables)
  same(checkpoint.load_run(tmp_path).variables, variables)


def test_taking_the_parameters_of_another_run():
  ours = {"params": {"backbone": {"kernel": np.zeros(2)}, "head": {"kernel": np.zeros((2, 4)), "bias": np.zeros(4)}}}
  theirs = {"params": {"backbone": {"kernel": np.ones(2)}, "head": {"kernel": np.ones((2, 9))}}}
  with pytest.raises(CheckpointError, match="head/kernel is .2, 9., the model has .2, 4.; head/bias is missing"):
    checkpoint.take_params(ours, theirs)
  with pytest.raises(TrainingError, match=r"'head/\(' is no regular expression"):
    checkpoint.take_params(ours, theirs, skip="head/(")
  taken = checkpoint.take_params(ours, theirs, skip="head/.*")["params"]
  assert taken["backbone"]["kernel"].sum() == 2 and taken["head"]["kernel"].sum() == 0
