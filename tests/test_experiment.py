"""The experiment as a value: overrides, their errors, differences, the JSON form, experiment files."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
import subprocess
import sys
from typing import Literal

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
    ("data.batch_size=4,8", lambda e: e.data.batch_size, (4, 8)),
    ("data.batch_size=[4, 8]", lambda e: e.data.batch_size, (4, 8)),
    ("stages.0.steps=1e5", lambda e: e.stages[0].steps, 100000),
    ("stages.0.steps= 100000.0 ", lambda e: e.stages[0].steps, 100000),
    ("stages.0.weight_decay=-inf", lambda e: e.stages[0].weight_decay, -math.inf),
    ("stages.0.losses=('class',)", lambda e: e.stages[0].losses, ("class",)),
    ("name=a=b=c", lambda e: e.name, "a=b=c"),
    ("name=True", lambda e: e.name, "True"),
    ("name=''", lambda e: e.name, ""),
    ("name=1e5", lambda e: e.name, "1e5"),
    ("name=运行 [1]", lambda e: e.name, "运行 [1]"),
    ("name=((((", lambda e: e.name, "(((("),
  ],
)
def test_set_reads_text_by_the_type_of_the_field(text, read, value):
  found = read(BASE.set([text]))
  assert found == value and type(found) is type(value)


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
    ({"data": Momentum}, "data: expected a value like Data(...), got <class"),  # a class is no value
    ({"stages.0": Momentum()}, "stages.0: expected a value like Sgd(...), "),  # a part, but no stage
    ({"stages": (Momentum(),)}, "stages: expected a tuple, each a value like Sgd(...), "),
    ({"stages": ()}, None),
    ({"stages.0.steps": 2.0**60}, "expected int or None"),
  ],
)
def test_override_errors(change, message):
  if message is None:
    BASE.override(change)
    return
  with pytest.raises(ExperimentError, match=re.escape(message)):
    BASE.override(change)


def test_set_errors():
  with pytest.raises(ExperimentError, match="expected path=value"):
    BASE.set(["stages.0.steps"])
  with pytest.raises(ExperimentError, match="stages.0.schedule.peak: expected float, got 'high'"):
    BASE.set(["stages.0.schedule.peak=high"])


class Own(nn.Module):
  """Has a field of a few words, one that an annotation leaves open, and a check of its own."""

  dtype: Literal["float32", "bfloat16"] = "float32"
  rate: "NotThere" = 0  # noqa: F821

  def __post_init__(self):
    super().__post_init__()
    if self.rate == 3:
      raise ValueError("a rate of 3")


OWN = BASE.override({"model.backbone": Own()})


@pytest.mark.parametrize(
  "text, message",
  [
    ("data=foo", "data: expected a value like Data(...), got 'foo' (str); another part is put there by"),
    ("data=none", "data: expected a value like Data(...), got 'none' (NoneType)"),
    ("stages.0=foo", "stages.0: expected a value like Sgd(...), CopyParameters, FitBoxRegression, FitSvms, Reset"),
    ("stages=(1,2)", "stages: expected a tuple, each a value like Sgd(...), "),
    ("stages.0.optimizer=adam", "stages.0.optimizer: expected Momentum or AdamW, got 'adam' (str); another part is "),
    ("stages.0.optimizer=adam", "--set changes its values: stages.0.optimizer.momentum, stages.0.optimizer.nesterov"),
    ("stages.0.steps=1.5", "stages.0.steps: expected int or None, got '1.5' (float)"),
    ("stages.0.steps=1e400", "stages.0.steps: expected int or None, got '1e400' (float)"),
    ("stages.0.steps=", "stages.0.steps: nothing stands behind '='; expected int or None"),
    ("name=", "name: nothing stands behind '='; expected str ('' is an empty one)"),
    ("stages.0.schedule.peak=nan", "stages.0.schedule.peak: expected float, got 'nan' (str)"),
    ("stages.0.accumulate=true", "stages.0.accumulate: expected int, got 'true' (bool)"),
    ("model.norm=1", "model.norm: expected bool (true or false), got '1' (int)"),
    ("stages.0.losses=class", "got 'class' (str); a tuple of one is written ('class',)"),
    ("data.batch_size=8", "data.batch_size: expected tuple[int, int], got '8' (int); a tuple is written like (1, 2)"),
    ("stages.-1.steps=3", "no path 'stages.-1.steps'; nearest: stages.0.steps"),
    ("data.canvases.0.2=3", "no path 'data.canvases.0.2'"),
    ("===", "no path ''; the top level has name, data"),
    ("seed=b'1'", "seed: expected int, got"),
    ("seed=" + "(" * 500, "seed: expected int, got"),
    ("seed=" + "-" * 5000 + "1", "seed: expected int, got"),
  ],
)
def test_set_refuses_what_does_not_fit_and_says_what_does(text, message):
  with pytest.raises(ExperimentError, match=re.escape(message)) as caught:
    BASE.set([text])
  assert "\n" not in str(caught.value)


def test_a_field_of_a_few_words_names_the_nearest_first():
  message = "model.backbone.dtype: expected 'bfloat16' or 'float32', got 'bfloat61' (str)"
  with pytest.raises(ExperimentError, match=re.escape(message)):
    OWN.set(["model.backbone.dtype=bfloat61"])
  with pytest.raises(ExperimentError, match="expected 'float32' or 'bfloat16', got 'float'"):
    OWN.override({"model.backbone.dtype": "float"})
  assert OWN.set(["model.backbone.dtype=bfloat16"]).model.backbone.dtype == "bfloat16"


def test_a_check_of_a_part_itself_is_told_with_its_path():
  assert OWN.set(["model.backbone.rate=2"]).model.backbone.rate == 2  # no annotation that could be read: any value
  with pytest.raises(ExperimentError, match="^model.backbone.rate: a rate of 3$"):
    OWN.set(["model.backbone.rate=3"])


@settings(max_examples=300, deadline=None)
@given(
  st.sampled_from(list(experiments.flatten(BASE))), st.text() | st.sampled_from(["1", "none", "(1,)", "1e3", "'a'"])
)
def test_whatever_is_set_is_refused_in_one_line_or_can_be_written_down(path, text):
  try:
    changed = BASE.set([f"{path}={text}"])
  except ExperimentError as error:
    assert str(error).startswith(f"{path}: ")
  else:
    assert from_json(json.loads(json.dumps(to_json(changed)))) == changed


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
    ({"class": ["rcnn_jax"]}, "no class"),
    ({"class": "rcnn_jax.:Data"}, "no class"),
    ({"class": "rcnn_jax.files:json.JSONEncoder"}, "no class"),
    ({"peak": 1.0}, "experiment: no class None"),
    ({"float": "1e"}, "no class None"),
    ({"class": "rcnn_jax.training.optim:Cosine", "peak": "high"}, "^experiment.peak: expected float, got 'high'"),
    ([{"class": "rcnn_jax.training.optim:Cosine", "peak": True}], "^experiment.0.peak: expected float, got True"),
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


@pytest.mark.parametrize(
  "text, message",
  [
    ("x = 1\nexperiment = (", "line 2: SyntaxError: '(' was never closed"),
    ("x = 1\n\nprint(1 / 0)", "line 3: ZeroDivisionError: division by zero"),
    ("import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"),
    ("def f():\n  raise KeyError('a')\nf()", "line 2: KeyError: 'a'"),
    ("import tiny\nexperiment = tiny.experiment().override({'seed': 'x'})", "line 2: seed: expected int, got 'x'"),
    ("\0", "SyntaxError: source code string cannot contain null bytes"),
  ],
)
def test_an_experiment_file_with_an_error_is_told_with_its_line(tmp_path, text, message):
  file = tmp_path / "mine.py"
  file.write_text(text)
  with pytest.raises(ExperimentError, match=re.escape(message)) as caught:
    experiments.load(str(file))
  assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
  assert not any(name.endswith(".mine") for name in sys.modules)


def test_an_experiment_file_is_found_in_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "mine.py").write_text("import tiny\nexperiment = tiny.experiment()\n")
  assert experiments.load("~/mine.py") == BASE


def test_a_command_ends_on_bad_input_with_one_line():
  command = [sys.executable, "-m", "launch.train", "--experiment=no_such_experiment", "--workdir=unused"]
  ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert ended.returncode == 1
  assert re.fullmatch(r"error: no experiment 'no_such_experiment' in experiments/; nearest: .*\n", ended.stderr)
