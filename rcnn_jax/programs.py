"""An experiment's train step and detection as programs for a mesh, and what the compiled program tells.

Nothing is run and no array is made: the devices of the mesh need not be there (`rcnn_jax.chips`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from rcnn_jax import aot
from rcnn_jax import experiment as experiments
from rcnn_jax.chips import LONGEST, Chip, CompileError, compiler_options
from rcnn_jax.experiment import Experiment
from rcnn_jax.models.detector import variable_shapes
from rcnn_jax.synthetic import largest_canvas, sized_model, synthetic_batch
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training import step as steps
from rcnn_jax.training.optim import TrainingError

NUM_BUFFERS = 10


@dataclasses.dataclass(frozen=True)
class Asked:
  """A program that is asked for."""

  experiment: Experiment
  what: str  # 'train' or 'detect'
  batch_size: int  # of all devices
  num_classes: int = 80  # where the experiment leaves them to its data
  num_objects: int = 100  # rows of an image for them

  @property
  def canvas(self) -> tuple[int, int]:
    """(height, width): the largest that the program is compiled for."""
    return largest_canvas(self.experiment.data, self.what)


def lowered(asked: Asked, mesh: Mesh) -> Any:
  """The program before it is compiled; raises TrainingError where the devices do not divide the batch.

  A train step has the axes and the rules of the experiment's own mesh, over the devices of `mesh`.
  """
  meshes.check_batch_size(asked.batch_size, mesh)
  if mesh.size % asked.experiment.mesh.model:
    raise TrainingError(f"mesh.model={asked.experiment.mesh.model} does not divide the {mesh.size} device(s)")
  if asked.what == "train":
    mesh = Mesh(mesh.devices.reshape(-1, asked.experiment.mesh.model), ("data", "model"))
  model = sized_model(asked.experiment, asked.num_classes)
  variables = variable_shapes(model, asked.canvas)
  copies, divided = meshes.replicated(mesh), meshes.along_data(mesh)
  # One image is drawn; of the others the shape is enough.
  sizes = {"num_objects": asked.num_objects, "num_classes": asked.num_classes, "canvas": asked.canvas}
  one = synthetic_batch(asked.experiment, 1, **sizes)
  batch = shapes(one, divided, asked.batch_size)
  if asked.what == "train":
    stage = asked.experiment.stages[0]
    state = jax.eval_shape(lambda variables: steps.first_state(variables, stage), variables)
    rules = asked.experiment.mesh.rules
    step = steps.make_train_step(model, stage, mesh, seed=0, num_steps=10_000, rules=rules)
    return step.lower(jax.tree.map(shape, state, meshes.layout(state, mesh, rules)), batch)
  # As evaluation does: each device detects in its own images (evaluation/detect.py).
  own = meshes.rows(mesh)
  detect = jax.shard_map(
    lambda variables, batch: model.apply(variables, batch, method="detect"),
    mesh=mesh,
    in_specs=(PartitionSpec(), own),
    out_specs=own,
    check_vma=False,
  )
  return jax.jit(detect, in_shardings=(copies, divided)).lower(shapes(variables, copies), batch.replace(truth=None))


def shapes(tree: Any, sharding: jax.sharding.Sharding, rows: int | None = None) -> Any:
  """Shapes and dtypes of arrays in place of the arrays, with `rows` as the leading axis where that is given."""
  return jax.tree.map(lambda x: shape(x, sharding, rows), tree)


def shape(x: Any, sharding: jax.sharding.Sharding, rows: int | None = None) -> jax.ShapeDtypeStruct:
  """Of one array."""
  sides = x.shape if rows is None else (rows, *x.shape[1:])
  return jax.ShapeDtypeStruct(sides, jax.dtypes.canonicalize_dtype(x.dtype), sharding=sharding)


def fingerprint(program: Any) -> str:
  """Equal for equal programs: what is compiled, without the lines that made it."""
  return hashlib.sha256(program.as_text().encode()).hexdigest()[:16]


def compiled(program: Any, chip: Chip) -> tuple[Any, float]:
  """(the compiled program, the seconds that the compiler took); raises CompileError where it refuses."""
  began = time.perf_counter()
  try:
    done = program.compile(compiler_options=compiler_options(chip))
  except jax.errors.JaxRuntimeError as error:
    raise CompileError(refusal(str(error))) from error
  return done, time.perf_counter() - began


def refusal(said: str) -> str:
  """What the compiler said, in one line."""
  said = " ".join(said.split())
  if "RESOURCE_EXHAUSTED" in said:
    needs = re.search(r"the total memory required.*?\)(?: exceeds [^()]*\(\S+\))?", said)
    return f"the program does not fit the device's memory: {(needs[0] if needs else said)[:LONGEST]}"
  return f"the compiler refuses the program: {said[:LONGEST]}"


def memory_of(done: Any) -> dict[str, int]:
  """Bytes of one device: arguments, results, results in the place of arguments, temporaries, the peak."""
  memory = done.memory_analysis()
  parts = {name: getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp")}
  whole = parts["argument"] + parts["output"] - parts["alias"] + parts["temp"]
  return parts | {"peak": getattr(memory, "peak_memory_in_bytes", 0) or whole}


def work_of(asked: Asked, mesh: Mesh, program: Any, done: Any, chip: Chip) -> dict[str, float]:
  """FLOPs and bytes of one device, and where the compiler has it, its own estimate of the seconds."""
  if not chip.target:
    cost = done.cost_analysis() or {}
    # Of a call of its own, which joins bits and takes no time, the compiler says -1 s.
    seconds = cost.get("optimal_seconds", 0.0) + aot.custom_calls(done.as_text()).get("ConcatBitcast", 0)
    estimate = {"estimate_s": seconds} if seconds > 0 else {}
    return {"flops": cost.get("flops", 0.0), "bytes": cost.get("bytes accessed", 0.0)} | estimate
  # The GPU's compiler counts nothing. FLOPs are those of the program before it is compiled, where products are not
  # yet calls of a library, for one device's images on one device; bytes those of the compiled program.
  if mesh.size > 1:
    share = dataclasses.replace(asked, batch_size=asked.batch_size // mesh.size)
    share = dataclasses.replace(share, experiment=dataclasses.replace(asked.experiment, mesh=experiments.Mesh()))
    program = lowered(share, Mesh(mesh.devices[:1], mesh.axis_names))
  flops = aot.counted(program.compiler_ir("hlo").as_hlo_module())["flops"]
  (module,) = done.runtime_executable().hlo_modules()
  # Of a library's call the count says -1 byte.
  calls = sum(aot.custom_calls(done.as_text()).values())
  moved = aot.counted(module)["bytes accessed"] + calls + aot.library_bytes(done.as_text())
  return {"flops": flops, "bytes": moved}


def roofline(flops: float, moved: float, chip: Chip, dtype: str) -> dict:
  """The least seconds that a step can take by the chip's peak numbers, and which of them bounds it."""
  seconds = {"arithmetic": flops / getattr(chip, dtype), "memory": moved / chip.bandwidth}
  bound = max(seconds, key=seconds.get)
  return {"s": seconds[bound], "bound": bound} | {f"{name}_s": value for name, value in seconds.items()}


def report(asked: Asked, mesh: Mesh, program: Any, chip: Chip) -> dict:
  """Compiles a program and says what it tells: memory, work, collectives, the largest buffers, of one device.

  Raises:
    CompileError: the compiler refuses the program.
  """
  done, seconds = compiled(program, chip)
  text = done.as_text()
  work = work_of(asked, mesh, program, done, chip)
  return {
    "compile_s": seconds,
    "memory": memory_of(done) | {"device": chip.memory, "lent": int(chip.memory * chip.lent)},
    **work,
    "roofline": roofline(work["flops"], work["bytes"], chip, asked.experiment.model.dtype),
    "collectives": aot.collectives(text),
    "buffers": [dataclasses.asdict(row) for row in aot.largest_buffers(text, NUM_BUFFERS)],
  }


def peak_of(asked: Asked, mesh: Mesh, chip: Chip) -> int | None:
  """Bytes of a device at the peak; None where the compiler refuses the program for want of memory."""
  try:
    return memory_of(compiled(lowered(asked, mesh), chip)[0])["peak"]
  except CompileError as error:
    if "does not fit" not in str(error):
      raise
    return None


def largest(peak: Callable[[int], int | None], room: int) -> int:
  """The largest count of images, 0 for none, of which the peak is within the room, where more images need more.

  Asked are 1, 2, and then the count that would fill the room if memory grew as from one count to the next; in turns
  with the middle between the largest that fits and the smallest that does not.
  """
  peaks: dict[int, int | None] = {}
  low, high, middle = 0, math.inf, False
  while high - low > 1:
    if high == math.inf:
      asked = max(low + 1, _filling(peaks, room))
    else:
      asked = (low + high) // 2 if middle else min(max(low + 1, _filling(peaks, room)), high - 1)
      middle = not middle
    peaks[asked] = peak(asked)
    fits = peaks[asked] is not None and peaks[asked] <= room
    low, high = (asked, high) if fits else (low, asked)
  return low


def _filling(peaks: dict[int, int | None], room: int) -> int:
  """The count that fills the room, by the straight line through the two peaks nearest to it; 0 without two."""
  known = sorted((abs(peak - room), count, peak) for count, peak in peaks.items() if peak is not None)[:2]
  if len(known) < 2:
    return 0
  (_, count, peak), (_, other, other_peak) = known
  growth = (peak - other_peak) / (count - other)
  return count + math.floor((room - peak) / growth) if growth > 0 else 0
