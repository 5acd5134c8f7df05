"""A model, a data set and an experiment small enough to train in a test of the engine, not of detection."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rcnn_jax.experiment import Checkpoints, Evaluation, Experiment
from rcnn_jax.models.layers import BatchNorm
from rcnn_jax.ops import random
from rcnn_jax.ops.losses import divide
from rcnn_jax.training.optim import Cosine, Momentum
from rcnn_jax.training.stages import Sgd
from rcnn_jax.types import Batch, GroundTruth


class Backbone(nn.Module):
  """One convolution, then the mean over the image."""

  features: int = 4
  strides: tuple[int, ...] = (2,)

  @nn.compact
  def __call__(self, image):
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (12, self.features))
    b, h, w, c = image.shape
    patches = image.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 12)
    return nn.relu(patches @ kernel).mean((1, 2))


class Classifier(nn.Module):
  """Says which class stands in each image; its two loss terms are means over the batch."""

  backbone: nn.Module
  num_classes: int | None = None
  dropout: float = 0.5
  norm: bool = False
  dtype: str = "float32"

  def setup(self):
    self.head = nn.Dense(self.num_classes + 1)
    if self.norm:
      self.normalise = BatchNorm(momentum=0.5)

  @nn.nowrap
  def with_data(self, categories, keypoints):
    return self.clone(num_classes=len(categories))

  def losses(self, batch, key):
    features = self.backbone(batch.image.astype(jnp.float32) / 255)
    if self.norm:
      features = self.normalise(features, not self.is_initializing())
    if key is not None:
      keys = random.per_image(random.named(key, "dropout"), batch.image_id)
      kept = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.dropout, features.shape[1:]))(keys)
      features = features * kept
    logits = nn.log_softmax(self.head(features))
    picked = jnp.take_along_axis(logits, batch.truth.classes[:, :1], axis=1)
    return {"class": divide(-picked.sum(), len(picked)), "size": divide(0.01 * (features**2).sum(), len(picked))}


@dataclasses.dataclass(frozen=True)
class Category:
  id: int
  name: str


@dataclasses.dataclass(frozen=True)
class Data:
  batch_size: tuple[int, int] = (8, 8)
  canvases: tuple[tuple[int, int], ...] = ((4, 8), (8, 4))
  num_images: int = 48


STEPS_PER_EPOCH = Data().num_images // Data().batch_size[0]


def batch_of(ids: np.ndarray, canvas: tuple[int, int] = (4, 8)) -> Batch:
  """Images of noise, brighter in the channel of their class (1..3)."""
  ids = np.asarray(ids, np.int32)
  classes = 1 + ids % 3
  images = np.stack([np.random.default_rng(i).integers(0, 128, (*canvas, 3)) for i in ids]).astype(np.uint8)
  for image, k in zip(images, classes, strict=True):
    image[..., k - 1] += 100
  one = (len(ids), 1)
  truth = GroundTruth(
    boxes=np.zeros((*one, 4), np.float32),
    classes=classes[:, None],
    crowd=np.zeros(one, bool),
    difficult=np.zeros(one, bool),
    valid=np.ones(one, bool),
  )
  return Batch(
    image=images,
    image_size=np.tile(np.int32(canvas), (len(ids), 1)),
    scale=np.ones((len(ids), 2), np.float32),
    image_id=ids,
    valid=np.ones(len(ids), bool),
    truth=truth,
  )


class Loader:
  """Batches in a random order that its state, the number of batches given out, wholly determines."""

  def __init__(self, data: Data, seed: int, num_steps: int):
    self.data, self.seed, self.num_steps, self.given = data, seed, num_steps, 0

  def __iter__(self):
    return self

  def __next__(self) -> Batch:
    if self.given == self.num_steps:
      raise StopIteration
    draw = np.random.default_rng([self.seed, self.given])
    self.given += 1
    ids = draw.choice(self.data.num_images, self.data.batch_size[0], replace=False)
    return batch_of(ids, self.data.canvases[self.given % 2])

  def get_state(self) -> dict:
    return {"given": self.given}

  def set_state(self, state: dict) -> None:
    self.given = state["given"]

  def close(self) -> None:
    pass


CATEGORIES = (Category(7, "red"), Category(9, "green"), Category(11, "blue"))


def experiment(stages: tuple | None = None, **changes) -> Experiment:
  """Six steps of cosine decay with warm-up, a checkpoint every three."""
  stage = Sgd(steps=6, optimizer=Momentum(0.9), schedule=Cosine(0.5, warmup_steps=2), weight_decay=1e-3, ema=0.5)
  return Experiment(
    name="tiny",
    data=Data(),
    model=Classifier(Backbone()),
    stages=stages or (stage,),
    evaluation=Evaluation(),
    checkpoints=Checkpoints(every_steps=3),
    **changes,
  )


def model_of(exp: Experiment) -> Classifier:
  return exp.model.with_data(CATEGORIES, None)


def variables_of(exp: Experiment) -> dict:
  return model_of(exp).init(jax.random.key(exp.seed), batch_of([0]), None, method="losses")
