"""What the parts of a detector are asked for: a new backbone or head that offers it needs no change in `Detector`.

Nothing inherits from these classes; they are read, and a type checker compares with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from flax import struct

from rcnn_jax.types import Array, Detections, GroundTruth, RoiSamples


@struct.dataclass
class Context:
  """How a backbone is called: by itself as in detection, where nothing is drawn by chance."""

  train: bool = struct.field(pytree_node=False, default=False)
  keys: Array | None = None  # [B], one for each image, for what is drawn by chance in training (drop-path)
  valid: Array | None = None  # bool[B], the images that batch norm takes its statistics from; None: all


class Backbone(Protocol):
  """A network from pixels to feature maps, finest level first."""

  pixel_mean: tuple[float, float, float]  # of red, green and blue in 0..255, taken from the pixels
  pixel_std: tuple[float, float, float]  # by which they are then divided

  @property
  def strides(self) -> tuple[float, ...]:
    """Canvas pixels per feature cell, a level: the anchors of a level stand on its cells."""

  def __call__(self, x: Array, context: Context = Context()) -> tuple[Array, ...]:
    """x: normalised images f[B, H, W, 3] -> one f[B, H/stride, W/stride, C] a level."""


class ObjectHead(Protocol):
  """What is predicted of each object beside its class and box, as masks and keypoints are (Mask R-CNN).

  It learns from the foreground of the sampled RoIs, and predicts for what the box head detects. It is called with the
  rows that exist alone (`models/rows.py`), so its result for a row must depend on this row alone, but for the
  statistics of batch norm.
  """

  key: str  # names its variables, 'params/mask', and its place in paths, 'model.heads.mask'
  field: str  # of GroundTruth, from which it learns; `Data.load_<field>` says whether the batches have it
  pool: Any | None  # of the RoIs that it sees; None: it stands on the trunk's features, as in C4

  @property
  def is_complete(self) -> bool:
    """Whether it knows all of the data that it needs to, such as the number of joints."""

  def with_data(self, categories: Sequence[Any], keypoints: Any | None) -> ObjectHead:
    """The head of some data: what they alone know is filled in. Arguments as `Detector.with_data`."""

  def annotation(self, num_objects: Sequence[int]) -> Array:
    """Zeros of the shape and type of its field of the ground truth, for `num_objects` objects [..., M]."""

  def __call__(self, rois: Array, num_classes: int, classes: Array, norm_rows: Array | None) -> Array:
    """Its outputs for each RoI.

    Args:
      rois: f[R, P, P, C], pooled.
      num_classes: K.
      classes: i32[R], 1..K; what it says of a RoI may be for this class alone.
      norm_rows: bool[R] in training, the RoIs that batch norm takes its statistics from; None in detection.
    """

  def losses(self, outputs: Array, samples: RoiSamples, truth: GroundTruth) -> dict[str, Array]:
    """Its loss terms f32[] by name; outputs [B, S, ...]; samples, truth: batched."""

  def detected(self, outputs: Array, found: Detections) -> Detections:
    """`found`, batched, with what its outputs [B, D, ...] say of each detection."""
