"""The training loop: stages in order, logging, checkpoints, periodic evaluation, resuming and stopping.

The loop knows nothing of data sets or metrics: it is handed the model, the variables, an iterator of batches and a
function that evaluates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from rcnn_jax.experiment import Evaluation, Experiment, Sharding, flatten, override
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training import moves, preemption, soundness
from rcnn_jax.training.checkpoint import CheckpointError, CheckpointStore, DamagedError
from rcnn_jax.training.log import Interval, RunLog, clock, progress_line, rows
from rcnn_jax.training.optim import TrainingError, resolve
from rcnn_jax.training.preemption import Stopped
from rcnn_jax.training.profile import Trace
from rcnn_jax.training.stages import CopyParameters, Fit, ResetParameters, Sgd, Stage, descent
from rcnn_jax.training.step import TrainState, create_state, make_train_step, partition

Evaluate = Callable[[dict, int], dict[str, float | None]]  # (variables, step) -> flat metrics
# (stage, variables, a function that logs a line of progress) -> (variables, numbers for the log)
CarryOut = Callable[[Stage, dict, Callable[[str], None]], tuple[dict, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Span:
  """A stage with its place in the training: the steps first + 1 .. last."""

  stage: Stage
  first: int
  last: int


def plan(stages: tuple[Stage, ...], steps_per_epoch: int) -> tuple[Span, ...]:
  """The stages laid end to end; `steps_per_epoch` is the loader's."""
  if not stages:
    raise TrainingError("the experiment has no stages to train")
  spans, first = [], 0
  for stage in stages:
    last = first + stage.num_steps(steps_per_epoch)
    spans.append(Span(stage, first, last))
    first = last
  return tuple(spans)


def check(stages: tuple[Stage, ...], model: nn.Module, variables: dict) -> None:
  """Raises TrainingError or ExperimentError where a stage does not fit the model, before the first of them begins."""
  for stage in stages:
    if isinstance(stage, Sgd):
      resolve(stage.rules, variables["params"])
      override(model, dict(stage.model))
    elif isinstance(stage, CopyParameters):
      moves.copy(stage, variables)
    elif isinstance(stage, ResetParameters):
      moves.reset(stage, variables, variables)


def run(
  experiment: Experiment,
  workdir: str,
  model: nn.Module,
  variables: dict,
  steps_per_epoch: int,
  loader: Callable[[int], Iterator[Any]],
  *,
  evaluate: Evaluate | None = None,
  fit: CarryOut | None = None,
  mesh: Mesh | None = None,
  log_every: int = 20,
  profile: tuple[int, int] | None = None,
  services: tuple[str, ...] = (),
) -> TrainState:
  """Trains to the end of the last stage, from the last checkpoint in `workdir` where there is one.

  Args:
    experiment: the stages, the seed, the batch size, when to save and to evaluate.
    workdir: a run directory that holds this experiment (checkpoint.write_experiment).
    model: the experiment's model, complete with what its data determine.
    variables: where a new training starts; a resumed one takes only their shapes.
    steps_per_epoch: of the loader, which everything that is given in epochs is measured by.
    loader: number of steps -> iterator of this process' numpy batches, with get_state(), set_state(), close().
    evaluate: called with the variables and the step every `evaluation.every_steps`, after the last step, and before
      and after each fit.
    fit: carries out the stages that are no gradient descent.
    mesh: the devices; by default those that the experiment's own `mesh` names.
    log_every: steps between two rows of metrics.jsonl.
    profile: the first and the last step of which a trace is written, for TensorBoard or xprof.
    services: names of writers.SERVICES, which get the numbers too.

  Returns:
    The state after the last step.

  Raises:
    TrainingError: for settings that do not fit, and for losses or gradients that are not finite, several in a row.
    Stopped: after SIGTERM or SIGUSR1, with a checkpoint saved.
  """
  mesh = mesh or meshes.make(experiment.mesh)
  meshes.check_batch_size(experiment.data.batch_size[0], mesh)
  spans = plan(experiment.stages, steps_per_epoch)
  evaluate_every = evaluation_interval(experiment.evaluation, steps_per_epoch)
  check(experiment.stages, model, variables)
  with contextlib.ExitStack() as stack:
    store = CheckpointStore(
      workdir, keep_last=experiment.checkpoints.keep_last, metric=experiment.evaluation.keep_best
    )
    stack.callback(store.close)
    resumed = _resumed(store, spans, variables, mesh, experiment.mesh.rules)
    runlog = RunLog(workdir, resumed.step, services, flatten(experiment))
    stack.callback(runlog.close)
    trace = Trace(profile, workdir, resumed.step, spans[-1].last)
    stack.callback(trace.close)
    notices = stack.enter_context(preemption.noting())
    batches = loader(spans[-1].last)
    stack.callback(batches.close)
    trainer = _Trainer(
      experiment,
      str(workdir),
      model,
      spans,
      batches,
      mesh,
      store,
      runlog,
      evaluate,
      evaluate_every,
      fit,
      notices,
      log_every,
      trace,
    )
    return trainer.run(resumed, rows(workdir))


def evaluation_interval(evaluation: Evaluation, steps_per_epoch: int) -> int | None:
  """The steps from one evaluation to the next; None where only the last step is evaluated.

  Raises:
    TrainingError: the interval is given twice, or it has no step.
  """
  if evaluation.every_steps is not None and evaluation.every_epochs is not None:
    raise TrainingError("evaluation.every_steps and evaluation.every_epochs are both given: set one of them to None")
  every = evaluation.every_steps
  if evaluation.every_epochs is not None:
    every = max(1, round(evaluation.every_epochs * steps_per_epoch))
  if every is not None and every <= 0:
    raise TrainingError(f"evaluation.every_steps is {every}: it must be at least 1, or None")
  return every


@dataclasses.dataclass(frozen=True)
class _Resumed:
  """Where a training goes on."""

  step: int  # 0 at the beginning
  state: TrainState
  loader: Any = None  # what the loader's state was
  unlogged: list[dict[str, float]] = dataclasses.field(default_factory=list)
  notes: tuple[str, ...] = ()  # on checkpoints that are damaged


def _resumed(
  store: CheckpointStore, spans: tuple[Span, ...], variables: dict, mesh: Mesh, rules: tuple[Sharding, ...]
) -> _Resumed:
  """The newest checkpoint that is whole; damaged ones are put aside once an older one is found to be whole.

  Raises:
    TrainingError: the newest checkpoint is beyond the end of the last stage.
    CheckpointError: there are checkpoints, and none is whole.
  """
  steps, damaged = [step for step in reversed(store.steps()) if step > 0], {}
  if steps and steps[0] > spans[-1].last:
    raise TrainingError(f"the run is at step {steps[0]} and ends at step {spans[-1].last}: has its data set shrunk?")
  for step in steps:
    current = next(span for span in spans if step <= span.last)
    template = create_state(variables, descent(current.stage), mesh, step, rules)
    try:
      state, loader, unlogged = store.restore(step, template)
    except DamagedError as error:
      damaged[step] = error
      continue
    notes = tuple(f"{error}; put aside into {store.put_aside(step)}" for step, error in damaged.items())
    return _Resumed(step, state, loader, unlogged, notes)
  if damaged:
    raise CheckpointError(f"{damaged[steps[0]]}; no older checkpoint is whole: to begin anew, move checkpoints away")
  return _Resumed(0, create_state(variables, descent(spans[0].stage), mesh, 0, rules))


@dataclasses.dataclass
class _Trainer:
  experiment: Experiment
  workdir: str
  model: nn.Module
  spans: tuple[Span, ...]
  batches: Iterator[Any]
  mesh: Mesh
  store: CheckpointStore
  log: RunLog
  evaluate: Evaluate | None
  evaluate_every: int | None  # steps
  fit: CarryOut | None
  notices: list[str]  # the name of a signal that has told the training to stop
  log_every: int
  trace: Trace
  scores: list[float | None] = dataclasses.field(default_factory=list)  # of each evaluation so far

  @property
  def total(self) -> int:
    return self.spans[-1].last

  @functools.cached_property
  def _milestones(self) -> set[int]:
    """Where a fit begins or ends: the steps between which a comparison shows what it brought."""
    fits = [span for span in self.spans if isinstance(span.stage, Fit)]
    return {step for span in fits for step in (span.first, span.last)} - {0}

  def run(self, resumed: _Resumed, past_rows: list[dict]) -> TrainState:
    """Trains to the end; `past_rows` say whether an evaluation due where it goes on was finished."""
    start, state, unlogged = resumed.step, resumed.state, resumed.unlogged
    best = self.experiment.evaluation.keep_best
    self.scores += [row.get(best) for row in past_rows if row["kind"] == "eval" and row["step"] <= start]
    for note in resumed.notes:
      self.log.line(note)
    if start:
      self.batches.set_state(resumed.loader)
      self.log.line(f"resuming at step {start} of {self.total}")
      if not any(row["step"] == start and row["kind"] == "eval" for row in past_rows):
        self._evaluate_if_due(start, state)
    for span in self.spans:
      if start < span.last and not self._out_of_patience():
        if start == span.first and start > 0:
          state = self._next_state(state.variables(), span.stage, start)
        if isinstance(span.stage, Sgd):
          state = self._train(state, span, start, Interval(unlogged))
        else:
          state = self._fit(state, span)
        start, unlogged = span.last, []
    if self._out_of_patience():
      self.log.line(f"no better {best} in {self.experiment.evaluation.patience} evaluations: the training ends here")
    return state

  def _next_state(self, variables: dict, stage: Stage, step: int) -> TrainState:
    """The state at the beginning of a stage."""
    whole = variables if jax.process_count() == 1 else meshes.copied(variables, self.mesh)
    return create_state(whole, descent(stage), self.mesh, step, self.experiment.mesh.rules)

  def _train(self, state: TrainState, span: Span, start: int, interval: Interval) -> TrainState:
    """The steps start + 1 .. span.last; `interval` is what the next row of the log sums up."""
    limit = soundness.limit_of(self.experiment, span.last - span.first)
    train_step = make_train_step(
      self.model,
      span.stage,
      self.mesh,
      seed=self.experiment.seed,
      num_steps=span.last - span.first,
      first_step=span.first,
      max_skipped=limit,
      rules=self.experiment.mesh.rules,
      shared=True,
    )
    batch_size = self.experiment.data.batch_size[0]
    self._announce(state, span)
    watch = soundness.Watch(limit, int(state.skipped), self.log.line)
    for step in range(start + 1, span.last + 1):
      self.trace.begin(step)
      batch = self._next_batch(interval, step)
      state, metrics = self._dispatch(train_step, state, batch, interval)
      interval.add(batch_size, metrics)
      stopping = bool(self.notices) or self.store.reached_preemption(step)
      logging, saving = step % self.log_every == 0 or step == span.last, stopping or self._save_due(step)
      with self._keeping(state, span):
        watch.add(step, batch, metrics)
        if logging or saving:
          watch.flush()
      if self.trace.end(step, metrics):
        self.log.line(f"the trace of steps up to {step} is in {self.workdir}/tensorboard")
      if logging:
        values = interval.summary()
        self.log.write(step, "train", values)
        self.log.line(progress_line(step, self.total, values, batch_size))
        interval = Interval()
      if saving:
        began = time.perf_counter()
        self.store.save(step, state, self.batches.get_state(), interval.values())
        if stopping and (step < self.total or self._evaluation_due(step)):
          raise Stopped(self._stopped(step))
        self._evaluate_if_due(step, state)
        interval.exclude(time.perf_counter() - began)
        if self._out_of_patience():
          break
    return state

  def _out_of_patience(self) -> bool:
    """Whether the last evaluations have all brought no new best one."""
    patience, scores = self.experiment.evaluation.patience, [-math.inf if s is None else s for s in self.scores]
    return patience is not None and len(scores) > 0 and len(scores) - 1 - scores.index(max(scores)) >= patience

  @contextlib.contextmanager
  def _keeping(self, state: TrainState, span: Span) -> Iterator[None]:
    """Within, a step that ends the training because it is not finite is kept, to be repeated."""
    try:
      yield
    except soundness.NotFinite as error:
      soundness.keep(self.workdir, error, self.spans.index(span), state)
      again = f"python -m launch.repeat_step --workdir={self.workdir} --step={error.step}"
      raise TrainingError(f"{error}; {again} repeats the step") from error

  def _fit(self, state: TrainState, span: Span) -> TrainState:
    """A stage of one step: what it fits is saved, logged and evaluated."""
    if self.fit is None or jax.process_count() > 1:
      raise TrainingError(f"{type(span.stage).__name__} runs in a single process, under launch.train")
    self.log.line(f"stage {self.spans.index(span) + 1} of {len(self.spans)}: {type(span.stage).__name__}")
    with self._interruptible(span.first):
      variables, numbers = self.fit(span.stage, jax.device_get(state.variables()), self.log.line)
    state = self._next_state(variables, span.stage, span.last)
    self.log.write(span.last, "fit", numbers)
    self.store.save(span.last, state, self.batches.get_state(), [])
    self._evaluate_if_due(span.last, state)
    return state

  @contextlib.contextmanager
  def _interruptible(self, step: int) -> Iterator[None]:
    """Within, what is saved of `step` is all that there is to save: the training can stop at once."""
    if self.notices:
      raise Stopped(self._stopped(step))
    with preemption.stopping():
      yield

  def _stopped(self, step: int) -> str:
    by = "".join(self.notices) or "SIGTERM"
    return f"stopped by {by} at step {step} of {self.total}; saved: start again to go on from there"

  def _announce(self, state: TrainState, span: Span) -> None:
    trainable, frozen = partition(state.params, resolve(span.stage.rules, state.params))
    moving, still = (sum(leaf.size for leaf in part.values()) for part in (trainable, frozen))
    self.log.line(
      f"stage {self.spans.index(span) + 1} of {len(self.spans)}: steps {span.first + 1} to {span.last}, "
      f"{moving:,} parameters trained, {still:,} frozen, {self.mesh.size} device(s)"
    )

  def _next_batch(self, interval: Interval, step: int) -> Any:
    began = time.perf_counter()
    try:
      batch = next(self.batches)
    except StopIteration:
      raise TrainingError(f"the data ended before step {step} of {self.total}") from None
    interval.wait_for_data(time.perf_counter() - began)
    return batch

  def _dispatch(self, train_step, state: TrainState, batch: Any, interval: Interval) -> tuple[TrainState, dict]:
    """Starts a step on the devices; says so when it had to be compiled first."""
    began, programs = time.perf_counter(), train_step._cache_size()
    state, metrics = train_step(state, meshes.shard_batch(batch, self.mesh))
    if train_step._cache_size() > programs:
      seconds = time.perf_counter() - began
      interval.exclude(seconds)
      canvas = "x".join(str(side) for side in batch.image.shape[1:3])
      self.log.line(f"compiled train step {programs + 1} for canvas {canvas} in {clock(seconds)}")
    return state, metrics

  def _save_due(self, step: int) -> bool:
    every = self.experiment.checkpoints.every_steps
    return step % every == 0 or step == self.total or step in self._milestones or self._evaluation_due(step)

  def _evaluation_due(self, step: int) -> bool:
    every = self.evaluate_every
    due = step == self.total or step in self._milestones or (every is not None and step % every == 0)
    return self.evaluate is not None and due

  def _evaluate_if_due(self, step: int, state: TrainState) -> None:
    """Evaluates after the checkpoint is under way, so that a training killed meanwhile loses no step."""
    if not self._evaluation_due(step):
      return
    began = time.perf_counter()
    with self._interruptible(step):
      metrics = self.evaluate(meshes.copied(state.variables(), self.mesh), step)
    self.log.write(step, "eval", metrics)
    self.scores.append(metrics.get(self.experiment.evaluation.keep_best))
    best = self.experiment.evaluation.keep_best
    score = "none" if metrics.get(best) is None else f"{metrics[best]:.4f}"
    self.log.line(f"evaluated step {step} in {clock(time.perf_counter() - began)}: {best} {score}")
    if best not in metrics:
      near = ", ".join(difflib.get_close_matches(best, metrics, n=3, cutoff=0.4))
      self.log.line(
        f"evaluation.keep_best: no metric {best!r} (nearest: {near}); the latest checkpoint is taken for best"
      )
