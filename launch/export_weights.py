"""Writes the parameters of a run's detector by torchvision's or Detectron2's names, as .safetensors.

    python -m launch.export_weights --workdir=DIR --output=FILE.safetensors [--checkpoint=best|latest|STEP] \\
        [--target=torchvision|detectron2]

There, `model.load_state_dict(safetensors.torch.load_file(FILE))` takes them strictly.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from absl import flags

from launch import flags as launch_flags
from launch.import_weights import LIBRARIES
from rcnn_jax.weights.errors import WeightsError
from rcnn_jax.weights.library import Library

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_run()
  launch_flags.define_path("output", "The .safetensors file to be written.", required=True)
  flags.DEFINE_enum("target", "torchvision", list(LIBRARIES), "The library that is to read it.")


def main(argv: list[str]) -> None:
  """Exports one checkpoint."""
  del argv
  output = pathlib.Path(FLAGS.output)
  if output.suffix != ".safetensors":
    raise WeightsError(f"--output={output}: only .safetensors can be written")
  run = launch_flags.chosen_run()
  count = export(run, output, LIBRARIES[FLAGS.target])
  print(f"{count} tensors of step {run.step} written to {output}")


def export(run: Any, output: pathlib.Path, library: Library = LIBRARIES["torchvision"]) -> int:
  """Writes the variables of a `training.checkpoint` Run into a file; returns the number of tensors."""
  from safetensors.numpy import save_file

  tensors = library.export(run.variables, run.experiment.model)
  output.parent.mkdir(parents=True, exist_ok=True)
  partial = output.with_suffix(".partial")
  save_file(tensors, partial, metadata={"format": "pt"})
  os.replace(partial, output)
  return len(tensors)


if __name__ == "__main__":
  launch_flags.run(main, define_flags)
