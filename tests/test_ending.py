"""How a command ends: one line and an exit status, whatever went wrong."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import ending
from rcnn_jax.data.errors import DataError
from rcnn_jax.models.layers import norm

ROOT = pathlib.Path(__file__).parent.parent
COMMAND = """
import os, sys, threading
from launch import flags as launch_flags

def main(argv):
  how = launch_flags.FLAGS.how
  if how == "interrupt":
    raise KeyboardInterrupt
  if how == "bug":
    return {}["key"]
  if how == "print":
    for number in range(100_000):
      print(number)
  if how == "thread":
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    print(os.fsdecode(b"caf\\xe9"))
  if how == "compute":
    import numpy
    matrix = numpy.random.default_rng(0).random((5000, 5000))
    print("computing", flush=True)
    numpy.linalg.svd(matrix)  # Python hears of nothing meanwhile
  if how == "path":
    print(launch_flags.FLAGS.place)

def define_flags():
  launch_flags.flags.DEFINE_enum("how", None, ["interrupt", "bug", "print", "thread", "compute", "path"], "")
  launch_flags.define_path("place", "")

launch_flags.run(main, define_flags)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("command") / "command.py"
  path.write_text(COMMAND)
  return path


def start(file, *options: str, **environment: str) -> subprocess.Popen:
  variables = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment
  words = [sys.executable, str(file), *options]
  return subprocess.Popen(words, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_fault_is_one_line_with_a_hint_and_a_traceback_with_debug(file):
  quiet, loud = start(file, "--how=bug"), start(file, "--how=bug", "--debug")
  assert quiet.communicate()[1] == f"error: KeyError: 'key' ({ending.REPORT})\n"
  assert quiet.returncode == 1
  assert "Traceback (most recent call last)" in loud.communicate()[1] and loud.returncode == 1


def test_ctrl_c_and_a_reader_that_has_gone_end_a_command_quietly(file):
  interrupted, printing = start(file, "--how=interrupt"), start(file, "--how=print")
  assert (*interrupted.communicate(), interrupted.returncode) == ("", "interrupted\n", 130)
  assert printing.stdout.readline() == "0\n"
  printing.stdout.close()
  assert (printing.stderr.read(), printing.wait()) == ("", 141)


def test_ctrl_c_ends_a_command_that_python_cannot_interrupt(file):
  computing = start(file, "--how=compute")
  assert computing.stdout.readline() == "computing\n"
  computing.send_signal(signal.SIGINT)
  began = time.monotonic()
  assert computing.wait(timeout=60) == 130 and time.monotonic() - began < ending.PATIENCE_S + 10


def test_a_thread_that_fails_is_told_in_a_line_and_any_name_can_be_printed(file):
  process = start(file, "--how=thread")
  assert process.communicate() == ("caf\\udce9\n", f"warning: in the background: {said_of_zero()}\n")
  assert process.returncode == 0


def said_of_zero() -> str:
  return f"ZeroDivisionError: division by zero ({ending.REPORT})"


@pytest.mark.parametrize(
  "option, message",
  [
    ("--how=nonsense", "flag --how=nonsense: value should be one of"),
    ("--hew=bug", "Unknown command line flag 'hew'. Did you mean: help"),
    ("--place=", "flag --place=: nothing stands behind '='"),
  ],
)
def test_a_flag_that_does_not_fit_is_one_line(file, option, message):
  process = start(file, option)
  output, errors = process.communicate()
  assert (output, process.returncode, errors.count("\n")) == ("", 1, 1)
  assert errors.startswith("error: ") and message in errors


def test_a_path_may_begin_with_the_home_folder(file, tmp_path):
  process = start(file, "--how=path", "--place=~/runs/a", HOME=str(tmp_path))
  assert process.communicate() == (f"{tmp_path}/runs/a\n", "")


def raised(function) -> BaseException:
  with pytest.raises(BaseException) as caught:
    function()
  return caught.value


class OfALibrary(Exception):
  """Not ours: its module is no part of the project."""


@pytest.mark.parametrize(
  "error, reason",
  [
    (DataError("a.xml: no size"), "a.xml: no size"),
    (raised(lambda: norm("bacth", "name")), "norm must be 'frozen', 'batch' or 'group', not 'bacth'"),
    (raised(lambda: open("/no/such/file")), "/no/such/file: no such file or directory"),
    (raised(lambda: os.rename("/no/a", "/no/b")), "/no/a -> /no/b: no such file or directory"),
    (OSError(errno.ENOSPC, "No space left on device"), "runs/a: no space left on device"),
    (OSError(errno.ENOENT, "No such file or directory"), "no such file or directory"),
    (OSError("cannot identify image file 'a.png'"), "cannot identify image file 'a.png'"),
    (MemoryError(), "out of memory"),
    (MemoryError("Unable to allocate 9 GiB"), "out of memory: Unable to allocate 9 GiB"),
    (KeyboardInterrupt(), "interrupted"),
    (OfALibrary("many\nlines"), f"OfALibrary: many lines ({ending.REPORT})"),
    (OfALibrary("x" * 9999), f"OfALibrary: {'x' * 400} ({ending.REPORT})"),
    (OfALibrary("RESOURCE_EXHAUSTED: 9 GiB"), "the device is out of memory: smaller batches, canvases or model.roi_"),
    (RecursionError("too deep"), f"RecursionError: too deep ({ending.REPORT})"),
  ],
)
def test_the_reason(error, reason):
  said = ending.reason_of(error, "runs/a")
  assert said.startswith(reason) and "\n" not in said
