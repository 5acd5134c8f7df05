"""Whether as many detections are given and counted as there are objects to be found."""

from __future__ import annotations

import logging

import flax.linen as nn
import numpy as np

from rcnn_jax.data.source import Source, object_faults, overview
from rcnn_jax.experiment import Evaluation

logger = logging.getLogger(__name__)


def warn_of_few_detections(model: nn.Module, settings: Evaluation, source: Source) -> None:
  """Logs one line where images have more objects than detections of an image are given, or counted.

  The model gives so many of an image, COCO's metrics count so many of an image and class; crowds and faulty objects
  are none to be found.

  Args:
    model: whose box head may have `max_detections`.
    settings: whose `max_detections` COCO's metrics count.
    source: the evaluation data, opened.
  """
  given, counted = getattr(getattr(model, "box", None), "max_detections", None), settings.max_detections
  found = overview(source, masks=False).num_trainable
  most = int(found.max(initial=0))
  crowded = np.flatnonzero(found > counted).tolist()  # of a class there are at most as many as of all
  of_class = max((_most_of_a_class(source, index) for index in crowded), default=0)
  few = []
  if given is not None and most > given:
    few.append(f"at most {given} detections are given (model.box.max_detections)")
  if of_class > counted:
    few.append(f"at most {counted} of a class are counted (evaluation.max_detections)")
  if few:
    logger.warning("images have up to %d objects, and %s: AP and AR cannot reach 1", most, ", ".join(few))


def _most_of_a_class(source: Source, index: int) -> int:
  annotations = source.annotations(index, masks=False)
  found = ~annotations.crowd
  found[list(object_faults(annotations))] = False
  return int(np.bincount(annotations.classes[found]).max(initial=0))
