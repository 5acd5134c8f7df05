"""The embedded data set: pictures of textured, overlapping shapes, drawn once and kept as a TFDS data set."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib

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
    name = f"drawn_shapes/{self._config_name}"
    if not list(pathlib.Path(os.path.expanduser(self.data_dir)).glob(f"{name}/*/dataset_info.json")):
      self._build()
    return Tfds(name, self.split, self.data_dir).open(strict)

  @property
  def _config(self) -> dict[str, int]:
    return {name: getattr(self, name) for name in ("side", "num_train", "num_eval", "seed")}

  @property
  def _config_name(self) -> str:
    return "-".join(f"{name}_{value}" for name, value in self._config.items())

  def _build(self) -> None:
    import tensorflow_datasets as tfds

    from rcnn_jax.data.shapes_builder import shapes_builder

    tfds.disable_progress_bar()
    config = shapes_builder.ShapesConfig(name=self._config_name, **self._config)
    data_dir = os.path.expanduser(self.data_dir)
    builder = shapes_builder.DrawnShapes(config=config, data_dir=data_dir, file_format="array_record")
    print(f"drawing {self.num_train} + {self.num_eval} images into {builder.data_dir}", flush=True)
    try:
      # TFDS writes beside the final folder and renames it into place at the end. It would speak of a download.
      with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    except OSError:
      if not pathlib.Path(builder.data_dir).is_dir():  # else another process was faster
        raise
