"""What README and docs refer to is there: files, commands, experiments, sweeps."""

from __future__ import annotations

import pathlib
import re

import pytest

from rcnn_jax import experiment as experiments

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
  links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
  missing = [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()]
  assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_names_what_there_is(page):
  text = page.read_text()
  for module in re.findall(r"-m ((?:launch|tests)\.[a-z_]+)", text):
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
  for flag, package in (("experiment", "experiments"), ("sweep", "experiments.sweeps")):
    shown = re.findall(r"^# experiments/(\w+)\.py$", text, re.MULTILINE)  # whole, to be written by the reader
    for name in re.findall(rf"--{flag}=([a-z]\w*)(?![\w/])", text):
      assert name in (*experiments.names(package), *shown), name


def test_every_page_is_reached_from_the_front_page():
  linked = set(re.findall(r"\]\(docs/(\w+\.md)", (ROOT / "README.md").read_text()))
  assert linked == {page.name for page in PAGES} - {"README.md"}


def test_the_front_page_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_every_part_of_a_paper_is_where_the_page_says():
  places = re.findall(r"`([\w/]+\.py):([\w.]+)`", (ROOT / "docs" / "papers.md").read_text())
  assert len(places) > 50
  for file, symbol in places:
    source = (ROOT / "rcnn_jax" / file).read_text()
    for name in symbol.split("."):
      assert re.search(rf"^ *(def|class) {name}\b", source, re.MULTILINE), f"{file}:{symbol}"
