"""The experiment as a value: overrides, their errors, differences, the JSON form, experiment files."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import hypothesis.strategies as st
import pytest
import tiny
from hypothesis import given, settings

from rcnn_jax import experiment as experiments
from rcnn_jax.experiment import ExperimentError, diff, from_json, to_json
from rcnn_jax.training.optim import AdamW, Constant, Cosine, Momentum, Rule, StepDecay
from rcnn_jax.training.stages import Sgd

BASE = tiny.experiment()
ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
  "path, value, read",
  [
    ("model.backbone.features", 16, lambda e: e.model.backbone.features),
    ("stages.0.schedule.peak", 2.0, lambda e: e.stages[0].schedule.peak),
    ("stages.0.optimizer", AdamW(), lambda e: e.stages[0].optimizer),
    ("stages.0.clip_norm", 1.5, lambda e: e.stages[0].clip_norm),
    ("data.canvases.1.0", 12, lambda e: e.data.canvases[1][0]),
    ("name", "other", lambda e: e.name),
  ],
)
def test_override_changes_that_value_and_nothing_else(path, value, read):
  changed = BASE.override({path: value})
  assert read(changed) == value
  assert {at for at, _, _ in diff(BASE, changed)} == {path}
  assert BASE == tiny.experiment()  # the original is untouched


def test_override_reads_types():
  peak = BASE.override({"stages.0.schedule.peak": 1}).stages[0].schedule.peak
  assert (peak, type(peak)) == (1.0, float)  # an int is accepted for a float, and becomes one
  assert BASE.override({"data.canvases": [[2, 4]]}).data.canvases == ((2, 4),)


@pytest.mark.parametrize(
  "text, read, value",
  [
    ("stages.0.steps=900", lambda e: e.stages[0].steps, 900),
    ("stages.0.ema=none", lambda e: e.stages[0].ema, None),
    ("stages.0.schedule.peak=1e-3", lambda e: e.stages[0].schedule.peak, 1e-3),
    ("model.norm=true", lambda e: e.model.norm, True),
    ("model.dtype=bfloat16", lambda e: e.model.dtype, "bfloat16"),
    ("name=7", lambda e: e.name, "7"),
    ("data.canvases=((2,4),(4,2))", lambda e: e.data.canvases, ((2, 4), (4, 2))),
  ],
)
def test_set_reads_text_by_the_type_of_the_field(text, read, value):
  assert read(BASE.set([text])) == value


@pytest.mark.parametrize(
  "change, message",
  [
    ({"model.backbone.feature": 3}, "no path 'model.backbone.feature'; nearest: model.backbone.features"),
    ({"model.features": 3}, "nearest: model.backbone.features"),
    ({"stages.1.steps": 3}, "no path 'stages.1.steps'; nearest: stages.0.steps"),
    ({"stages.0.steps": "many"}, "stages.0.steps: expected int or None, got 'many' (str)"),
    ({"stages.0.steps": 1.5}, "expected int or None, got 1.5 (float)"),
    ({"stages.0.accumulate": True}, "stages.0.accumulate: expected int, got True (bool)"),
    ({"data.canvases.0": (4, 8, 12)}, "data.canvases.0: expected tuple[int, int]"),
    ({"model.backbone": 3}, "model.backbone: expected Module, got 3 (int)"),
    ({"data": 3}, "data: expected a value like Data(...), got 3"),
  ],
)
def test_override_errors(change, message):
  with pytest.raises(ExperimentError, match=re.escape(message)):
    BASE.override(change)


def test_set_errors():
  with pytest.raises(ExperimentError, match="expected path=value"):
    BASE.set(["stages.0.steps"])
  with pytest.raises(ExperimentError, match="stages.0.schedule.peak: expected float, got 'high'"):
    BASE.set(["stages.0.schedule.peak=high"])


def test_diff_stops_at_another_class_or_length():
  changed = BASE.override({"stages.0.optimizer": AdamW(), "data.canvases": ((4, 4),)})
  assert diff(BASE, changed) == [
    ("data.canvases", ((4, 8), (8, 4)), ((4, 4),)),
    ("stages.0.optimizer", Momentum(0.9), AdamW()),
  ]
  assert diff({"a": 1, "b": 2}, {"a": 1, "c": 3}) == [("b", 2, "<absent>"), ("c", "<absent>", 3)]


floats = st.floats(allow_nan=False)
schedules = st.one_of(
  st.builds(Constant, peak=floats),
  st.builds(Cosine, peak=floats, warmup_from=floats),
  st.builds(StepDecay, peak=floats, milestones=st.lists(st.integers(), max_size=3).map(tuple)),
)
stages = st.builds(
  Sgd,
  steps=st.none() | st.integers(),
  epochs=st.none() | floats,
  schedule=schedules,
  clip_norm=st.none() | floats,
  optimizer=st.builds(Momentum, momentum=floats, nesterov=st.booleans()) | st.builds(AdamW),
  rules=st.lists(st.builds(Rule, pattern=st.text(), lr=floats, frozen=st.booleans()), max_size=3).map(tuple),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(stages, max_size=3).map(tuple))
def test_json_gives_back_an_equal_experiment(some_stages):
  experiment = dataclasses.replace(BASE, stages=some_stages)
  text = json.dumps(to_json(experiment), allow_nan=False)
  assert from_json(json.loads(text)) == experiment


def test_json_names_classes_and_refuses_what_is_not_plain():
  form = to_json(BASE)
  assert form["stages"][0]["class"] == "rcnn_jax.training.stages:Sgd"
  assert to_json(math.inf) == {"float": "inf"}
  with pytest.raises(ExperimentError, match="experiment.stages.0: .*(function).*not a plain value"):
    to_json(dataclasses.replace(BASE, stages=(nn.silu,)))


@pytest.mark.parametrize(
  "form, message",
  [
    ({"class": "os:system"}, "no class 'os:system'"),
    ({"class": "some.module_not_imported:Data"}, "no class"),
    ({"class": "rcnn_jax.nothing:Data"}, "no class"),
    ({"class": "rcnn_jax.training.optim:Cosine", "peek": 1.0}, "has no field peek"),
    ({"class": "rcnn_jax.training.optim:Cosine"}, "missing .* 'peak'"),
  ],
)
def test_from_json_errors(form, message):
  with pytest.raises(ExperimentError, match=message):
    from_json(form)


def test_experiment_files(tmp_path, monkeypatch):
  good = tmp_path / "mine.py"
  good.write_text(
    "from __future__ import annotations\nimport dataclasses, tiny\n"
    "@dataclasses.dataclass(frozen=True)\nclass Own:\n  size: int = 3\n"
    "experiment = tiny.experiment().override({'data': Own(), 'data.size': 4})\n"
  )
  assert experiments.load(str(good)).data.size == 4
  empty = tmp_path / "empty.py"
  empty.write_text("")
  with pytest.raises(ExperimentError, match="empty.py defines no variable `experiment`"):
    experiments.load(str(empty))
  with pytest.raises(ExperimentError, match="no experiment file"):
    experiments.load(str(tmp_path / "none.py"))
  monkeypatch.setattr(experiments, "names", lambda package: ["faster_rcnn_bccd", "mask_rcnn_nuclei"])
  with pytest.raises(ExperimentError, match="no experiment 'faster_rcn_bccd'.*nearest: faster_rcnn_bccd"):
    experiments.load("faster_rcn_bccd")


def test_a_command_ends_on_bad_input_with_one_line():
  command = [sys.executable, "-m", "launch.train", "--experiment=no_such_experiment", "--workdir=unused"]
  ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert ended.returncode == 1
  assert re.fullmatch(r"error: no experiment 'no_such_experiment' in experiments/; nearest: .*\n", ended.stderr)
