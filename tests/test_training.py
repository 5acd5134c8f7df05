"""The jitted step and the loop, on a model and data that train in milliseconds."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rcnn_jax.experiment import Evaluation
from rcnn_jax.files import FileError
from rcnn_jax.models.layers import BatchNorm
from rcnn_jax.training import checkpoint, log, loop, soundness, validation
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import AdamW, Constant, Rule, TrainingError, flatten
from rcnn_jax.training.stages import Sgd
from rcnn_jax.training.step import create_state, make_train_step

ONE = meshes.data_mesh(1)


def steps(stage, batches, model=None, mesh=ONE):
  """The state after a step on each of `batches`, the metrics of each, and the compiled step."""
  exp = tiny.experiment()
  model = model or tiny.model_of(exp)
  variables = model.init(jax.random.key(0), tiny.batch_of([0]), None, method="losses")
  state = create_state(variables, stage, mesh)
  train_step = make_train_step(model, stage, mesh, seed=0, num_steps=len(batches))
  metrics = []
  for batch in batches:
    state, values = train_step(state, meshes.shard_batch(batch, mesh))
    metrics.append(jax.device_get(values))
  return variables, jax.device_get(state), metrics, train_step


def test_one_step_is_gradient_descent():
  stage = Sgd(steps=1, schedule=Constant(0.5), rules=(Rule("head/.*", lr=0.1), Rule(".*")))
  quiet = tiny.model_of(tiny.experiment()).clone(dropout=0.0)
  batch = tiny.batch_of(range(8))
  before, state, metrics, _ = steps(stage, [batch], quiet)
  loss = lambda v: sum(quiet.apply(v, batch, jax.random.key(9), method="losses").values())
  value, gradient = jax.value_and_grad(loss)(before)
  old, new, slope = (flatten(x["params"]) for x in (before, {"params": state.params}, gradient))
  for path in old:
    rate = 0.05 if path.startswith("head") else 0.5
    np.testing.assert_allclose(new[path], old[path] - rate * slope[path], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(metrics[0]["loss"], value, rtol=1e-5)
  norm = np.sqrt(sum((g**2).sum() for g in slope.values()))
  np.testing.assert_allclose([metrics[0]["grad_norm"], metrics[0]["lr"]], [norm, 0.5], rtol=1e-5)
  np.testing.assert_allclose(metrics[0]["loss/class"] + metrics[0]["loss/size"], metrics[0]["loss"], rtol=1e-6)


@pytest.mark.parametrize("optimizer", [AdamW(), Sgd().optimizer], ids=["adamw", "momentum"])
def test_frozen_parameters_stay_and_hold_no_momentum(optimizer):
  rules = (Rule("backbone/.*", frozen=True), Rule(".*"))
  stage = Sgd(steps=2, schedule=Constant(1.0), weight_decay=0.1, optimizer=optimizer, rules=rules, ema=0.9)
  before, state, _, _ = steps(stage, [tiny.batch_of(range(8))] * 2)
  np.testing.assert_array_equal(state.params["backbone"]["kernel"], before["params"]["backbone"]["kernel"])
  np.testing.assert_array_equal(state.ema_params["backbone"]["kernel"], before["params"]["backbone"]["kernel"])
  assert not np.array_equal(state.params["head"]["kernel"], before["params"]["head"]["kernel"])
  held = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)}
  assert before["params"]["backbone"]["kernel"].shape not in held


def test_trainings_that_differ_in_seed_rate_and_decay_are_one_program_and_each_is_its_own():
  model, batch = tiny.model_of(tiny.experiment()), tiny.batch_of(range(8))
  lowered = []
  for seed, peak, decay in ((0, 0.5, 0.01), (7, 0.25, 0.1)):
    stage = Sgd(steps=4, schedule=Constant(peak), weight_decay=decay)
    alone, shared = (
      make_train_step(model, stage, ONE, seed=seed, num_steps=4, shared=shared) for shared in (False, True)
    )
    found = []
    for train_step in (alone, shared):
      state = create_state(tiny.variables_of(tiny.experiment()), stage, ONE)
      for _ in range(2):
        state, metrics = train_step(state, meshes.shard_batch(batch, ONE))
      found.append(jax.device_get((state, metrics)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), *found)
    lowered.append(shared.program.lower(state, batch, shared.inputs).as_text())
  assert lowered[0] == lowered[1]


def test_no_gradient_is_computed_for_frozen_parameters():
  """The gradient of the backbone's kernel is a matrix product that the frozen program does not have."""
  exp, products = tiny.experiment(), []
  for rules in ((Rule(".*"),), (Rule("backbone/.*", frozen=True), Rule(".*"))):
    stage = Sgd(steps=1, rules=rules)
    state = create_state(tiny.variables_of(exp), stage, ONE)
    step = make_train_step(tiny.model_of(exp), stage, ONE, seed=0, num_steps=1)
    products.append(str(jax.make_jaxpr(step)(state, tiny.batch_of(range(8)))).count("dot_general"))
  assert products[1] < products[0]


def test_ema_is_its_formula():
  batches = [tiny.batch_of(range(8)), tiny.batch_of(range(8, 16))]
  before, first, _, _ = steps(Sgd(steps=2, schedule=Constant(0.5)), batches[:1])
  _, second, _, _ = steps(Sgd(steps=2, schedule=Constant(0.5)), batches)
  _, averaged, _, _ = steps(Sgd(steps=2, schedule=Constant(0.5), ema=0.75), batches)
  average = lambda a, b: jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, a, b)
  expected = average(average(before["params"], first.params), second.params)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), averaged.ema_params, expected)
  assert averaged.variables()["params"] is averaged.ema_params


def test_accumulating_two_batches_is_one_batch_of_both():
  quiet = tiny.model_of(tiny.experiment()).clone(dropout=0.0)
  both, halves = tiny.batch_of(range(16)), [tiny.batch_of(range(8)), tiny.batch_of(range(8, 16))]
  settings = dict(schedule=Constant(0.5), weight_decay=0.01, clip_norm=0.1, ema=0.5)
  _, whole, _, _ = steps(Sgd(steps=2, **settings), [both, both], quiet)
  _, parts, _, _ = steps(Sgd(steps=4, accumulate=2, **settings), halves * 2, quiet)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, (whole.params, whole.ema_params), (parts.params, parts.ema_params))
  _, middle, _, _ = steps(Sgd(steps=4, accumulate=2, **settings), halves[:1], quiet)
  jax.tree.map(np.testing.assert_array_equal, middle.params, steps(Sgd(steps=1), [], quiet)[0]["params"])


def test_evaluations_are_every_so_many_steps_or_epochs():
  """Two epochs of the keypoint images, about 3,376 batches each."""
  assert loop.evaluation_interval(Evaluation(), 3376) is None
  assert loop.evaluation_interval(Evaluation(every_steps=500), 3376) == 500
  assert loop.evaluation_interval(Evaluation(every_epochs=2), 3376) == 6752
  assert loop.evaluation_interval(Evaluation(every_epochs=0.1), 3) == 1
  for wrong in (Evaluation(every_steps=500, every_epochs=2), Evaluation(every_steps=0)):
    with pytest.raises(TrainingError, match="evaluation.every_steps"):
      loop.evaluation_interval(wrong, 3376)


def test_each_canvas_compiles_once():
  wide, tall = (tiny.batch_of(range(8), canvas) for canvas in ((4, 8), (8, 4)))
  _, _, _, train_step = steps(Sgd(steps=6, ema=0.9), [wide, wide, wide, tall, wide, tall])
  assert train_step._cache_size() == 2


def test_batch_statistics_are_carried():
  norm = tiny.model_of(tiny.experiment()).clone(norm=True)
  before, state, _, _ = steps(Sgd(steps=1), [tiny.batch_of(range(8))], norm)
  assert not np.array_equal(state.batch_stats["normalise"]["mean"], before["batch_stats"]["normalise"]["mean"])
  assert set(state.variables()) == {"params", "batch_stats"}


class Normed(tiny.Classifier):
  """The classifier with a batch norm that has parameters, of this project or flax's own."""

  of_flax: bool = False

  def setup(self):
    self.head = nn.Dense(self.num_classes + 1)
    self.bn = nn.BatchNorm(use_running_average=False) if self.of_flax else BatchNorm()

  def losses(self, batch, key):
    features = self.backbone(batch.image.astype(jnp.float32) / 255)
    features = self.bn(features) if self.of_flax else self.bn(features, True)
    logits = nn.log_softmax(self.head(features))
    return {"class": -jnp.take_along_axis(logits, batch.truth.classes[:, :1], axis=1).mean()}


@pytest.mark.parametrize("of_flax", [False, True])
def test_the_statistics_of_a_frozen_norm_stay(of_flax):
  batches = [tiny.batch_of(range(8))] * 2
  moved = lambda *rules: steps(Sgd(steps=2, rules=rules), batches, model)
  model = Normed(tiny.Backbone(), num_classes=3, of_flax=of_flax)
  before, state, _, _ = moved(Rule("bn/.*", frozen=True), Rule(".*"))
  jax.tree.map(np.testing.assert_array_equal, before["batch_stats"], state.batch_stats)
  jax.tree.map(np.testing.assert_array_equal, before["params"]["bn"], state.params["bn"])
  assert not np.array_equal(before["params"]["backbone"]["kernel"], state.params["backbone"]["kernel"])
  for rules in ((Rule(".*"),), (Rule("bn/scale", frozen=True), Rule(".*"))):
    before, state, _, _ = moved(*rules)
    assert not np.array_equal(before["batch_stats"]["bn"]["mean"], state.batch_stats["bn"]["mean"])


def test_a_frozen_norm_normalises_by_its_running_statistics():
  model = Normed(tiny.Backbone(), num_classes=3)
  # Means of 0 and variances of 1, as the statistics begin: without the epsilon's share the norm would do nothing.
  plain = tiny.Classifier(tiny.Backbone(), num_classes=3, dropout=0.0)
  batch = tiny.batch_of(range(8))
  variables, _, metrics, _ = steps(Sgd(steps=1, rules=(Rule("bn/.*", frozen=True), Rule(".*"))), [batch], model)
  same = {"params": {name: variables["params"][name] for name in ("backbone", "head")}}
  expected = plain.apply(same, batch, None, method="losses")["class"]
  np.testing.assert_allclose(metrics[0]["loss"], expected, rtol=1e-4)
  _, _, trained, _ = steps(Sgd(steps=1), [batch], model)
  assert abs(trained[0]["loss"] - expected) > 0.01


def test_the_random_key_belongs_to_step_and_image():
  """The same image draws the same noise wherever it stands in the batch, and other noise at the next step."""
  stage, ids = Sgd(steps=1, schedule=Constant(0.0)), np.arange(8)
  loss = lambda batches: [m["loss"] for m in steps(stage, batches)[2]]
  np.testing.assert_allclose(loss([tiny.batch_of(ids)]), loss([tiny.batch_of(ids[::-1])]), rtol=1e-6)
  first, second = loss([tiny.batch_of(ids)] * 2)
  assert first != second


# ------------------------------------------------------------------------------------------------------- the loop


def train(exp, workdir, *, evaluate=None, loader=tiny.Loader, log_every=2, **options):
  checkpoint.write_experiment(workdir, exp, tiny.CATEGORIES)
  batches = functools.partial(loader, exp.data, exp.seed)
  return loop.run(
    exp,
    workdir,
    tiny.model_of(exp),
    tiny.variables_of(exp),
    tiny.STEPS_PER_EPOCH,
    batches,
    evaluate=evaluate,
    mesh=ONE,
    log_every=log_every,
    **options,
  )


def test_a_run_logs_evaluates_and_learns(tmp_path, capsys):
  stage = Sgd(epochs=10.0, schedule=Constant(0.3))
  exp = dataclasses.replace(tiny.experiment((stage,)), evaluation=Evaluation(every_steps=40))
  exp = exp.override({"checkpoints.every_steps": 60})
  evaluated = []
  evaluate = lambda variables, step: evaluated.append(step) or {"bbox/AP": step / 100, "bbox/AP75": None}
  train(exp, tmp_path, evaluate=evaluate, log_every=20)
  rows = log.rows(tmp_path)
  assert [(row["step"], row["kind"]) for row in rows] == [
    (20, "train"),
    (40, "train"),
    (40, "eval"),
    (60, "train"),
    (60, "eval"),
  ]
  assert set(rows[0]) == {
    "step",
    "kind",
    "loss",
    "loss/class",
    "loss/size",
    "lr",
    "grad_norm",
    "images_per_s",
    "data_wait",
  }
  assert rows[3]["loss"] < rows[0]["loss"]
  assert rows[2] == {"step": 40, "kind": "eval", "bbox/AP": 0.4, "bbox/AP75": None}
  assert evaluated == [40, 60]
  said = capsys.readouterr().out
  assert "step 20/60 | loss " in said and "images/s" in said and "left" in said
  assert said.count("compiled train step") == 2
  assert list((tmp_path / "tensorboard").iterdir())


def test_stages_follow_each_other(tmp_path, capsys):
  head_only = Sgd(steps=2, rules=(Rule("backbone/.*", frozen=True), Rule(".*")), schedule=Constant(0.1), ema=0.5)
  state = train(tiny.experiment((head_only, Sgd(steps=2, schedule=Constant(0.2)))), tmp_path)
  assert int(state.step) == 4 and state.ema_params is None
  assert [row["lr"] for row in log.rows(tmp_path)] == pytest.approx([0.1, 0.2])
  assert "stage 2 of 2: steps 3 to 4" in capsys.readouterr().out


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_next_stage_starts_from_the_average_which_is_what_was_evaluated(tmp_path, interrupted):
  averaging, still = Sgd(steps=3, schedule=Constant(0.5), ema=0.5), Sgd(steps=1, schedule=Constant(0.0))
  exp = tiny.experiment((averaging, still)).override({"evaluation.every_steps": 3})
  seen = {}

  def evaluate(variables, step):
    if interrupted and step == 3 and not seen:
      seen[3] = jax.device_get(variables)
      raise InterruptedError
    seen[step] = jax.device_get(variables)
    return {"bbox/AP": 0.5}

  if interrupted:
    with pytest.raises(InterruptedError):
      train(exp, tmp_path / "whole", evaluate=evaluate)
  state = train(exp, tmp_path / "whole", evaluate=evaluate)
  alone = train(tiny.experiment((averaging,)), tmp_path / "alone")
  for params in (state.params, seen[3]["params"], seen[4]["params"]):
    jax.tree.map(np.testing.assert_array_equal, params, alone.ema_params)
  assert not np.array_equal(alone.params["head"]["kernel"], alone.ema_params["head"]["kernel"])


def test_a_metric_that_is_not_there_is_told(tmp_path, capsys):
  exp = tiny.experiment().override({"evaluation.keep_best": "bbox/APP"})
  train(exp, tmp_path, evaluate=lambda variables, step: {"bbox/AP": 0.5, "voc/mAP_11pt": 0.5})
  assert (
    "evaluation.keep_best: no metric 'bbox/APP' (nearest: bbox/AP, voc/mAP_11pt); the latest"
    in capsys.readouterr().out
  )


def poisoned(batch):
  """Targets out of range, for which take_along_axis fills in NaN: the loss is not a number."""
  return batch.replace(truth=batch.truth.replace(classes=np.full_like(batch.truth.classes, 99)))


class Poisoned(tiny.Loader):
  """Some steps have a loss that is not a number."""

  steps = (5,)

  def __next__(self):
    batch = super().__next__()
    return poisoned(batch) if self.given in self.steps else batch


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(accumulate):
  stage = Sgd(steps=4, schedule=Constant(0.5), ema=0.5, weight_decay=0.1, accumulate=accumulate)
  model = tiny.model_of(tiny.experiment()).clone(norm=True)
  good = tiny.batch_of(range(8))
  _, before, _, _ = steps(stage, [good], model)
  _, after, metrics, _ = steps(stage, [good, poisoned(good)], model)
  assert (int(after.step), int(after.skipped), int(before.skipped)) == (2, 1, 0)
  assert [row["skipped"] for row in metrics] == [0, 1] and np.isnan(metrics[1]["loss"])
  jax.tree.map(np.testing.assert_array_equal, after.replace(step=0, skipped=0), before.replace(step=0, skipped=0))
  _, again, _, _ = steps(stage, [good, poisoned(good), good], model)
  assert int(again.skipped) == 0 and not np.array_equal(again.batch_stats["normalise"]["mean"], 0)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(again))


def test_after_so_many_in_a_row_nothing_moves_any_more_so_that_the_last_one_can_be_repeated():
  good, bad = tiny.batch_of(range(8)), poisoned(tiny.batch_of(range(8)))
  model = tiny.model_of(tiny.experiment())
  state = create_state(tiny.variables_of(tiny.experiment()), Sgd(steps=9), ONE)
  train_step = make_train_step(model, Sgd(steps=9), ONE, seed=0, num_steps=9, max_skipped=2)
  kept = jax.device_get(state.params)
  for batch, skipped in ((bad, 1), (bad, 2), (good, 3)):
    state, _ = train_step(state, meshes.shard_batch(batch, ONE))
    assert int(state.skipped) == skipped
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), kept)


def test_a_loss_that_is_not_finite_is_told_with_its_images_and_the_training_goes_on(tmp_path, capsys):
  exp = tiny.experiment()
  ids = [next(batches).image_id for batches in [Poisoned(exp.data, exp.seed, 6)] for _ in range(5)][-1]
  train(exp, tmp_path, loader=Poisoned)
  (told,) = [line for line in capsys.readouterr().out.splitlines() if "not finite" in line]
  assert told.startswith("the loss is not finite (") and "loss nan, loss/class nan, loss/size 0.0" in told
  assert told.endswith(f" at step 5; image ids {ids.tolist()}: the step changes nothing")
  rows = log.rows(tmp_path)
  assert all(np.isfinite(row["loss"]) for row in rows)
  assert [row.get("skipped_steps") for row in rows] == [None, None, 1.0]


def test_three_in_a_row_stop_the_training_and_the_last_one_is_repeated(tmp_path, monkeypatch):
  monkeypatch.setattr(Poisoned, "steps", (3, 4, 5))
  exp = tiny.experiment()
  with pytest.raises(
    TrainingError, match=r"the loss is not finite \(.*\) at step 5; image ids .*: 3 in a row"
  ) as caught:
    train(exp, tmp_path, loader=Poisoned)
  assert str(caught.value).endswith(f"; python -m launch.repeat_step --workdir={tmp_path} --step=5 repeats the step")
  step = soundness.kept(tmp_path, 5)
  good = checkpoint.load_run(tmp_path, 3)  # step 3 changed nothing, nor did what came after
  assert good.step == 3 and (step.step, step.stage) == (5, 0)
  lines = soundness.repeat(exp, tiny.model_of(exp), step)
  assert lines[0] == "loss nan" and "loss/class nan" in lines and "parameters: 0 of 3 are not finite" in lines
  assert lines[-8:] == [f"image id {i} alone: loss, loss/class not finite" for i in step.batch.image_id]
  with pytest.raises(FileError, match="no such step was kept; there are 5"):
    soundness.kept(tmp_path, 4)
  with pytest.raises(TrainingError, match="at step 5"):  # resumed from step 3, and two more
    train(exp, tmp_path, loader=Poisoned)


def test_a_gradient_that_is_not_finite_is_told_before_the_loss_is_not():
  values = {"grad_norm": float("inf"), "loss": 1.5}
  assert soundness.fault(values) == "the gradient is not finite (grad_norm inf, loss 1.5)"
  exp = tiny.experiment()
  assert [soundness.limit_of(exp, steps) for steps in (1, 2, 4, 6, 1000)] == [1, 1, 2, 3, 3]


def test_a_training_without_progress_ends_and_does_not_go_on_when_started_again(tmp_path, capsys):
  exp = tiny.experiment().override({"evaluation.every_steps": 1, "evaluation.patience": 2})
  scores = {1: 0.1, 2: None, 3: 0.3, 4: 0.2, 5: 0.3, 6: 0.9}
  evaluate = lambda variables, step: {"bbox/AP": scores[step]}
  assert int(train(exp, tmp_path, evaluate=evaluate).step) == 5
  assert capsys.readouterr().out.endswith("no better bbox/AP in 2 evaluations: the training ends here\n")
  assert int(train(exp, tmp_path, evaluate=evaluate).step) == 5
  assert checkpoint.saved_steps(tmp_path) == [3, 4, 5]  # the best and the last two


def test_validation_losses_are_those_of_the_variables_on_the_other_data():
  model = tiny.model_of(tiny.experiment()).clone(norm=True, dropout=0.0)
  variables = model.init(jax.random.key(0), tiny.batch_of([0]), None, method="losses")
  batches = [tiny.batch_of(range(8)), tiny.batch_of(range(8, 16))]
  found = validation.losses(model, Sgd(steps=1), variables, batches, meshes.data_mesh(8), seed=0)
  assert set(found) == {"loss", "loss/class", "loss/size"}
  # The statistics begin as means of 0 and variances of 1: with them the norm only divides by sqrt(1 + epsilon).
  plain = model.clone(norm=False)
  expected = [plain.apply({"params": variables["params"]}, batch, None, method="losses") for batch in batches]
  np.testing.assert_allclose(found["loss/class"], np.mean([float(each["class"]) for each in expected]), rtol=1e-4)
  one = validation.losses(model, Sgd(steps=1, losses=("size",)), variables, batches, ONE, seed=0)
  assert set(one) == {"loss", "loss/size"}
  np.testing.assert_allclose(one["loss/size"], found["loss/size"], rtol=1e-5)


def test_a_trace_of_some_steps_is_where_tensorboard_finds_it(tmp_path, capsys):
  train(tiny.experiment(), tmp_path, profile=(4, 5))
  assert list((tmp_path / "tensorboard").glob("plugins/profile/*/*.xplane.pb"))
  assert f"the trace of steps up to 5 is in {tmp_path}/tensorboard\n" in capsys.readouterr().out
  with pytest.raises(TrainingError, match="--profile=6:7: the training has the steps 1 to 6 before it"):
    train(tiny.experiment(), tmp_path / "other", profile=(6, 7))


def test_settings_that_do_not_fit(tmp_path):
  exp = tiny.experiment()
  with pytest.raises(TrainingError, match="batch size 6 is not divisible by the number of devices, 8"):
    meshes.check_batch_size(6, meshes.data_mesh(8))
  with pytest.raises(TrainingError, match="9 devices asked for, 8 are there"):
    meshes.data_mesh(9)
  with pytest.raises(TrainingError, match="no stages"):
    train(dataclasses.replace(exp, stages=()), tmp_path)
  with pytest.raises(TrainingError, match="variables that training does not know: cache"):
    create_state({"params": {"w": jnp.ones(1)}, "cache": {}}, Sgd(steps=1), ONE)


class Short(tiny.Loader):
  def __init__(self, data, seed, num_steps):
    super().__init__(data, seed, num_steps - 2)


def test_data_that_ends_too_early_is_an_error(tmp_path):
  with pytest.raises(TrainingError, match="data ended before step 5 of 6"):
    train(tiny.experiment(), tmp_path, loader=Short)


def test_metrics_handed_to_a_checkpoint_do_not_grow_while_it_is_written():
  interval = log.Interval()
  metrics = {"loss": jnp.float32(1.0), "grad_norm": jnp.float32(1.0)}
  interval.add(8, metrics)
  saved = interval.values()
  interval.add(8, metrics)
  assert len(interval.values()) == 2 and len(saved) == 1
