"""Faster R-CNN's experiments with VGG-16: as many parameters as published, and what each stage trains."""

from __future__ import annotations

import functools

import jax
import pytest

from rcnn_jax import experiment as experiments
from rcnn_jax.models.detector import blank_batch, variable_shapes
from rcnn_jax.training import optim
from rcnn_jax.training.stages import CopyParameters, ResetParameters, Sgd
from rcnn_jax.training.step import counted

CANVAS = (64, 96)  # parameters depend on no canvas
JOINT, ALTERNATING = "faster_rcnn_vgg16_voc07", "faster_rcnn_vgg16_voc07_alternating"


def layer(inputs, outputs, kernel=1):
  return kernel**2 * inputs * outputs + outputs


# Layer by layer as in the paper: conv1_1 to conv5_3, fc6 on 7 x 7 cells, fc7.
CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
CONVOLUTIONS = sum(layer(*pair, kernel=3) for pair in zip(CHANNELS, CHANNELS[1:]))
FULLY_CONNECTED = layer(49 * 512, 4096) + layer(4096, 4096)
RPN = layer(512, 512, kernel=3) + layer(512, 9) + layer(512, 9 * 4)
OURS = CONVOLUTIONS + FULLY_CONNECTED + RPN + layer(4096, 21) + layer(4096, 20 * 4)
# py-faster-rcnn: a softmax over two for each of the nine anchors, and box deltas of the background as well.
PUBLISHED = OURS - layer(512, 9) + layer(512, 9 * 2) - layer(4096, 20 * 4) + layer(4096, 21 * 4)


@functools.cache
def model_and_variables(name):
  model = experiments.load(name).model.clone(num_classes=20)
  return model, variable_shapes(model, CANVAS)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameters_are_as_many_as_py_faster_rcnns():
  assert (OURS, PUBLISHED) == (137_057_234, 137_078_239)
  assert size(model_and_variables(JOINT)[1]) == OURS
  assert size(model_and_variables(ALTERNATING)[1]) == OURS + CONVOLUTIONS + RPN == OURS + 17_097_581


def trained(stage, params):
  """The parts of the model that a stage trains, and whether it trains conv1 to conv5."""
  rules = optim.resolve(stage.rules, params)
  paths = [path for path, rule in rules.items() if not rule.frozen]
  assert all(rules[path].lr == (2 if path.endswith("bias") else 1) for path in paths)
  return {path.split("/")[1] if path.startswith("proposer") else path.split("/")[0] for path in paths}, {
    path.split("/")[1][:5] for path in paths if path.startswith("backbone")
  }


def test_the_four_steps_train_what_the_paper_says():
  stages, params = experiments.load(ALTERNATING).stages, model_and_variables(ALTERNATING)[1]["params"]
  deep = {"conv3", "conv4", "conv5"}
  steps = [stage for stage in stages if isinstance(stage, Sgd)]
  assert [trained(stage, params) for stage in steps] == [
    ({"backbone", "rpn"}, deep),
    ({"backbone", "trunk", "box"}, deep),
    ({"rpn"}, set()),
    ({"trunk", "box"}, set()),
  ]
  assert [type(stage) for stage in stages[1:4]] == [CopyParameters, CopyParameters, ResetParameters]


@pytest.mark.parametrize("name, index", [(JOINT, 0), (ALTERNATING, 0), (ALTERNATING, 4), (ALTERNATING, 6)])
def test_each_stage_has_its_losses(name, index):
  stage = experiments.load(name).stages[index]
  model, variables = model_and_variables(name)
  model = experiments.override(model, dict(stage.model))
  losses = lambda variables, key: model.apply(variables, blank_batch(1, CANVAS), key, method="losses")
  terms = counted(jax.eval_shape(losses, variables, jax.random.key(0)), stage.losses)
  assert len(terms) == (4 if name == JOINT else 2) and all(term.shape == () for term in terms.values())
