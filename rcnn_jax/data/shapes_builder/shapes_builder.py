"""The drawn shapes as a TFDS data set (array_record, written and read without TensorFlow)."""

from __future__ import annotations

import dataclasses
import io
import zlib

import cv2
import numpy as np
import tensorflow_datasets as tfds

from rcnn_jax.data.shapes_builder import draw


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
  """Which pictures are drawn: side in pixels, number of training and of evaluation images, seed."""

  side: int = 128
  num_train: int = 600
  num_eval: int = 100
  seed: int = 0


class DrawnShapes(tfds.core.GeneratorBasedBuilder):
  """Textured, overlapping circles, squares and triangles with the exact boxes and masks of their visible parts."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    objects = {
      "bbox": tfds.features.BBoxFeature(),
      "label": tfds.features.ClassLabel(names=list(draw.CLASSES)),
      "area": np.float32,
      "is_crowd": np.bool_,
      "segmentation": tfds.features.Text(doc="COCO's compressed run lengths of the mask, at the size of the image"),
    }
    features = {
      "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
      "image/id": np.int64,
      "image/filename": tfds.features.Text(),
      "objects": tfds.features.Sequence(objects),
    }
    return tfds.core.DatasetInfo(
      builder=self, description=self.__doc__, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    config = self.builder_config
    return {
      "train": self._generate_examples("train", config.num_train),
      "eval": self._generate_examples("eval", config.num_eval),
    }

  def _generate_examples(self, split: str, num_images: int):
    for number in range(num_images):
      yield number, _example(split, number, self.builder_config.side, self.builder_config.seed)


def _example(split: str, number: int, side: int, seed: int) -> dict:
  from pycocotools import mask as coco_mask

  rng = np.random.default_rng((seed, zlib.crc32(split.encode()), number))
  # Every fiftieth picture is empty, as in life.
  num_objects = 0 if number % 50 == 49 else int(rng.integers(1, 6))
  image, classes, masks = draw.scene(rng, side, num_objects)
  objects = []
  for name, mask in zip(classes, masks):
    x1, y1, x2, y2 = (value / side for value in draw.box_of(mask))
    objects.append(
      {
        "bbox": tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2),
        "label": name,
        "area": float(mask.sum()),
        "is_crowd": False,
        "segmentation": coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode(),
      }
    )
  # TFDS encodes an array with TensorFlow, but takes a file object as it is.
  encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
  return {
    "image": io.BytesIO(encoded),
    "image/id": number + 1,
    "image/filename": f"{split}_{number + 1:06d}.png",
    "objects": objects,
  }
