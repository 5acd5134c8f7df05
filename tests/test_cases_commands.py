"""Inputs of ../shared/cases that concern commands and run directories, each by its name."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from rcnn_jax import files
from rcnn_jax.training import checkpoint, claim, log, loop
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.checkpoint import CheckpointError
from rcnn_jax.training.run import folder_and_checkpoint

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENT = tiny.experiment().override({"stages.0.steps": 4, "checkpoints.every_steps": 2})
DATA = {"train": {"images": 48, "objects": 90, "crc32": 1}, "eval": {"images": 9, "objects": 20, "crc32": 2}}


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
  """None of these tests is about compilation."""
  monkeypatch.setattr(loop, "make_train_step", compiled_step)


compiled_step = functools.lru_cache(loop.make_train_step)


def train(workdir, exp=EXPERIMENT, fingerprints=None):
  checkpoint.write_experiment(workdir, exp, tiny.CATEGORIES, None, fingerprints)
  loader = functools.partial(tiny.Loader, exp.data, exp.seed)
  state = tiny.variables_of(exp)
  mesh = meshes.data_mesh(1)
  return loop.run(exp, workdir, tiny.model_of(exp), state, EPOCH_STEPS, loader, mesh=mesh, log_every=2)


EPOCH_STEPS = 6  # of 48 images in batches of 8


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A finished run in a folder of a plain name: (directory, last state)."""
  workdir = tmp_path_factory.mktemp("plain") / "run"
  return workdir, train(workdir, fingerprints=DATA)


# ---------------------------------------------------------------------------------------------- workdir_with_brackets

ODD_NAMES = [
  "RUN run [1]",
  "a*b",
  "what?",
  "back\\slash",
  "[",
  "照片 é [2]/in [3]",
  os.fsdecode(b"caf\xe9 [x]"),
  "new\nline",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_workdir_with_brackets(name, trained, tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "links"))
  (tmp_path / "links").mkdir()
  (tmp_path / "axb").mkdir()  # which "a*b" would match too
  workdir = tmp_path / name
  same(train(workdir), trained[1])
  same(checkpoint.load_run(workdir, "latest").variables, trained[1].variables())
  same(train(workdir), trained[1])  # resumes at the end of the training
  moved = workdir.rename(tmp_path / "moved [9]")
  same(checkpoint.load_run(f"{moved}/", "latest").variables, trained[1].variables())
  folder, which = folder_and_checkpoint(f"{moved}@4")  # as --init_from names it
  same(checkpoint.load_run(folder, which).variables, trained[1].variables())
  assert os.listdir(tmp_path / "links") == [] and os.listdir(tmp_path / "axb") == []


def test_imported_variables_are_read_back_from_any_folder(trained, tmp_path):
  workdir = tmp_path / "imported [1]\\x"
  checkpoint.write_experiment(workdir, EXPERIMENT, tiny.CATEGORIES)
  checkpoint.save_variables(workdir, trained[1].variables())
  same(checkpoint.load_run(workdir).variables, trained[1].variables())


def test_several_processes_have_no_link_in_common_and_refuse(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(CheckpointError, match=r"run \[1\]: with several processes, a path must not have"):
    checkpoint.CheckpointStore(tmp_path / "run [1]")


def test_a_folder_of_a_plain_name_needs_no_link(tmp_path):
  with files.plain_path(tmp_path / "run 1, ü") as path:
    assert path == tmp_path / "run 1, ü"
  assert not (tmp_path / "run 1, ü").exists()


# ---------------------------------------------------------------------------------------------- disk_full

FULL = """
import functools, sys
import tiny
from launch import flags as launch_flags
from tests import test_cases_commands as cases

def main(argv):
  steps = tiny.experiment().override({"checkpoints.every_steps": 1, "checkpoints.keep_last": 99})
  wide = steps.override({"model.backbone.features": 3000, "data.canvases": ((4, 8), (4, 8))})
  cases.train(launch_flags.FLAGS.workdir, wide)

launch_flags.run(main, lambda: launch_flags.define_path("workdir", "", required=True))
"""


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 2 MB."""
  place = tmp_path / "disk"
  place.mkdir()
  mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True)
  if mounted.returncode:
    pytest.skip("a file system can be mounted by root alone")
  yield place
  subprocess.run(["umount", place], check=True)


def test_disk_full(small_disk, tmp_path):
  (tmp_path / "command.py").write_text(FULL)
  environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  command = [sys.executable, tmp_path / "command.py", f"--workdir={small_disk}/run"]
  ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
  *_, last = [line for line in ended.stderr.splitlines() if "cpu_aot_loader" not in line]
  assert ended.returncode == 1 and "Traceback" not in ended.stderr
  assert last.startswith(f"error: {small_disk}/run/") and last.endswith(": no space left on device")
  assert len([line for line in ended.stderr.splitlines() if "cpu_aot_loader" not in line]) == 1
  whole = checkpoint.saved_steps(small_disk / "run")
  assert 1 <= len(whole) < 6
  checkpoint.load_run(small_disk / "run", whole[-1])  # what was whole before can still be read
  subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
  ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
  assert ended.returncode == 0 and f"resuming at step {whole[-1]} of 6" in ended.stdout


# ---------------------------------------------------------------------------------------------- workdir_tilde


def test_workdir_tilde(tmp_path):
  environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "launch.evaluate", "--workdir=~/no such run"]
  ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path)
  assert ended.stderr == f"error: {tmp_path}/no such run is not a run directory: it has no experiment.json\n"
  assert not (tmp_path / "~").exists()


# ---------------------------------------------------------------------------------------------- resume_data_moved


def stored(workdir):
  return checkpoint.read_experiment(workdir)[0]


@dataclasses.dataclass(frozen=True)
class Folder:
  """Stands for a data set in a folder."""

  root: str
  one_based: bool = True

  def open(self):
    raise AssertionError("nothing is opened here")


@dataclasses.dataclass(frozen=True)
class FolderData(tiny.Data):
  """Data that lie somewhere."""

  train: Any = Folder("/old/train")
  eval: Any = Folder("/old/eval")
  proposals: tuple[str, str] | None = None
  workers: int = 0


MOVABLE = dataclasses.replace(EXPERIMENT, data=FolderData())


@pytest.fixture
def movable(trained, tmp_path):
  """The finished run as one whose data lie somewhere: its folder."""
  workdir = shutil.copytree(trained[0], tmp_path / "run")
  (workdir / "experiment.json").unlink()
  for step in checkpoint.saved_steps(workdir):
    (workdir / "checkpoints" / str(step)).rename(tmp_path / f"step {step}")
  log_of_run = (workdir / "metrics.jsonl").read_text()
  (workdir / "metrics.jsonl").unlink()
  checkpoint.write_experiment(workdir, MOVABLE, tiny.CATEGORIES, None, DATA)
  for moved in tmp_path.glob("step *"):
    moved.rename(workdir / "checkpoints" / moved.name.removeprefix("step "))
  (workdir / "metrics.jsonl").write_text(log_of_run)
  return workdir


def claim_again(workdir, changes, fingerprints=DATA):
  changed = MOVABLE.override(changes)
  checkpoint.check_experiment(workdir, changed)
  checkpoint.write_experiment(workdir, changed, tiny.CATEGORIES, None, fingerprints)
  return changed


@pytest.mark.parametrize(
  "changes",
  [
    {"data.workers": 3},
    {"evaluation.pictures": 2, "evaluation.every_steps": 2, "evaluation.keep_best": "bbox/AP50"},
    {"checkpoints.every_steps": 1, "checkpoints.keep_last": 9},
    {"data.batch_size.1": 1},
    {"name": "another name"},
    {"data.train.root": "/new/train", "data.eval.root": "/new/eval"},
  ],
)
def test_what_decides_nothing_that_is_trained_may_change(movable, changes, caplog):
  changed = claim_again(movable, changes)
  assert stored(movable) == changed  # the file holds the new values
  assert caplog.text == ""
  claim_again(movable, {})  # and back again


def test_other_data_in_the_new_place_are_refused(movable):
  other = DATA | {"train": {"images": 47, "objects": 88, "crc32": 3}}
  with pytest.raises(CheckpointError) as caught:
    claim_again(movable, {"data.train.root": "/new/train"}, other)
  told = "experiment.data.train.root: '/old/train' there, '/new/train' asked for"
  assert told in str(caught.value)
  told = "what is there is not the same (48 images until now, 47 now, 90 objects until now, 88 now)"
  assert told in str(caught.value)
  assert stored(movable) == MOVABLE


def test_a_run_that_kept_no_fingerprint_refuses_another_place(movable):
  form = json.loads((movable / "experiment.json").read_text())
  del form["fingerprints"]
  (movable / "experiment.json").write_text(json.dumps(form))
  claim_again(movable, {"data.workers": 2})
  form = json.loads((movable / "experiment.json").read_text())
  del form["fingerprints"]
  (movable / "experiment.json").write_text(json.dumps(form))
  with pytest.raises(CheckpointError, match="the run has kept nothing to tell by"):
    claim_again(movable, {"data.train.root": "/new/train"})


def test_what_is_read_differently_from_the_same_place_is_refused(movable):
  with pytest.raises(CheckpointError, match="data.train.one_based: True there, False asked for"):
    claim_again(movable, {"data.train.one_based": False})
  with pytest.raises(CheckpointError, match="data.proposals: None there"):
    claim_again(movable, {"data.proposals": ("/a", "/b")})


@pytest.mark.parametrize(
  "changes, told",
  [
    ({"evaluation.max_detections": 300}, "evaluation.max_detections: 100 until now, 300 from here on"),
    ({"data.eval.root": "/other"}, "data.eval.root: '/old/eval' until now, '/other' from here on"),
  ],
)
def test_other_numbers_of_evaluation_are_taken_with_a_warning(movable, changes, told, caplog):
  other = DATA | {"eval": {"images": 10, "objects": 20, "crc32": 9}}
  claim_again(movable, changes, other)
  assert [told in record.getMessage() for record in caplog.records][0]
  assert "before and after is not comparable" in caplog.text
  caplog.clear()
  claim_again(movable, changes, other)
  assert caplog.text == ""


def test_data_that_have_changed_in_their_place_are_told(movable, caplog):
  claim_again(movable, {}, DATA | {"train": {"images": 48, "objects": 91, "crc32": 7}})
  assert "the data of data.train are no longer those that the run began with (48 images until now" in caplog.text


# ---------------------------------------------------------------------------------------------- train_longer


def test_train_longer(trained):
  with pytest.raises(CheckpointError) as caught:
    train(trained[0], EXPERIMENT.override({"stages.0.steps": 8}))
  assert str(caught.value) == (
    f"{trained[0]} holds another experiment: experiment.stages.0.steps: 4 there, 8 asked for "
    f"(to go on from its parameters, train in a new --workdir with --init_from={trained[0]})"
  )


def test_init_from_names_a_checkpoint_or_none(tmp_path):
  (tmp_path / "a@b").mkdir()
  (tmp_path / "c").mkdir()
  read = folder_and_checkpoint
  assert read(f"{tmp_path}/a@b") == (f"{tmp_path}/a@b", "best")
  assert read(f"{tmp_path}/a@b@latest") == (f"{tmp_path}/a@b", "latest")
  assert read(f"{tmp_path}/c@300") == (f"{tmp_path}/c", "300")
  assert read(f"{tmp_path}/c@nonsense") == (f"{tmp_path}/c", "nonsense")  # which the run has not, as is told then


# ---------------------------------------------------------------------------------------------- damaged runs


def damaged(trained, tmp_path):
  return shutil.copytree(trained[0], tmp_path / "run")


@pytest.mark.parametrize(
  "edit, message",
  [
    (
      lambda text: text.replace('"seed": 0,', '"seed": 0'),
      r"json: not readable as JSON: Expecting ',' .*line \d+, column \d+\)$",
    ),
    (lambda text: text[: len(text) // 2], r"json: not readable as JSON: .*line \d+, column \d+\)$"),
    (lambda text: "", r"json: not readable as JSON: .*line 1, column 1\)$"),
    (lambda text: "[" * 100_000, "experiment.json: not readable as JSON: "),
    (lambda text: "[]", "experiment.json: no 'experiment' in it"),
    (lambda text: '{"experiment": null, "categories": [], "keypoints": null}', "'experiment' is no Experiment"),
    (lambda text: text.replace('"seed": 0', '"seed": "x"'), "json: experiment.seed: expected int, got 'x'"),
    (lambda text: text.replace('"name": "red"', '"name": 7'), "json: categories.0.name: expected str, got 7"),
    (lambda text: text.replace("tiny:Category", "tiny:Categry"), "categories.0: no class 'tiny:Categry'"),
    (lambda text: text.replace('"peak"', '"peek"'), "experiment.stages.0.schedule: .* has no field peek"),
    (lambda text: text.replace('"steps": 4', '"steps": 4.5'), "experiment.stages.0.steps: expected int or"),
  ],
)
def test_a_damaged_experiment_is_one_line(trained, tmp_path, edit, message):
  workdir = damaged(trained, tmp_path)
  path = workdir / "experiment.json"
  path.write_text(edit(path.read_text()))
  for read in (checkpoint.load_run, train, lambda place: checkpoint.check_experiment(place, EXPERIMENT)):
    with pytest.raises(CheckpointError, match=message) as caught:
      read(workdir)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))


def test_a_byte_order_mark_is_read_and_another_encoding_told(trained, tmp_path):
  workdir = damaged(trained, tmp_path)
  path = workdir / "experiment.json"
  text = path.read_text()
  path.write_text(text, encoding="utf-8-sig")
  assert checkpoint.load_run(workdir).step == 4
  path.write_text(text, encoding="utf-16")
  with pytest.raises(CheckpointError, match="experiment.json: not readable as JSON: no text in UTF-8, at byte 0"):
    checkpoint.load_run(workdir)


@pytest.mark.parametrize(
  "missing, message",
  [
    ("experiment.json", "experiment.json is gone|it has no experiment.json"),
    ("checkpoints/4/variables", "checkpoints/4: the checkpoint cannot be read: "),
    ("checkpoints/4/variables/manifest.ocdbt", "checkpoints/4: the checkpoint cannot be read: "),
    ("checkpoints/4/variables/d", "checkpoints/4: the checkpoint cannot be read: "),
  ],
)
def test_a_run_that_lacks_a_part_is_one_line(trained, tmp_path, missing, message):
  workdir = damaged(trained, tmp_path)
  path = workdir / missing
  path.unlink() if path.is_file() else shutil.rmtree(path)
  reads = [functools.partial(checkpoint.load_run, which="latest"), train]
  if missing != "experiment.json":  # training goes on from the checkpoint before
    same(reads.pop()(shutil.copytree(workdir, tmp_path / "copy")), trained[1])
  for read in reads:
    with pytest.raises(CheckpointError, match=message) as caught:
      read(workdir)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_whose_saving_was_killed_is_no_checkpoint(trained, tmp_path):
  workdir = damaged(trained, tmp_path)
  half = workdir / "checkpoints" / "4"
  half.rename(half.with_name("4.orbax-checkpoint-tmp-7"))
  (workdir / "checkpoints" / "notes.txt").write_text("mine")
  assert checkpoint.load_run(workdir, "latest").step == 2
  same(train(workdir), trained[1])
  assert (workdir / "checkpoints" / "notes.txt").read_text() == "mine"


def test_a_file_is_no_run_and_no_folder_of_one(tmp_path):
  (tmp_path / "file").write_text("mine")
  for use in (train, checkpoint.load_run):
    with pytest.raises(CheckpointError, match="file is a file, and no folder of a run"):
      use(tmp_path / "file")
    with pytest.raises((CheckpointError, OSError), match="not a run directory|Not a directory"):
      use(tmp_path / "file" / "run")
  assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
  "tail",
  ["", '{"step": 9', "\0\0\0\0\n", '{"step": "9", "kind": "eval"}\n', "[]\n{}\n", "\xff\n"],
)
def test_rows_that_a_crash_has_spoilt_at_the_end_are_left_out(tmp_path, tail):
  good = '{"step": 1, "kind": "train", "loss": 2.5}\n{"step": 1, "kind": "eval", "bbox/AP": null}\n'
  (tmp_path / "metrics.jsonl").write_bytes((good + tail).encode("latin-1"))
  assert [row["kind"] for row in log.rows(tmp_path)] == ["train", "eval"]


def test_a_row_that_is_spoilt_in_the_midst_is_told(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "eval"}\n{"step"\n{"step": 2, "kind": "eval"}\n')
  with pytest.raises(files.FileError, match="metrics.jsonl, row 2: not a row as training writes it"):
    log.rows(tmp_path)


def test_what_no_result_depends_on_leaves_a_trial_finished():
  idle = MOVABLE.override({"data.workers": 4, "checkpoints.keep_last": 1, "evaluation.pictures": 0, "name": "b"})
  assert claim.same_results(MOVABLE, idle)
  for path, value in {"seed": 1, "data.train.root": "/new", "evaluation.max_detections": 9}.items():
    assert not claim.same_results(MOVABLE, MOVABLE.override({path: value}))
