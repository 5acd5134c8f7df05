"""The process that fuzzes readers: limited in memory and in time, and watched for files that it opens elsewhere.

    python -m tests.fuzz.worker --target=coco --count=1000 --seed=0 --out=DIR [--engine=atheris]

Each input is written down before it is tried, so that one that kills the process is known. DIR/READER gets what
failed, each input beside its reason, and result.json when all have been tried.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import logging
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Iterator

MEMORY = 9_000_000_000  # bytes of address space
SECONDS = 10  # that one input may take
MOST = 10  # failures after which there is nothing more to learn
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.bind")
GUIDING = ["rcnn_jax.data", "rcnn_jax.weights", "rcnn_jax.experiment", "rcnn_jax.fields"]  # whose branches count


class Watch:
  """Notes what happens that must not while an input is tried: files opened elsewhere, processes, connections."""

  def __init__(self, inside: tuple[str, ...]):
    self._inside, self._active, self.seen = inside, False, []
    sys.addaudithook(self._note)

  @contextlib.contextmanager
  def on(self) -> Iterator[None]:
    """Within, what must not happen is noted; raises AssertionError at the end where something was."""
    self.seen, self._active = [], True
    try:
      yield
    finally:
      self._active = False
    assert not self.seen, f"done outside its folders: {self.seen[:3]}"

  def _note(self, event: str, arguments: tuple) -> None:
    if not self._active:
      return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
      path = os.path.realpath(os.fsdecode(arguments[0]))
      if not path.startswith(self._inside):
        self.seen.append(path)
    elif event.startswith(FORBIDDEN):
      self.seen.append(event)


def main() -> None:
  """Tries the inputs that the options ask for."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--target", required=True, help="a reader, or several with commas between, one after another")
  parser.add_argument("--count", type=int, required=True)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--engine", choices=("mutate", "atheris"), default="mutate")
  options = parser.parse_args()
  options.out.mkdir(parents=True, exist_ok=True)
  tempfile.tempdir = str(options.out)
  logging.getLogger("rcnn_jax").setLevel(logging.ERROR)
  with _instrumented(options.engine == "atheris"):
    from tests.fuzz import targets
  known = targets.targets()
  for name in options.target.split(","):
    trial = Trial(known[name], options.out / name)
    trial.warm_up()
    if options.engine == "atheris":
      trial.guided(options.count, options.seed)
    trial.blind(options.count, options.seed)


def _instrumented(guided: bool):
  """Within, the readers are imported so that the fuzzer sees which of their branches an input takes."""
  if not guided:
    return contextlib.nullcontext()
  import atheris

  return atheris.instrument_imports(include=GUIDING)


class Trial:
  """One reader on many inputs."""

  def __init__(self, target, out: pathlib.Path):
    from tests.fuzz.targets import folder

    out.mkdir()
    self._target, self._out = target, out
    self._seeds = target.seeds()
    self._current = out / "current"
    source = str(pathlib.Path(__file__).parents[2])
    inside = (str(folder()), str(out), tempfile.gettempdir(), sys.prefix, sys.base_prefix, source, "/dev/shm/fuzzed-")
    self._watch = Watch(tuple(os.path.realpath(place) for place in inside) + ("/dev/null", "/dev/urandom"))
    self.tried, self.failures, self._reasons, self._began = 0, 0, set(), time.time()

  def warm_up(self) -> None:
    """Sets the limits, and reads sound inputs once: what they import and open for good is no reading elsewhere."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _too_long)
    for seed in self._seeds:
      with contextlib.suppress(Exception), _in_time():  # what it raises it raises again as an input
        self._target.run(seed)

  def blind(self, count: int, seed: int) -> None:
    """Inputs by chance: sound ones damaged, and damaged ones damaged further."""
    draw = random.Random(seed)
    further: list[bytes] = []
    for data in self._seeds[:count]:
      self.one(data)
    while self.tried < count and self.failures < MOST:
      base = draw.choice(further) if further and draw.random() < 0.25 else draw.choice(self._seeds)
      data = self._target.mutate(base, draw)
      self.one(data)
      if len(data) < 20_000:
        further = [*further[-99:], data]
    self.finish()

  def guided(self, count: int, seed: int) -> None:
    """Inputs that take new branches are damaged further, as libFuzzer chooses them; does not return."""
    import atheris

    corpus = self._out / "corpus"
    corpus.mkdir()
    for number, data in enumerate(self._seeds):
      (corpus / f"seed{number}").write_bytes(data)

    def one(data: bytes) -> None:
      self.one(data)
      if self.tried >= count or self.failures >= MOST:
        self.finish()
        os._exit(0)

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
      draw = random.Random(number)
      return self._target.mutate(data if data else draw.choice(self._seeds), draw)[:max_size]

    words = [sys.argv[0], f"-seed={seed + 1}", "-max_len=60000", "-rss_limit_mb=0", "-verbosity=0", str(corpus)]
    atheris.Setup(words, one, custom_mutator=mutate)
    atheris.Fuzz()

  def one(self, data: bytes) -> None:
    """Tries one input, within its limits; a failure is written down."""
    self.tried += 1
    self._current.write_bytes(data)
    try:
      with _in_time(), self._watch.on():
        self._target.run(data)
    except BaseException as error:
      self._failed(data, error)

  def finish(self) -> None:
    """Tells what came of it."""
    seconds = time.time() - self._began
    self._current.unlink(missing_ok=True)
    form = {"tried": self.tried, "failures": self.failures, "kinds": len(self._reasons), "seconds": round(seconds, 1)}
    (self._out / "result.json").write_text(json.dumps(form))

  def _failed(self, data: bytes, error: BaseException) -> None:
    """Writes an input down with its reason, unless another failed at the same place."""
    if isinstance(error, KeyboardInterrupt):
      raise error
    frames = traceback.extract_tb(error.__traceback__)
    where = [frame for frame in frames if "rcnn_jax" in frame.filename] or frames
    place = (type(error).__name__, where[-1].filename, where[-1].lineno)
    if place in self._reasons:
      return
    self._reasons.add(place)
    self.failures += 1
    name = f"failed-{zlib.crc32(data):08x}"
    (self._out / name).write_bytes(data)
    told = "".join(traceback.format_exception(error))
    (self._out / f"{name}.txt").write_text(told[-8000:], encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
  """Within, TimeoutError is raised after some time; where Python cannot be interrupted, the process ends later."""
  faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
  signal.setitimer(signal.ITIMER_REAL, SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


def _too_long(*_) -> None:
  raise TimeoutError(f"more than {SECONDS} s")


if __name__ == "__main__":
  main()
