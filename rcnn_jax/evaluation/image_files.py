"""Which image files are meant by a name, a folder or a pattern."""

from __future__ import annotations

import glob
import os
import pathlib

from rcnn_jax.data import images
from rcnn_jax.evaluation import outputs
from rcnn_jax.evaluation.detect import EvaluationError

ImageFile = tuple[pathlib.Path, str]  # where it is, and its name: relative to the folder that was asked for


def matching_files(pattern: str, output: str | os.PathLike | None = None) -> list[ImageFile]:
  """The files that are meant, sorted, each with its name relative to the first folder without a wildcard.

  `~` is the user's home. What exists is taken literally, whatever characters its name has: a file is that file, a
  folder means the images in it (not in its sub-folders), and so do the first folders of a pattern. `*`, `?`, `[ab]`
  and `**` are wildcards otherwise.

  Args:
    pattern: of the user.
    output: a folder; pictures in it that an earlier prediction wrote are no images to be looked at.

  Raises:
    EvaluationError: there is none.
  """
  path = pathlib.Path(os.path.expanduser(pattern))
  if path.is_file():
    return [(path, path.name)]
  if path.is_dir():
    folder = path
    found = [file for file in folder.iterdir() if images.is_image_name(file.name) and file.is_file()]
    hint = f"the folder {pattern} holds no image; --images='{pattern}/**/*.jpg' also looks into its sub-folders"
  else:
    folder, rest = _literal_folder(path)
    found = [folder / name for name in glob.glob(rest, root_dir=folder, recursive=True) if (folder / name).is_file()]
    hint = f"no file matches --images={pattern}"
  if not found:
    raise EvaluationError(hint)
  chosen = [file for file in found if output is None or not _is_earlier_picture(file, pathlib.Path(output))]
  if not chosen:
    raise EvaluationError(f"--images={pattern} matches nothing but pictures that an earlier prediction wrote")
  return [(file, file.relative_to(folder).as_posix()) for file in sorted(chosen)]


def _literal_folder(path: pathlib.Path) -> tuple[pathlib.Path, str]:
  """The longest beginning of a pattern that is a folder, and what is left."""
  folder, parts = (pathlib.Path(path.anchor), path.parts[1:]) if path.anchor else (pathlib.Path(), path.parts)
  while len(parts) > 1 and (folder / parts[0]).is_dir():
    folder, parts = folder / parts[0], parts[1:]
  return folder, os.path.join(*parts) if parts else ""


def _is_earlier_picture(file: pathlib.Path, output: pathlib.Path) -> bool:
  inside = file.absolute().is_relative_to(output.absolute()) or file.resolve().is_relative_to(output.resolve())
  return inside and outputs.is_own_picture(file)
