"""Every reader on damaged inputs: no crash, no hang, no traceback, nothing opened outside the folders it was told of.

The default suite tries a few of each, and every input that once failed (`found/READER-...`); the long one more than a
hundred thousand, half of them chosen by the branches that they take where atheris is installed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import pathlib
import subprocess
import sys

import pytest

from tests.fuzz import targets

ROOT = pathlib.Path(__file__).parents[2]
FOUND = sorted((pathlib.Path(__file__).parent / "found").glob("*-*"))
TARGETS = targets.targets()
FEW = 20


def fuzz(out: pathlib.Path, names: list[str], count: int, seed: int, engine: str = "mutate") -> None:
  """Fuzzes readers in a process of its own; fails with what failed first."""
  words = [sys.executable, "-m", "tests.fuzz.worker", f"--target={','.join(names)}", f"--count={count}"]
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  ended = subprocess.run(
    [*words, f"--seed={seed}", f"--out={out}", f"--engine={engine}"],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  for name in names:
    place = out / name
    if not (place / "result.json").exists():
      pytest.fail(f"{name}: the process ended with {ended.returncode} at {place}/current\n{ended.stderr[-3000:]}")
    result = json.loads((place / "result.json").read_text())
    for reason in sorted(place.glob("failed-*.txt")):
      path = reason.with_suffix("")
      told = f"{path.read_bytes()[:500]!r}\n{reason.read_text()[-2000:]}"
      pytest.fail(f"{name}: {result['failures']} ways to fail in {result['tried']} inputs, such as {path}:\n{told}")
    assert result["tried"] == count


def test_readers_bear_some_damaged_inputs(tmp_path):
  fuzz(tmp_path / "out", list(TARGETS), FEW, seed=0)


@pytest.fixture
def quiet():
  """Readers warn of what they leave out; here nobody is to read it, in the tests that follow somebody is."""
  logger = logging.getLogger("rcnn_jax")
  level = logger.level
  logger.setLevel(logging.ERROR)
  yield
  logger.setLevel(level)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_once_failed_does_so_no_more(path):
  TARGETS[path.name.partition("-")[0]].run(path.read_bytes())


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("engine", ["mutate", "atheris"])
def test_a_reader_bears_many_damaged_inputs(name, engine, tmp_path):
  if engine == "atheris" and importlib.util.find_spec("atheris") is None:
    engine = "mutate"
  fuzz(tmp_path / "out", [name], TARGETS[name].long_runs // 2, seed=1 if engine == "mutate" else 2, engine=engine)


def test_the_long_suite_tries_a_hundred_thousand_inputs():
  assert sum(2 * (target.long_runs // 2) for target in TARGETS.values()) >= 100_000


def test_a_reader_that_fails_or_reads_elsewhere_is_found_out(tmp_path):
  """The fuzzer itself, on a reader that was made to fail."""
  (tmp_path / "bad.py").write_text(
    "import sys\nfrom tests.fuzz import targets, worker\n"
    "def bad(data):\n"
    "  if data.startswith(b'1'): open('/etc/hostname').read()\n"
    "  if data.startswith(b'2'): raise KeyError('x')\n"
    "  if data.startswith(b'3'): bytearray(10**11)\n"
    "  if data.startswith(b'4'):\n    while True: pass\n"
    "worker.SECONDS = 1\n"
    "inputs = iter([b'1', b'2', b'3', b'4', b'2', b'0', b'0', b'0'])\n"
    "known = {'bad': targets.Target(bad, lambda: [b'0'], lambda seed, draw: next(inputs), 9)}\n"
    "targets.targets = lambda: known\n"
    "worker.main()\n"
  )
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  words = [sys.executable, tmp_path / "bad.py", "--target=bad", "--count=9", f"--out={tmp_path}/out"]
  subprocess.run(words, cwd=ROOT, env=environment, check=True, timeout=120)
  told = [path.read_text().splitlines()[-1] for path in (tmp_path / "out" / "bad").glob("failed-*.txt")]
  assert sorted(told) == [
    "AssertionError: done outside its folders: ['/etc/hostname']",
    "KeyError: 'x'",
    "MemoryError",
    "TimeoutError: more than 1 s",
  ]
