"""Makes a run directory from the weights of another library's detector: it evaluates, predicts and fine-tunes.

    python -m launch.import_weights --weights=FILE --experiment=NAME_OR_FILE --workdir=DIR [--source=detectron2]

FILE is what torch.save wrote (.pth, .pt; PyTorch is not needed, and no code in it is run), Detectron2's .pkl, or
.safetensors. Every parameter of either side must have its counterpart of the same shape. The classes are those of the
experiment's evaluation data where these are at hand, else the file's own labels.

No file holds the epsilon of its batch norms. Where something else in it tells that, the run's experiment gets it, and
a line says so; where nothing does, a warning asks whether the experiment's is right (--set=...norm_epsilon=1e-5).
"""

from __future__ import annotations

import logging
import os
import pathlib
import shutil
from collections.abc import Collection
from typing import Any

import jax
from absl import flags

from launch import flags as launch_flags
from rcnn_jax import experiment as experiments
from rcnn_jax.data import pipeline
from rcnn_jax.data.errors import DataError
from rcnn_jax.experiment import Experiment
from rcnn_jax.models import detector
from rcnn_jax.training import checkpoint
from rcnn_jax.weights import detectron2, files, labels, norms, torchvision
from rcnn_jax.weights.errors import WeightsError
from rcnn_jax.weights.library import Library, Tensors

FLAGS = flags.FLAGS
LOG = logging.getLogger("rcnn_jax")
LIBRARIES = {"torchvision": torchvision.LIBRARY, "detectron2": detectron2.LIBRARY}


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_experiment()
  flags.DEFINE_enum(
    "source", None, list(LIBRARIES), "The detector's library; without it, the names in the file tell."
  )
  launch_flags.define_path("weights", "The file: .pth, .pt, .pkl or .safetensors.", required=True)
  launch_flags.define_path("workdir", "The run directory to be made; it must be new or empty.", required=True)
  flags.DEFINE_string("skip", None, "Regular expression of parameters to leave random, e.g. '(box|mask)/.*'.")


def main(argv: list[str]) -> None:
  """Imports, and says what has become of what."""
  del argv
  library = LIBRARIES.get(FLAGS.source)
  chosen = {assignment.partition("=")[0].strip() for assignment in FLAGS.set}
  experiment, workdir = launch_flags.chosen_experiment(), pathlib.Path(FLAGS.workdir)
  print(import_run(experiment, FLAGS.weights, workdir, FLAGS.skip, library, chosen))


def import_run(
  experiment: Experiment,
  weights: str,
  workdir: pathlib.Path,
  skip: str | None = None,
  library: Library | None = None,
  chosen: Collection[str] = (),
) -> str:
  """Makes `workdir` a run of the experiment with the weights of a file; returns what is to be said of it, in lines.

  Where the library is not given, the names in the file tell it. `chosen` are the paths of the experiment whose values
  stay, whatever the file tells.

  Raises:
    WeightsError: the file or something in it does not fit, or `workdir` is not empty; nothing has been written.
  """
  if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
    raise WeightsError(f"{workdir} is there already and not empty")
  tensors = files.read(weights)
  try:
    library = library or library_of(tensors)
    experiment, remark = with_epsilon(experiment, library, tensors, weights, chosen)
    categories, keypoints, origin = classes(experiment, library.num_classes(tensors))
    model = experiment.model.with_data(categories, keypoints)
    variables = imported(experiment, model, tensors, skip, library)
  except WeightsError as error:
    raise WeightsError(f"{weights}: {error}") from error
  write(workdir, experiment, categories, keypoints, variables)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables))
  return f"{remark}{count:,} numbers imported into {workdir}; {len(categories)} classes, {origin}"


def with_epsilon(
  experiment: Experiment, library: Library, tensors: Tensors, weights: str, chosen: Collection[str]
) -> tuple[Experiment, str]:
  """(the experiment with the epsilon of the file's batch norms, a line that says what has changed or '').

  Warns where the file does not tell the epsilon and the experiment's is that of published weights alone.
  """
  own = {path: value for path, value in experiments.flatten(experiment).items() if path.endswith(".norm_epsilon")}
  own = {path: value for path, value in own.items() if path.startswith("model.backbone.") and path not in chosen}
  differing = [path for path, value in own.items() if value != norms.EPSILON]
  if not own:
    return experiment, ""
  implied = norms.implied_epsilon(library, tensors, weights)
  if implied is None:
    for path in differing:
      LOG.warning(
        "%s: nothing tells the epsilon of its batch norms. %s stays %s, that of torchvision's published weights and "
        "of what was fine-tuned from them; is it a detector built without them, import it with --set=%s=%s",
        *(weights, path, own[path], path, norms.EPSILON),
      )
    return experiment, ""
  epsilon, sign = implied
  changes = {path: epsilon for path, value in own.items() if value != epsilon}
  remark = "".join(f"{path} = {epsilon} instead of {own[path]}: the file holds {sign}\n" for path in changes)
  return experiment.override(changes), remark


def library_of(tensors: Tensors) -> Library:
  """The library whose names these are; raises WeightsError where they are nobody's."""
  for library in LIBRARIES.values():
    if any(name.startswith(library.mark) for name in tensors):
      return library
  marks = " or ".join(f"{library.title}'s ({library.mark}*)" for library in LIBRARIES.values())
  raise WeightsError(f"no detector of {marks}")


def classes(experiment: Experiment, num_labels: int) -> tuple[tuple[Any, ...], Any | None, str]:
  """(categories, keypoints, where they are from): of the data where these can be opened, else the source's labels.

  Args:
    experiment: names the evaluation data; where these are not at hand, its `num_classes` counts, if it is set.
    num_labels: how many classes the source's head has, without the background.
  """
  try:
    source = experiment.data.eval.open()
    return source.categories, source.keypoints, f"those of {type(experiment.data.eval).__name__} (data.eval)"
  except (DataError, OSError):
    number = experiment.model.num_classes or num_labels
    keypoints = labels.joints(experiment.model)
    return labels.categories(number, keypoints), keypoints, "the source's own labels (no data at hand)"


def imported(
  experiment: Experiment, model: detector.Detector, tensors: Tensors, skip: str | None, library: Library
) -> dict:
  """The variables of the model with the values of the tensors; raises WeightsError for a misfit."""
  canvas = pipeline.example_canvas(experiment.data)
  if skip:  # what is left out stays as it is drawn
    template = detector.init_variables(model, jax.random.key(experiment.seed), canvas)
  else:
    template = detector.variable_shapes(model, canvas)
  try:
    return library.load(tensors, template, model, skip)
  except WeightsError as error:
    hint = " (--skip='(box|mask)/.*' leaves heads of other classes out)"
    raise WeightsError(f"{error}{hint if '_predictor' in str(error) else ''}") from error


def write(workdir: pathlib.Path, experiment: Experiment, categories: tuple, keypoints: Any, variables: dict) -> None:
  """Makes the run directory, whole or not at all: it is written beside, then given its name."""
  partial = workdir.absolute().with_name(f".{workdir.absolute().name}.partial")
  partial.parent.mkdir(parents=True, exist_ok=True)
  shutil.rmtree(partial, ignore_errors=True)
  try:
    checkpoint.write_experiment(str(partial), experiment, categories, keypoints)
    checkpoint.save_variables(str(partial), variables)
    os.replace(partial, workdir)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
  launch_flags.run(main, define_flags)
