"""Numbers of an experiment that nothing can be done with."""

import pytest
import tiny

from rcnn_jax import experiment as experiments
from rcnn_jax import ranges
from rcnn_jax.experiment import ExperimentError


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_is_within(name):
  ranges.check(experiments.load(name))


@pytest.mark.parametrize(
  "change, message",
  [
    ("data.batch_size=(-1,2)", r"data.batch_size is \(-1, 2\): it must be at least 1"),
    ("data.batch_size=(4,0)", r"data.batch_size is \(4, 0\): it must be at least 1"),
    ("data.canvases=()", "data.canvases is empty: it needs at least one value"),
    ("data.canvases=((0,0),)", r"data.canvases is \(\(0, 0\),\): it must be at least 1"),
    ("data.workers=-1", "data.workers is -1: it must be at least 0"),
    ("data.resize.short_side=(0,)", "data.resize.short_side"),
    ("data.num_proposals=(2000,0)", "data.num_proposals"),
    ("checkpoints.every_steps=0", "checkpoints.every_steps is 0"),
    ("evaluation.every_steps=-5", "evaluation.every_steps is -5"),
    ("evaluation.max_detections=0", "evaluation.max_detections is 0"),
    ("stages.0.steps=-5", "stages.0.steps is -5"),
    ("stages.0.accumulate=0", "stages.0.accumulate is 0"),
    ("seed=-1", "seed is -1: it must be at least 0"),
    ("model.num_classes=0", "model.num_classes is 0"),
    ("model.proposer.num_post_nms=(0,0)", "model.proposer.num_post_nms"),
    ("model.box.max_detections=0", "model.box.max_detections"),
    ("model.heads.mask.pool.output_size=0", "model.heads.mask.pool.output_size"),
  ],
)
def test_what_is_below_is_told_by_its_path(change, message):
  demo = experiments.load("demo").set([change])
  with pytest.raises(ExperimentError, match=f"^{message}"):
    ranges.check(demo)


def test_parts_of_ones_own_are_let_be():
  ranges.check(tiny.experiment())
