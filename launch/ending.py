"""How a command ends when something went wrong: one line that says what, and an exit status."""

from __future__ import annotations

import errno
import os
import pathlib
import select
import signal
import sys
import threading
import traceback

from absl import app

PACKAGES = ("rcnn_jax", "launch", "experiments")
ROOT = pathlib.Path(__file__).parents[1]
REPORT = "--debug shows where; please report it with what that prints, unless an experiment file is to blame"
OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
PATIENCE_S = 3.0  # from Ctrl-C to the end
LONGEST = 400  # characters of what another library says


def status_of(error: BaseException) -> int:
  """The exit status: as the shell reports it where a signal ended the command, else the error's own, or 1."""
  if isinstance(error, KeyboardInterrupt):
    return 128 + signal.SIGINT
  if _nobody_reads(error):
    return 128 + signal.SIGPIPE
  return getattr(error, "exit_status", 1)


def reason_of(error: BaseException, folder: str | None = None) -> str:
  """What is said of an error, in one line; nothing where nobody reads any more what the command prints.

  `folder` is where the command writes: an error of writing often names no file.
  """
  if isinstance(error, KeyboardInterrupt):
    return "interrupted"
  if _nobody_reads(error):
    return ""
  said = " ".join(str(error).split())
  if isinstance(error, OSError) and error.strerror:
    return _of_the_system(error, folder)
  if isinstance(error, MemoryError):
    return f"out of memory{': ' + said if said else ''}"
  if said.startswith("RESOURCE_EXHAUSTED"):
    return f"the device is out of memory: smaller batches, canvases or model.roi_chunk need less ({said[:LONGEST]})"
  ours = type(error).__module__.startswith((*PACKAGES, "__main__")) or isinstance(error, app.UsageError)
  if said and (ours or isinstance(error, OSError) or _told(error)):
    return said
  return f"{type(error).__name__}: {said[:LONGEST]} ({REPORT})"


def silence(error: BaseException) -> None:
  """Where nobody reads what is printed, what is still to be printed is thrown away rather than tried in vain."""
  if _nobody_reads(error):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def without_tracebacks() -> list[BaseException]:
  """From here on no error of a thread prints its traceback, and any name can be printed.

  Returns:
    The list to which such errors are added. Most of them are also raised where the thread's work is waited for.
  """
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="backslashreplace")
  raised: list[BaseException] = []
  threading.excepthook = lambda failed: raised.append(failed.exc_value)
  sys.unraisablehook = lambda failed: None  # raised by what is being thrown away
  return raised


def hear_signals() -> None:
  """From here on Ctrl-C ends the command in PATIENCE_S, and a second signal of one kind that is handled at once.

  Python hears of a signal between two of its own instructions: not while a program is compiled, which takes minutes.
  """
  heard, telling = os.pipe()
  os.set_blocking(telling, False)
  signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
  os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
  threading.Thread(target=_listen, args=(heard,), daemon=True).start()


def _listen(heard: int) -> None:
  numbers = set()
  while True:
    for number in os.read(heard, 64):
      if number == signal.SIGINT and number not in numbers:
        timer = threading.Timer(PATIENCE_S, _end_at_once, (number,))
        timer.daemon = True
        timer.start()
      elif number in numbers and number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        _end_at_once(number)
      numbers.add(number)


def _end_at_once(number: int) -> None:
  os._exit(128 + number)


def _of_the_system(error: OSError, folder: str | None) -> str:
  """'PATH: no space left on device'."""
  paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
  if not paths and folder and error.errno in OF_WRITING:
    paths = [folder]
  said = str(error.strerror)
  return ": ".join([*([" -> ".join(paths)] if paths else []), said[:1].lower() + said[1:]])


def _told(error: BaseException) -> bool:
  """Whether it is a check of this project's own that has failed, and not something that nobody has thought of."""
  frames = traceback.extract_tb(error.__traceback__)
  if not frames:
    return False
  ours = any(pathlib.Path(frames[-1].filename).is_relative_to(ROOT / package) for package in PACKAGES)
  return ours and (frames[-1].line or "").startswith("raise ")


def _nobody_reads(error: BaseException) -> bool:
  """Whether the reader of stdout has gone, as `head` does once it has enough."""
  if not (isinstance(error, OSError) and error.errno == errno.EPIPE):
    return False
  poll = select.poll()
  try:
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
  except (OSError, ValueError):
    return False
