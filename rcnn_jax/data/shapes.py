"""The embedded data set: pictures of textured, overlapping shapes, drawn once and kept as a TFDS data set."""

from __future__ import annotations

import dataclasses
import os

from rcnn_jax.data.tfds import Tfds, TfdsSource


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Circles, squares and triangles (3 classes) with exact boxes and masks of what is visible of them.

  `open()` draws the pictures under `data_dir` the first time, in seconds, and finds them there afterwards. The same
  numbers give the same pictures. Splits: 'train' and 'eval'.
  """

  data_dir: str = "~/tensorflow_datasets"
  split: str = "train"
  side: int = 128
  num_train: int = 600
  num_eval: int = 100
  seed: int = 0

  def open(self, strict: bool = True) -> TfdsSource:
    """Builds the data set if it is not there, and opens it. Raises DataError for an unknown split."""
    builder = self._builder()
    if not builder.is_prepared():
      self._build(builder)
    relative = os.path.relpath(builder.data_dir, os.path.expanduser(self.data_dir))
    return Tfds(name=relative, split=self.split, data_dir=self.data_dir).open(strict)

  def _builder(self):
    from rcnn_jax.data.shapes_builder import shapes_builder

    values = {name: getattr(self, name) for name in ("side", "num_train", "num_eval", "seed")}
    config = shapes_builder.ShapesConfig(name="-".join(f"{name}_{value}" for name, value in values.items()), **values)
    data_dir = os.path.expanduser(self.data_dir)
    return shapes_builder.DrawnShapes(config=config, data_dir=data_dir, file_format="array_record")

  def _build(self, builder) -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
      # TFDS writes beside the final folder and renames it into place at the end.
      builder.download_and_prepare()
    except OSError:
      if not self._builder().is_prepared():  # else another process was faster
        raise
