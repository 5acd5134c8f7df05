"""One training, whole: an experiment, its data, the engine and the evaluation brought together in a run directory."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax

from rcnn_jax import ranges
from rcnn_jax.data import loader, pipeline
from rcnn_jax.data.fingerprint import fingerprint, of_file
from rcnn_jax.evaluation import report
from rcnn_jax.evaluation.evaluate import check_categories, evaluate
from rcnn_jax.evaluation.limits import warn_of_few_detections
from rcnn_jax.experiment import Experiment, ExperimentError, override
from rcnn_jax.models import detector
from rcnn_jax.models.proposers import External, ProposalError
from rcnn_jax.models.rcnn_head import RcnnHead
from rcnn_jax.ops import random
from rcnn_jax.training import checkpoint, features, fit, log, loop, moves, preemption, validation, writers
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import TrainingError
from rcnn_jax.training.stages import CopyParameters, FitBoxRegression, ResetParameters, Sgd
from rcnn_jax.training.step import counted


def train(
  experiment: Experiment,
  workdir: str | os.PathLike,
  mesh: jax.sharding.Mesh | None = None,
  init_from: str | None = None,
  skip: str | None = None,
  log_every: int = 20,
  profile: tuple[int, int] | None = None,
  services: tuple[str, ...] = (),
) -> dict[str, float | None]:
  """Trains an experiment in a run directory, evaluates it and writes the report; goes on where one was stopped.

  Args:
    experiment: what is trained.
    workdir: the run directory, made if need be.
    mesh: the devices; by default those that the experiment's own `mesh` names.
    init_from: another run whose parameters are taken: 'DIR', 'DIR@latest' or 'DIR@STEP'.
    skip: a regular expression of the parameters that `init_from` leaves alone.
    log_every: steps between two lines of progress.
    profile: the first and the last step of which a trace is written into DIR/tensorboard.
    services: which get the numbers beside TensorBoard: 'wandb', 'mlflow', 'trackio'.

  Returns:
    The metrics of the last evaluation, as in metrics.json.

  Raises:
    RuntimeError: (one of the project's own) for parts that do not fit, in one line, before anything is written.
    Stopped: after SIGTERM or SIGUSR1, with everything saved; called again, the training goes on.
  """
  writers.check(services)
  ranges.check(experiment)
  options = {"log_every": log_every, "profile": profile, "services": services}
  with preemption.stopping():
    return _train(experiment, str(workdir), mesh or meshes.make(experiment.mesh), init_from, skip, options)


def _train(
  experiment: Experiment,
  workdir: str,
  mesh: jax.sharding.Mesh,
  init_from: str | None,
  skip: str | None,
  options: dict[str, Any],
) -> dict[str, float | None]:
  meshes.check_batch_size(experiment.data.batch_size[0], mesh)
  source, eval_source = experiment.data.train.open(), experiment.data.eval.open()
  check_categories(source.categories, eval_source.categories)
  check_parts(experiment)
  proposals = checked_proposals(experiment, source, eval_source)
  epoch = loader.training_epoch(experiment.data, source)
  warn_of_few_detections(experiment.model, experiment.evaluation, eval_source)
  spans = loop.plan(experiment.stages, epoch.num_steps)
  loop.evaluation_interval(experiment.evaluation, epoch.num_steps)
  fingerprints = {
    "train": fingerprint(source, proposals[0]),
    "eval": fingerprint(eval_source, proposals[1]),
    "init": experiment.init and of_file(os.path.expanduser(experiment.init.path)),
  }
  model = experiment.model.with_data(source.categories, source.keypoints)
  check_model(experiment, model)
  checkpoint.write_experiment(workdir, experiment, source.categories, source.keypoints, fingerprints)
  latest = checkpoint.latest_step(workdir)
  if latest is not None:  # step 0 is what import_weights wrote: to be trained from, where later steps are resumed
    init_from = f"{workdir}@0" if latest == 0 else None
  variables = initial_variables(experiment, model, init_from, skip, pretrained=latest is None)
  loop.run(
    experiment,
    workdir,
    model,
    variables,
    epoch.num_steps,
    functools.partial(batches, experiment, source, epoch),
    evaluate=evaluation(experiment, spans, eval_source, workdir, model, meshes.flat(mesh)),
    fit=fitting(experiment, source, workdir, model),
    mesh=mesh,
    **options,
  )
  if jax.process_index() == 0:
    report.write_report(workdir)
  return log.last_evaluation(workdir)


def check_parts(experiment: Experiment) -> None:
  """Raises ExperimentError, before anything is written, where the parts of an experiment do not go together."""
  model, data = experiment.model, experiment.data
  for head in model.heads:
    if not getattr(data, f"load_{head.field}"):
      raise ExperimentError(
        f"model.heads.{head.key} learns from {head.field}, which are not loaded: set data.load_{head.field}=True"
      )
  asked_for = {"model.cascade": model.cascade, "model.sampler.hard_nms_iou": model.sampler.hard_nms_iou is not None}
  if isinstance(model.box, RcnnHead) and any(asked_for.values()):
    paths = " and ".join(path for path, is_set in asked_for.items() if is_set)
    raise ExperimentError(f"{paths}: needs boxes learned by gradient (BoxHead), which RcnnHead's are not")


def check_model(experiment: Experiment, model: nn.Module) -> None:
  """Raises ModelError or TrainingError, before anything is written, where parts of the model or stages do not fit.

  Nothing is computed: the model is traced.
  """
  canvas = pipeline.example_canvas(experiment.data)
  shapes = detector.variable_shapes(model, canvas)
  check_losses(experiment, model, shapes)
  loop.check(experiment.stages, model, shapes)


def check_losses(experiment: Experiment, model: nn.Module, variables: dict) -> None:
  """Raises TrainingError for a stage that names a loss which the model has not; computes nothing."""
  batch = detector.blank_batch(1, pipeline.example_canvas(experiment.data), heads=model.heads)
  for stage in experiment.stages:
    if isinstance(stage, Sgd) and stage.losses is not None:
      changed = override(model, dict(stage.model))
      losses = functools.partial(changed.apply, method="losses", mutable=["batch_stats"])
      counted(jax.eval_shape(losses, variables, batch, jax.random.key(0))[0], stage.losses)


def checked_proposals(experiment: Experiment, source: Any, eval_source: Any) -> tuple[Any, Any]:
  """The opened proposals for training and for evaluation, None where the model makes its own.

  Raises DataError or ProposalError, before anything is written, unless the model has the proposals it needs.
  """
  if experiment.data.proposals is None and isinstance(experiment.model.proposer, External):
    raise ProposalError
  opened = enumerate((source, eval_source))
  return tuple(loader.open_proposals(experiment.data, data_set, which) for which, data_set in opened)


def initial_variables(
  experiment: Experiment, model: nn.Module, init_from: str | None, skip: str | None, pretrained: bool
) -> dict:
  """The variables that a training starts from: random, then the experiment's own `init`, then another run's."""
  key = random.named(jax.random.key(experiment.seed), "init")
  variables = detector.init_variables(model, key, pipeline.example_canvas(experiment.data))
  if pretrained and experiment.init is not None:
    variables = experiment.init.load(variables)
  if init_from:
    other = checkpoint.load_run(*folder_and_checkpoint(init_from))
    try:
      variables = checkpoint.take_params(variables, other.variables, skip)
    except checkpoint.CheckpointError as error:
      raise checkpoint.CheckpointError(f"{init_from}: {error} (--init_from_skip=REGEX leaves some out)") from error
  return variables


def folder_and_checkpoint(text: str) -> tuple[str, str]:
  """('DIR', 'STEP') of 'DIR@STEP', and ('DIR', 'best') of 'DIR', in which there may be an @ as well."""
  folder, at, which = text.rpartition("@")
  named = at and os.path.isdir(folder) and not os.path.isdir(text)
  return (folder, which) if named else (text, "best")


def batches(experiment: Experiment, source: Any, epoch: loader.Epoch, num_steps: int) -> Iterator[Any]:
  """This process' share of the training batches."""
  return iter(
    loader.train_loader(
      experiment.data,
      source,
      seed=experiment.seed,
      num_steps=num_steps,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      epoch=epoch,
    )
  )


def fitting(experiment: Experiment, source: Any, workdir: str, model: nn.Module) -> loop.CarryOut:
  """The function that carries out moves of parameters, and the fits, with their features in DIR/features."""

  def carry_out(stage: Any, variables: dict, log_line: Callable[[str], None]) -> tuple[dict, dict[str, float]]:
    if isinstance(stage, (CopyParameters, ResetParameters)):
      return moved(stage, variables, log_line)
    pairs = [each.min_iou for each in experiment.stages if isinstance(each, FitBoxRegression)]
    data = experiment.data
    if data.proposals is None:
      raise TrainingError(f"{type(stage).__name__} needs proposals: set data.proposals")
    # The training images as evaluation would see them: each once, none changed.
    plain = dataclasses.replace(
      data,
      eval=data.train,
      proposals=(data.proposals[0], data.proposals[0]),
      num_proposals=(data.num_proposals[0], data.num_proposals[0]),
      load_masks=False,
      load_keypoints=False,
    )
    batches = loader.eval_batches(plain, source)
    regions = features.Regions(batches.start, len(batches), min(pairs, default=1.0))
    return fit.fit(stage, model, variables, regions, pathlib.Path(workdir, "features"), log_line)

  def moved(stage: Any, variables: dict, log_line: Callable[[str], None]) -> tuple[dict, dict[str, float]]:
    if isinstance(stage, CopyParameters):
      variables, count = moves.copy(stage, variables)
      log_line(f"{stage.target}: {count:,} parameters copied from {stage.source}")
    else:
      initial = initial_variables(experiment, model, None, None, pretrained=True)
      variables, count = moves.reset(stage, variables, initial)
      log_line(f"{stage.pattern}: {count:,} parameters begin anew")
    return variables, {"parameters": count}

  return carry_out


def evaluation(
  experiment: Experiment,
  spans: tuple[loop.Span, ...],
  source: Any,
  workdir: str,
  model: nn.Module,
  mesh: jax.sharding.Mesh,
) -> loop.Evaluate:
  """The function that evaluates some variables on the opened evaluation data, into DIR/eval/STEP.

  With `evaluation.losses` it also gives the losses there, of the stage of the step if that is gradient descent.
  """

  def measure(variables: dict, step: int) -> dict[str, float | None]:
    outdir = os.path.join(workdir, "eval", str(step))
    metrics = evaluate(model, variables, experiment.data, source, outdir, experiment.evaluation, mesh)
    stage = next(span.stage for span in spans if step <= span.last)
    if not (experiment.evaluation.losses and isinstance(stage, Sgd)):
      return metrics
    size = -(-experiment.data.batch_size[1] // mesh.size) * mesh.size
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    read = loader.eval_batches(experiment.data, source, batch_size=size, **processes)
    return metrics | validation.losses(model, stage, variables, read, mesh, experiment.seed)

  return measure
