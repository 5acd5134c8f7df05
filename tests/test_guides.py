"""The pages on adding a backbone and a head: their files, as they stand there, are imported, built and tested."""

from __future__ import annotations

import importlib
import pathlib
import re
import sys

import pytest

import experiments
import rcnn_jax.models
import rcnn_jax.models.backbones
from rcnn_jax import experiment as experiment_module
from rcnn_jax.models.detector import num_parameters

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PACKAGES = {
  "rcnn_jax/models/backbones": rcnn_jax.models.backbones,
  "rcnn_jax/models": rcnn_jax.models,
  "experiments": experiments,
}


def written(page: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes the files that a page shows, each a block of Python that begins with its path; returns them by path."""
  blocks = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
  found = {}
  for path, text in blocks:
    found[path] = folder / path
    found[path].parent.mkdir(parents=True, exist_ok=True)
    found[path].write_text(text)
  return found


@pytest.fixture
def in_place(tmp_path, monkeypatch):
  """A function that writes a page's files where Python finds them as parts of the packages."""

  def write(page: str) -> dict[str, pathlib.Path]:
    for path, package in PACKAGES.items():
      monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / path)])
    return written(page, tmp_path)

  before = set(sys.modules)
  yield write
  for name in set(sys.modules) - before:
    if name.startswith(("rcnn_jax.models.", "experiments.", "guide_")):
      del sys.modules[name]


@pytest.mark.parametrize("page, head", [("add_a_backbone.md", None), ("add_a_head.md", "mlp_mask")])
def test_the_files_of_the_page(page, head, in_place):
  files = in_place(page)
  assert len(files) == 3
  module, shown, test = files.values()
  assert module.parts[-2] in ("backbones", "models") and shown.parent.name == "experiments"
  model = experiment_module.load(str(shown)).model.clone(num_classes=3)
  assert num_parameters(model, (128, 128)) > 10_000
  assert [each.key for each in model.heads] == ([head] if head else [])
  spec = importlib.util.spec_from_file_location(f"guide_{test.stem}", test)
  tests = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(tests)
  names = [name for name in vars(tests) if name.startswith("test_")]
  assert len(names) == 2
  for name in names:
    getattr(tests, name)()
