"""Compiles an experiment's train step or detection for TPUs that are not there, and tells what it would need.

    python -m launch.compile --experiment=NAME_OR_FILE --topology=v5e:2x2 [--what=train|detect] [--batch_size=N]

The compiler is the one that a machine with these TPUs would run (the extra `tpu`); the program is never run. See
docs/compile.md.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from launch import flags as launch_flags
from launch.benchmark import met, synthetic_batch
from rcnn_jax import aot
from rcnn_jax.data import pipeline
from rcnn_jax.experiment import Experiment
from rcnn_jax.models.detector import init_variables
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training import step as steps

FLAGS = flags.FLAGS
NUM_BUFFERS = 10
LONGEST = 300  # characters of what the compiler says


@dataclasses.dataclass(frozen=True)
class Chip:
  """What its maker says of a device."""

  peak: float  # FLOP/s in bfloat16
  bandwidth: float  # bytes/s of its main memory
  memory: int  # bytes of its main memory, of which the system keeps a little
  topologies: tuple[str, ...]  # the names that are accepted


# cloud.google.com/tpu/docs/v5e, /v6e and /v5p: peak compute per chip (bf16), HBM bandwidth and capacity per chip.
CHIPS = {
  "v5e": Chip(197e12, 819e9, 16 * 2**30, ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
  "v6e": Chip(918e12, 1640e9, 32 * 2**30, ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
  "v5p": Chip(459e12, 2765e9, 95 * 2**30, ("1x1x1", "2x2x1", "2x2x2")),
}

# The library looks for a machine of Google's cloud and logs that it finds none; and only one process may hold it, as
# is right for one that runs a TPU and needless for one that compiles. What the environment says goes before.
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class CompileError(RuntimeError):
  """A topology, a compiler or a program that cannot be had."""


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_experiment()
  flags.DEFINE_string("topology", None, f"The devices: {known_topologies()}.", required=True)
  flags.DEFINE_enum("what", "train", ["train", "detect"], "The program.")
  flags.DEFINE_integer("batch_size", None, "Images on all devices; by default the experiment's.", lower_bound=1)
  flags.DEFINE_integer("num_classes", 80, "Object classes, where the experiment leaves them to its data.")
  flags.DEFINE_integer("num_objects", 100, "Rows for objects of an image.", lower_bound=1)
  launch_flags.define_path("output", "Write the numbers to this JSON file.")


def main(argv: list[str]) -> None:
  """Compiles, prints a report, writes --output."""
  del argv
  chip, mesh = described_devices(FLAGS.topology)
  experiment = launch_flags.chosen_experiment()
  batch_size = FLAGS.batch_size or experiment.data.batch_size[FLAGS.what == "detect"]
  meshes.check_batch_size(batch_size, mesh)
  compiled, seconds = compile_program(*program(experiment, FLAGS.what, batch_size, mesh))
  report = {
    "command": " ".join(["python -m launch.compile", *sys.argv[1:]]),
    "experiment": experiment.name,
    "topology": FLAGS.topology,
    "what": FLAGS.what,
    "batch_size": batch_size,
    "devices": mesh.size,
    "compile_s": seconds,
    "date": datetime.date.today().isoformat(),
    "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax")},
  } | told(compiled, chip)
  print(table(report))
  if FLAGS.output:
    with open(FLAGS.output, "w") as file:
      json.dump(report, file, indent=1)


def known_topologies() -> str:
  """The names that --topology takes, in a line."""
  return ", ".join(f"{kind}:{'|'.join(chip.topologies)}" for kind, chip in CHIPS.items())


def described_devices(topology: str) -> tuple[Chip, Mesh]:
  """(what is known of the chip, a mesh of devices that can be compiled for and hold no arrays).

  Raises:
    CompileError: the topology is unknown, or the package with its compiler is missing or refuses it.
  """
  kind, _, shape = topology.partition(":")
  if kind not in CHIPS or shape not in CHIPS[kind].topologies:
    raise CompileError(f"--topology={topology} is unknown; known are {known_topologies()}")
  if importlib.util.find_spec("libtpu") is None:
    raise CompileError("the TPU's compiler is missing; pip install 'rcnn-jax[tpu]' brings it (the package libtpu)")
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")  # tracing needs a device; a TPU of this machine is not touched
  from jax.experimental import topologies

  try:
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
  except (RuntimeError, ValueError) as error:
    raise CompileError(f"the compiler refuses {topology}: {' '.join(str(error).split())[:LONGEST]}") from error
  return CHIPS[kind], Mesh(np.array(devices), ("data",))


def program(experiment: Experiment, what: str, batch_size: int, mesh: Mesh) -> tuple[Any, tuple]:
  """(the jitted function, the shapes of its inputs with their places on the mesh)."""
  model = met(experiment.model)
  canvas = pipeline.example_canvas(experiment.data)
  variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), canvas))
  copies, divided = meshes.replicated(mesh), meshes.along_data(mesh)
  batch = shapes(synthetic_batch(experiment, batch_size), divided)
  if what == "train":
    stage = experiment.stages[0]
    state = jax.eval_shape(lambda variables: steps.first_state(variables, stage), variables)
    return steps.make_train_step(model, stage, mesh, seed=0, num_steps=10_000), (shapes(state, copies), batch)
  detect = lambda variables, batch: model.apply(variables, batch, method="detect")
  return jax.jit(detect, in_shardings=(copies, divided)), (shapes(variables, copies), batch.replace(truth=None))


def shapes(tree: Any, sharding: jax.sharding.Sharding) -> Any:
  """Shapes and dtypes of arrays in place of the arrays."""
  described = lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype), sharding=sharding)
  return jax.tree.map(described, tree)


def compile_program(function: Any, inputs: tuple) -> tuple[Any, float]:
  """(the compiled program, the seconds that the compiler took); raises CompileError where it refuses."""
  lowered = function.lower(*inputs)
  began = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    raise CompileError(refusal(str(error))) from error
  return compiled, time.perf_counter() - began


def refusal(said: str) -> str:
  """What the compiler said, in one line."""
  said = " ".join(said.split())
  if "RESOURCE_EXHAUSTED" in said:
    needs = re.search(r"the total memory required.*?\)(?: exceeds [^()]*\(\S+\))?", said)
    return f"the program does not fit the device's memory: {(needs[0] if needs else said)[:LONGEST]}"
  return f"the compiler refuses the program: {said[:LONGEST]}"


def told(compiled: Any, chip: Chip) -> dict:
  """What a compiled program tells: memory, work, collectives and the largest buffers, each of one device."""
  memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
  parts = {name: getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp")}
  whole = parts["argument"] + parts["output"] - parts["alias"] + parts["temp"]
  flops, moved = cost.get("flops", 0.0), cost.get("bytes accessed", 0.0)
  return {
    "memory": parts | {"peak": getattr(memory, "peak_memory_in_bytes", 0) or whole, "device": chip.memory},
    "flops": flops,
    "bytes": moved,
    "roofline": roofline(flops, moved, chip),
    "collectives": aot.collectives(text),
    "buffers": [dataclasses.asdict(row) for row in aot.largest_buffers(text, NUM_BUFFERS)],
  }


def roofline(flops: float, moved: float, chip: Chip) -> dict:
  """The least seconds that a step can take by the chip's peak numbers, and which of them bounds it."""
  seconds = {"arithmetic": flops / chip.peak, "memory": moved / chip.bandwidth}
  bound = max(seconds, key=seconds.get)
  return {"s": seconds[bound], "bound": bound} | {f"{name}_s": value for name, value in seconds.items()}


def table(report: dict) -> str:
  """The report for people."""
  memory, line = report["memory"], report["roofline"]
  gib = lambda size: f"{size / 2**30:.2f} GiB"
  spare = memory["device"] - memory["peak"]
  verdict = f"fits, {gib(spare)} are left" if spare >= 0 else f"does not fit, {gib(-spare)} too much"
  versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
  lines = [
    f"{report['experiment']}: {report['what']}, batch {report['batch_size']} on {report['devices']} device(s) of "
    f"{report['topology']}; compiled in {report['compile_s']:.1f} s by {versions}",
    "each device:",
    f"  memory       {gib(memory['peak'])} of {gib(memory['device'])}: {verdict}",
    f"               arguments {gib(memory['argument'])}, results {gib(memory['output'])} (in place "
    f"{gib(memory['alias'])}), temporaries {gib(memory['temp'])}",
    f"  work         {report['flops'] / 1e9:.1f} GFLOP, {report['bytes'] / 1e9:.2f} GB moved; loop bodies count once",
    f"  roofline     {line['s'] * 1e3:.2f} ms at least, bound by {line['bound']} (arithmetic "
    f"{line['arithmetic_s'] * 1e3:.2f} ms, memory {line['memory_s'] * 1e3:.2f} ms)",
  ]
  for kind, row in report["collectives"].items():
    lines.append(f"  {kind:<22}{row['count']:4d} x, {row['bytes'] / 2**20:.1f} MiB")
  lines.append("  largest buffers (they share memory over time):")
  for row in report["buffers"]:
    made_by = f"{row['op_name'] or row['opcode']}  {row['source']}"
    lines.append(f"  {row['bytes'] / 2**20:9.1f} MiB  {shortened(row['shape'])}  {made_by}")
  return "\n".join(lines)


def shortened(shape: str) -> str:
  """The first of many arrays, and how many more there are."""
  first, *more = shape.split(" ")
  return f"{first} and {len(more)} more" if more else first


if __name__ == "__main__":
  launch_flags.run(main, define_flags, keep_programs=False)
