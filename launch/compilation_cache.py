"""Compiled programs are kept from one start of a command to the next, by JAX' persistent compilation cache."""

from __future__ import annotations

import logging
import os
import pathlib
import platform
import warnings
import zlib

import jax

logger = logging.getLogger(f"rcnn_jax.{__name__}")  # whose warnings are shown

MAX_BYTES = 4 * 2**30  # of all programs; the least recently used go first
MIN_SECONDS = 0.2  # what compiles faster is not worth a file


def keep(folder: str | None = None) -> None:
  """Keeps programs in a folder, by default one in the user's cache folder whose size is bounded.

  Where the environment names a folder (JAX_COMPILATION_CACHE_DIR), that is taken as JAX takes it. A folder that cannot
  be written is named in a warning, and programs are compiled anew. No device is looked at.
  """
  from jax.experimental.compilation_cache.compilation_cache import reset_cache

  # A cache that cannot be read or written costs time and nothing else.
  warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
  if folder is None and jax.config.jax_compilation_cache_dir is not None:
    return
  place = pathlib.Path(folder) if folder else default_folder()
  try:
    place.mkdir(parents=True, exist_ok=True)
    if not os.access(place, os.W_OK | os.X_OK):
      raise PermissionError(None, "Permission denied")
    if folder is None:
      _bound(place)
  except OSError as error:
    logger.warning("%s: %s: compiled programs are not kept", place, (error.strerror or str(error)).lower())
    return
  jax.config.update("jax_compilation_cache_dir", str(place.absolute()))
  reset_cache()  # a program that was compiled before has settled that there is none


def default_folder() -> pathlib.Path:
  """`compiled/NUMBER` of $RCNN_JAX_CACHE, else of rcnn_jax in the user's cache folder.

  The number tells one kind of processor from another, for a program for a CPU uses the instructions of the one that
  compiled it, and home folders are shared by machines.
  """
  usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "rcnn_jax")
  home = pathlib.Path(os.environ.get("RCNN_JAX_CACHE") or usual)
  return home.expanduser() / "compiled" / f"{zlib.crc32(_processor().encode()):08x}"


def _processor() -> str:
  """What the system says of its processor, its instructions among it."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  relevant = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
  return "\n".join(sorted(relevant)) or f"{platform.machine()} {platform.processor()}"


def _bound(folder: pathlib.Path) -> None:
  """Bounds the folder's size unless the user has; raises OSError where files cannot be made in it."""
  import filelock

  if jax.config.jax_compilation_cache_max_size == -1:
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
  # JAX writes a program, then its time of use. One without was cut short, and would keep JAX from writing any other.
  try:
    with filelock.FileLock(folder / ".lockfile", timeout=1):
      for path in folder.glob("*-cache"):
        if not path.with_name(f"{path.name.removesuffix('-cache')}-atime").exists():
          path.unlink()
  except filelock.Timeout:
    pass  # another process writes just now
