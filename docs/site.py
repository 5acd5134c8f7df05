"""What the site has beside the pages of this folder: README as its front page, a page of docstrings for each room."""

from __future__ import annotations

import pathlib

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ("ops", "models", "models/backbones", "data", "training", "evaluation", "weights", "sweeping")


def on_files(files: Files, config) -> Files:
  """Adds the pages; links of README into docs/ become links within it."""
  readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
  files.append(File.generated(config, "index.md", content=readme))
  files.append(File.generated(config, "api/rcnn_jax.md", content=page("rcnn_jax", ROOT / "rcnn_jax")))
  for room in ROOMS:
    name = f"rcnn_jax.{room.replace('/', '.')}"
    files.append(File.generated(config, f"api/{name}.md", content=page(name, ROOT / "rcnn_jax" / room)))
  return files


def page(name: str, folder: pathlib.Path) -> str:
  """The docstrings of the modules of a package, one behind the other."""
  modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
  return f"# {name}\n\n" + "\n".join(f"::: {name}.{module}\n" for module in modules)
