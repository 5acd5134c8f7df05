"""`Detector.precision` reaches every product of the programs, and the fits' products are always float32's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.lax import Precision

from rcnn_jax.models.heads import KeypointHead, MaskHead
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.rcnn_head import Ridge, Svms
from rcnn_jax.training import svm
from rcnn_jax.types import Proposals
from tests.small_detector import RCNN, scene_batch, small_detector

PRODUCTS = ("dot_general", "conv_general_dilated")
KEY = jax.random.key(0)


def precisions(jaxpr) -> list:
  """Those of all products of a program, of the programs within it too; a pair of them for each product."""
  found, is_program = [], lambda leaf: isinstance(leaf, (core.Jaxpr, core.ClosedJaxpr))
  for equation in jaxpr.eqns:
    if equation.primitive.name in PRODUCTS:
      found.append(equation.params["precision"])
    for value in jax.tree.leaves(equation.params, is_leaf=is_program):
      found += precisions(getattr(value, "jaxpr", value)) if is_program(value) else []
  return found


def full_batch():
  """Two scenes with masks, keypoints and proposals."""
  batch = scene_batch(0)
  masks, joints = np.ones((2, 6, 112, 112), np.uint8), np.ones((2, 6, 2, 3), np.float32)
  given = Proposals(batch.truth.boxes, np.ones((2, 6), np.float32), batch.truth.valid)
  return batch.replace(truth=batch.truth.replace(masks=masks, keypoints=joints), proposals=given)


POOL = RoiAlign(output_size=3)
MODELS = {
  "mask_and_keypoints": small_detector(
    heads=(MaskHead(POOL, 1, 8), KeypointHead(POOL, 1, 8, num_keypoints=2)), roi_chunk=8
  ),
  "rcnn": RCNN,
}


def of_a_training_step(model) -> list:
  """The precisions of the products of the losses and their gradients."""
  batch = full_batch()
  params = jax.eval_shape(lambda: model.init(KEY, batch, method="detect"))["params"]
  total = lambda params: sum(model.apply({"params": params}, batch, KEY, method="losses").values())
  return precisions(jax.make_jaxpr(jax.grad(total))(params).jaxpr)


def of_detection(model) -> list:
  variables = jax.eval_shape(lambda: model.init(KEY, full_batch(), method="detect"))
  return precisions(jax.make_jaxpr(lambda v: model.apply(v, full_batch(), method="detect"))(variables).jaxpr)


@pytest.mark.parametrize("of", [of_a_training_step, of_detection])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_product_is_as_exact_as_asked_for(model, of):
  found = of(model.clone(precision="highest"))
  assert len(found) > 5 and set(found) == {(Precision.HIGHEST, Precision.HIGHEST)}


@pytest.mark.parametrize("name, precision", [("default", Precision.DEFAULT), ("high", Precision.HIGH), (None, None)])
def test_the_other_words(name, precision):
  expected = None if name is None else (precision, precision)  # without a word it is JAX's own setting
  assert expected in of_detection(RCNN.clone(precision=name))


def test_a_model_of_another_precision_is_compiled_anew():
  run = jax.jit(lambda model, x: model.apply(VARIABLES, x, method="detect").scores, static_argnums=0)
  texts = [run.lower(RCNN.clone(precision=name), full_batch()).as_text() for name in (None, "highest", None)]
  assert texts[0] == texts[2] and texts[0].count("HIGHEST") < texts[1].count("HIGHEST")


VARIABLES = jax.eval_shape(lambda: RCNN.init(KEY, full_batch(), method="detect"))
VARIABLES = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), VARIABLES)


def test_the_products_of_the_fits_and_of_what_they_have_fitted_are_float32s_own():
  rows, signs = jnp.ones((8, 3)), jnp.ones((2, 8))
  found = precisions(jax.make_jaxpr(svm.solve)(rows, signs, signs, 1.0, jnp.zeros((2, 4))).jaxpr)
  for head in (Svms(), Ridge()):
    variables = head.init(KEY, rows, 2)
    found += precisions(jax.make_jaxpr(lambda v, head=head: head.apply(v, rows, 2))(variables).jaxpr)
  assert len(found) > 5 and set(found) == {(Precision.HIGHEST, Precision.HIGHEST)}
