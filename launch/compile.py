"""Compiles an experiment's train step or detection for machines that are not there, and tells what it would need.

    python -m launch.compile --experiment=NAME_OR_FILE --topology=v5e:2x2|h100|… [--what=train|detect] [--fit]
    python -m launch.compile --all --workdir=DIR [--experiments=NAME,…] [--topologies=v5e:1x1,h100]

The compiler is the one that a machine with these TPUs or GPUs would run (the extras `tpu` and `cuda12-aot`); the
program is never run. With --fit, the largest batch that fits. With --all, a table over experiments and topologies,
each program in a process of its own, one after another; started again, it goes on where it was. See docs/compile.md.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import math
import pathlib
import signal
import subprocess
import sys

from absl import app, flags
from jax.sharding import Mesh

from launch import flags as launch_flags
from rcnn_jax import chips, compile_report, programs
from rcnn_jax import experiment as experiments
from rcnn_jax.chips import Chip
from rcnn_jax.files import FileError, read_json, write_json, write_text

FLAGS = flags.FLAGS
PACKAGES = ("jax", "jaxlib", "flax", "libtpu", "jax-cuda12-pjrt")
SHARED_BY = 16  # chips that a published batch of the table is divided over


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_experiment(required=False)
  flags.DEFINE_string("topology", None, f"The devices: {chips.known_topologies()}.")
  flags.DEFINE_enum("what", "train", ["train", "detect"], "The program.")
  flags.DEFINE_integer("batch_size", None, "Images on all devices; by default the experiment's.", lower_bound=1)
  flags.DEFINE_integer("num_classes", 80, "Object classes, where the experiment leaves them to its data.", 1)
  flags.DEFINE_integer("num_objects", 100, "Rows for objects of an image.", lower_bound=1)
  flags.DEFINE_bool("fit", False, "Search for the largest batch that fits the devices, too.")
  launch_flags.define_path(
    "output", "Write the numbers to this JSON file, which is read first: an equal program is kept."
  )
  flags.DEFINE_bool("all", False, "Make the table over experiments and topologies in --workdir.")
  launch_flags.define_path("workdir", "Of --all: its folder, which holds a file for each program.")
  flags.DEFINE_list("experiments", None, "Of --all: experiments; by default all.")
  flags.DEFINE_list("topologies", ["v5e:1x1", "h100", "a100_80"], "Of --all: topologies.")
  flags.DEFINE_list("programs", ["train", "detect"], "Of --all: train, detect or both.")


def main(argv: list[str]) -> None:
  """Compiles one program and prints a report, or all of them and prints a table."""
  del argv
  if FLAGS.all:
    make_table()
    return
  if not FLAGS.experiment or not FLAGS.topology:
    raise app.UsageError("--experiment and --topology are needed, or --all")
  chip, mesh = chips.described_devices(FLAGS.topology)
  experiment = launch_flags.chosen_experiment()
  batch_size = FLAGS.batch_size or experiment.data.batch_size[FLAGS.what == "detect"]
  asked = programs.Asked(experiment, FLAGS.what, batch_size, FLAGS.num_classes, FLAGS.num_objects)
  report = reported(asked, chip, mesh)
  if FLAGS.fit:
    report["fit"] = fitted(asked, chip, mesh)
  print(compile_report.text(report))
  if FLAGS.output:
    write_json(pathlib.Path(FLAGS.output), report)


def reported(asked: programs.Asked, chip: Chip, mesh: Mesh) -> dict:
  """The report on a program; the compiler's part comes from --output where that holds an equal program."""
  program = programs.lowered(asked, mesh)
  same = {
    "experiment": asked.experiment.name,
    "topology": FLAGS.topology,
    "what": asked.what,
    "batch_size": asked.batch_size,
    "canvas": list(asked.canvas),
    "devices": mesh.size,
    "program": programs.fingerprint(program),
    "versions": versions(),
  }
  now = {"command": " ".join(["python -m launch.compile", *sys.argv[1:]]), "commit": commit()}
  past = past_report(pathlib.Path(FLAGS.output)) if FLAGS.output else {}
  if same.items() <= past.items() and "memory" in past:
    return past | now
  today = {"date": datetime.date.today().isoformat()}
  return same | now | today | programs.report(asked, mesh, program, chip)


def fitted(asked: programs.Asked, chip: Chip, mesh: Mesh) -> int:
  """The largest batch that fits the devices; what is asked says the rest. Prints what each batch needs."""

  def peak(count: int) -> int | None:
    size = count * mesh.size
    found = programs.peak_of(dataclasses.replace(asked, batch_size=size), mesh, chip)
    print(f"batch {size}: {f'peak {compile_report.gib(found)}' if found else 'refused'}", flush=True)
    return found

  return mesh.size * programs.largest(peak, chip.memory)


def versions() -> dict[str, str]:
  """The versions of the compilers and of what makes the programs, as far as they are installed."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def commit() -> str:
  """The commit of this checkout, with a '+' where files have changed since; '' where there is none."""
  git = ["git", "-C", str(pathlib.Path(__file__).parent)]
  asked = (("rev-parse", "--short=10", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
  try:
    head, changed = (subprocess.run([*git, *words], capture_output=True, text=True).stdout.strip() for words in asked)
  except OSError:  # no git
    return ""
  return head + ("+" if changed else "")


# ------------------------------------------------------------------------------------------------- the table


def make_table() -> None:
  """Compiles what is missing, one program after another, and writes the table after each.

  Raises:
    BusyError: another process is at work on --workdir.
    CompileError: a topology is unknown, or its compiler is missing.
    ExperimentError: an experiment is unknown.
  """
  if not FLAGS.workdir:
    raise app.UsageError("--all needs --workdir")
  unknown = set(FLAGS.programs) - {"train", "detect"}
  if unknown:
    raise app.UsageError(f"--programs={','.join(FLAGS.programs)}: a program is train or detect")
  wanted = [chips.chip_of(topology)[1] for topology in FLAGS.topologies]
  for chip in wanted:
    chips.check_compiler(chip)
  from launch import apart

  folder, names = pathlib.Path(FLAGS.workdir), FLAGS.experiments or experiments.names()
  for name in names:
    experiments.load(name)
  asked = [(name, topology, what) for what in FLAGS.programs for topology in FLAGS.topologies for name in names]
  paths = {each: folder / file_name(*each) for each in asked}
  with apart.alone(folder) as lock:
    for number, (each, path) in enumerate(paths.items(), 1):
      if is_current(past_report(path)):
        continue
      print(f"{number} of {len(asked)}: {' '.join(each)}", flush=True)
      options = options_of(*each)
      status, last = apart.run(lock, "compile", *options, f"--output={path}")
      if status in (-signal.SIGKILL, -signal.SIGTERM):  # from outside, or for want of memory: asked again next time
        print(f"{' '.join(each)}: ended by signal {-status}", file=sys.stderr)
      elif status:
        write_json(path, failure(*each, status, last))
      write_text(folder / "table.txt", compile_report.table(map(past_report, paths.values())) + "\n")
  print(compile_report.table(map(past_report, paths.values())))


def file_name(name: str, topology: str, what: str) -> str:
  """'demo.h100-8.train.json'."""
  return f"{pathlib.Path(name).stem}.{topology.replace(':', '-')}.{what}.json"


def is_current(past: dict) -> bool:
  """Whether a report is of this commit, without changes since, and of these versions."""
  current = commit()
  return bool(current) and current[-1] != "+" and (past.get("commit"), past.get("versions")) == (current, versions())


def options_of(name: str, topology: str, what: str) -> list[str]:
  """The flags of one program of the table: a batch that is the experiment's divided over `SHARED_BY` chips."""
  batch_size = num_devices(topology) * max(1, experiments.load(name).data.batch_size[what == "detect"] // SHARED_BY)
  return [f"--experiment={name}", f"--topology={topology}", f"--what={what}", f"--batch_size={batch_size}"]


def num_devices(topology: str) -> int:
  """1 of 'h100', 8 of 'h100:8', 4 of 'v5e:2x2'."""
  return math.prod(map(int, (chips.chip_of(topology)[2] or "1").split("x")))


def failure(name: str, topology: str, what: str, status: int, last: str) -> dict:
  """The report of a program whose process ended with a status other than 0, and with this line."""
  said = last.removeprefix("error: ") if status > 0 else f"the compiler ended with signal {-status}"
  experiment = experiments.load(name).name
  batch_size = int(options_of(name, topology, what)[-1].partition("=")[2])
  asked = {"experiment": experiment, "topology": topology, "what": what, "batch_size": batch_size}
  return asked | {"commit": commit(), "versions": versions(), "failed": said}


def past_report(path: pathlib.Path) -> dict:
  """What an earlier report holds; nothing where there is none, or none that can be read."""
  try:
    return dict(read_json(path)) if path.exists() else {}
  except (FileError, TypeError, ValueError):
    return {}


if __name__ == "__main__":
  launch_flags.run(main, define_flags, keep_programs=False)
