"""Every experiment file: it builds, its parameters are as many as published, its programs can be compiled."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export

from launch import flags as launch_flags
from rcnn_jax import experiment as experiments
from rcnn_jax.data.pipeline import example_canvas
from rcnn_jax.experiment import Experiment
from rcnn_jax.models.detector import blank_batch, num_parameters, variable_shapes
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.stages import Sgd
from rcnn_jax.training.step import first_state, make_train_step
from rcnn_jax.types import Batch

NAMES = experiments.names()
# By what stands in the path of the data: the number of their classes. The files may be elsewhere.
NUM_CLASSES = {"bccd": 3, "nuclei": 1, "VOC2007": 20, "coco": 80, "mine": 2, "runs/data": 3}

# Learnable parameters, statistics and frozen norms not counted.
#
# torchvision's are the num_params of its COCO_V1 weights (torchvision 0.29.2). It has a box regression for the
# background, 4 * (1024 + 1) parameters, and a mask, 256 + 1, which are not here and never trained there.
BOX, MASK = 4 * (1024 + 1), 256 + 1
PUBLISHED = {
  # py-faster-rcnn: the layers of models/pascal_voc/VGG16/faster_rcnn_end2end/test.prototxt, added up. It has a box
  # regression for the background too, 4 * (4096 + 1), and two objectness logits for each anchor, 9 * (512 + 1).
  "faster_rcnn_vgg16_voc07": 137_078_239 - 4 * (4096 + 1) - 9 * (512 + 1),
  "torchvision_fasterrcnn_resnet50_fpn": 41_755_286 - BOX,
  "torchvision_fasterrcnn_resnet50_fpn_v2": 43_712_278 - BOX,
  "torchvision_maskrcnn_resnet50_fpn": 44_401_393 - BOX - MASK,
  "torchvision_maskrcnn_resnet50_fpn_v2": 46_359_409 - BOX - MASK,
  "torchvision_keypointrcnn_resnet50_fpn": 59_137_258 - BOX,
  # Detectron2 0.6: the elements of build_model(model_zoo.get_config(...)).parameters(), all of them.
  "detectron2_faster_rcnn_R_50_C4_3x": 33_791_644,
  "detectron2_faster_rcnn_R_50_DC5_3x": 165_581_468,
  "detectron2_faster_rcnn_R_50_FPN_3x": 41_699_936,
  "detectron2_mask_rcnn_R_50_C4_3x": 35_909_612,
  "detectron2_mask_rcnn_R_50_FPN_3x": 44_343_216,
  "detectron2_keypoint_rcnn_R_50_FPN_3x": 59_133_158,
  "detectron2_cascade_mask_rcnn_R_50_FPN_3x": 71_984_926,
}
# Those whose programs are traced within seconds; of the others, in the long tests.
LIGHT = ["demo", "fast_rcnn_squeezenet_bccd", "rcnn_squeezenet_bccd", "sppnet_squeezenet_bccd"]


@functools.cache
def complete(name: str) -> Experiment:
  """An experiment whose model has met its data, or data with as many classes."""
  experiment = experiments.load(name)
  if experiment.model.num_classes is not None:
    return experiment
  source = repr(experiment.data.train)
  return experiment.override({"model.num_classes": next(k for part, k in NUM_CLASSES.items() if part in source)})


def one_image(experiment: Experiment) -> Batch:
  """A batch of one image on the first canvas, with all that the experiment loads."""
  data = experiment.data
  batch = blank_batch(1, example_canvas(data), heads=experiment.model.heads)
  proposals = None
  if data.proposals is not None:
    count = data.num_proposals[0]
    proposals = jax.tree.map(lambda x: jnp.zeros((1, count, *x.shape[2:]), x.dtype), batch.proposals)
  return batch.replace(proposals=proposals)


def programs_of(experiment: Experiment) -> list[tuple]:
  """(jitted function, *shapes) of the train step of each stage of gradient descent, and of detection."""
  model = experiment.model
  variables = variable_shapes(model, example_canvas(experiment.data))
  batch = jax.eval_shape(lambda: one_image(experiment))
  programs = []
  for stage in experiment.stages:
    if isinstance(stage, Sgd):
      step = make_train_step(model, stage, meshes.data_mesh(1), seed=0, num_steps=100)
      programs.append((step, jax.eval_shape(functools.partial(first_state, stage=stage), variables), batch))
  detect = jax.jit(lambda variables, batch: model.apply(variables, batch, method="detect"))
  return [*programs, (detect, variables, batch)]


# Annotations of which device has which part: no code.
LAYOUTS = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}


def foreign(text: str) -> set[str]:
  """What stands in a program (StableHLO) that is not the same for each platform, by the names of the constructs."""
  calls = set(re.findall(r"custom_call @(\w+)", text)) - LAYOUTS
  return calls | set(re.findall(r"\?x\w+|\bf64\b|xf64\b|callback", text))


@pytest.mark.parametrize("name", NAMES)
def test_each_experiment_builds_with_the_published_number_of_parameters(name):
  experiment = complete(name)
  count = num_parameters(experiment.model, example_canvas(experiment.data))
  assert count == PUBLISHED.get(name, count) > 0


def test_all_published_counts_are_held_against_an_experiment():
  assert set(PUBLISHED) <= set(NAMES)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in LIGHT else pytest.mark.long) for n in NAMES])
def test_the_programs_are_one_for_cpu_gpu_and_tpu_static_and_without_calls(name):
  for function, *shapes in programs_of(complete(name)):
    text = export.export(function, platforms=("cpu", "cuda", "tpu"))(*shapes).mlir_module()
    assert foreign(text) == set()


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_the_programs_compile(name):
  for function, *shapes in programs_of(complete(name)):
    assert function.lower(*shapes).compile().memory_analysis().argument_size_in_bytes > 0


def test_the_number_of_parameters_is_told_where_the_number_of_classes_is_known():
  experiment = experiments.load("faster_rcnn_squeezenet_bccd")
  assert "--set=model.num_classes=K" in launch_flags.parameters(experiment)
  assert launch_flags.parameters(complete(experiment.name)) == "parameters: 9,539,980"
