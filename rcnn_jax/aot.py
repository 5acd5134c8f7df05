"""What the text of a compiled program (HLO) tells: its collectives, its largest buffers, the lines that made them.

Sizes are those of one device.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
)
NO_BUFFER = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
FRAME = re.compile(r"^(\d+) \{file_location_id=(\d+)")
LOCATION = re.compile(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)")
FILE = re.compile(r'^(\d+) "(.*)"$')


@dataclasses.dataclass(frozen=True)
class Buffer:
  """What one instruction writes."""

  bytes: int  # in the device's main memory, with the padding of its tiles
  shape: str  # 'f32[2,800,1216,64]', or several of them
  opcode: str
  op_name: str  # where in the traced function; '' where the compiler does not say
  source: str  # 'FILE:LINE', or ''


def collectives(text: str) -> dict[str, dict[str, int]]:
  """{kind: {'count', 'bytes'}}: the collectives that stand in the program, bytes of what each gives to a device.

  What stands in the body of a loop counts once.
  """
  found: dict[str, dict[str, int]] = {}
  for _, shape, opcode, _ in _instructions(text):
    kind = opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
      continue
    arrays = [array_bytes(*each) for each in ARRAY.findall(shape)]
    if opcode != kind and kind in ("all-gather", "collective-permute"):
      arrays = arrays[1:2]  # such a start gives (what goes in, what comes out, …)
    row = found.setdefault(kind, {"count": 0, "bytes": 0})
    row["count"] += 1
    row["bytes"] += sum(arrays)
  return found


def largest_buffers(text: str, count: int) -> list[Buffer]:
  """The `count` largest results of instructions in the device's main memory, largest first.

  What is made beside other work counts where it is done: its start names what goes in as well. Left out are
  arguments, what lies in a memory on the chip, and the inside of fusions, which is never stored. Buffers that are not
  needed at one time share memory: the sum of the rows is no peak.
  """
  inside = set(re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", text)) - _called_in_turn(text)
  lines, named = source_lines(text), _named(text)
  rows = []
  for computation, shape, opcode, line in _instructions(text):
    if computation in inside or opcode in NO_BUFFER or opcode.endswith("-start"):
      continue
    arrays = [array for array in ARRAY.findall(shape) if not re.search(r"S\([1-9]\d*\)", array[2])]
    size = sum(array_bytes(*each) for each in arrays)
    shapes = " ".join(f"{kind}[{sides}]" for kind, sides, _ in arrays)
    if "op_name=" not in line:  # a fusion of several results has no name of its own: the last one's is given
      line = named.get(_first(r"calls=%?([\w.\-]+)", line), line)
    rows.append(Buffer(size, shapes, opcode, _first(r'op_name="([^"]*)"', line), _source(line, lines)))
  return sorted(rows, key=lambda row: -row.bytes)[:count]


def counted(module: Any) -> dict[str, float]:
  """XLA's own count over a program in its language: {'flops', 'bytes accessed', …}; {} where JAX has no CPU backend.

  A GPU's compiler turns products into calls of libraries, in which nothing is counted: count before it compiles.
  """
  import jax
  from jax._src.lib import _jax  # no public part of JAX

  try:
    (device, *_) = jax.devices("cpu")
  except RuntimeError:  # JAX_PLATFORMS leaves it out
    return {}
  return _jax.hlo_module_cost_analysis(device.client, module)


def custom_calls(text: str) -> dict[str, int]:
  """{target: how many}: the calls of libraries, and of the compiler's own routines, that stand in the program."""
  found: dict[str, int] = {}
  for _, _, opcode, line in _instructions(text):
    if opcode == "custom-call":
      target = _first(r'custom_call_target="([^"]*)"', line)
      found[target] = found.get(target, 0) + 1
  return found


def library_bytes(text: str) -> int:
  """Bytes that calls of libraries read and write, by the shapes of what goes in and comes out.

  As in XLA's own count, the body of a loop counts once, and of the branches of a conditional the largest.
  """
  parts: dict[str, list[tuple[str, str, str]]] = {}
  sizes: dict[str, int] = {}
  for computation, shape, opcode, line in _instructions(text):
    parts.setdefault(computation, []).append((shape, opcode, line))
    sizes[INSTRUCTION.match(line)[1]] = sum(array_bytes(*each) for each in ARRAY.findall(shape))

  def moved(computation: str) -> int:
    total = 0
    for shape, opcode, line in parts.get(computation, ()):
      if opcode == "custom-call":
        operands = re.findall(r"%([\w.\-]+)", line.partition("custom-call(")[2].partition(")")[0])
        total += sum(sizes.get(name, 0) for name in (*operands, INSTRUCTION.match(line)[1]))
      elif opcode == "conditional":
        total += max(map(moved, _branches(line)), default=0)
      elif opcode in ("while", "call"):
        total += sum(map(moved, re.findall(r"(?:body|condition|to_apply)=%?([\w.\-]+)", line)))
    return total

  return moved(_first(r"(?m)^ENTRY %?([\w.\-]+)", text))


def source_lines(text: str) -> dict[int, str]:
  """{number of a stack frame: 'FILE:LINE'} from the tables at the head of the text; {} where it has none."""
  tables: dict[str, list[str]] = {}
  name = ""
  for line in text.splitlines():
    if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
      name = line
    elif not line:
      name = ""
    elif name:
      tables.setdefault(name, []).append(line)
  rows = lambda table, pattern: [match.groups() for match in map(pattern.match, tables.get(table, ())) if match]
  files = dict(rows("FileNames", FILE))
  places = {place: f"{files.get(file, '?')}:{line}" for place, file, line in rows("FileLocations", LOCATION)}
  return {int(frame): places[place] for frame, place in rows("StackFrames", FRAME) if place in places}


def array_bytes(kind: str, sides: str, layout: str = "") -> int:
  """Bytes of an array such as ('bf16', '2,3', '1,0:T(8,128)'), its minor sides padded to the layout's tile."""
  lengths = [int(re.sub(r"[<= ]", "", side)) for side in sides.split(",") if side]
  order, _, tiles = layout.partition(":")
  tile = re.match(r"T\(([\d,]+)\)", tiles)
  if tile and lengths and order:
    minor = [int(axis) for axis in order.split(",")]
    for axis, side in zip(minor, reversed([int(side) for side in tile[1].split(",")])):
      lengths[axis] = -(-lengths[axis] // side) * side
  return math.ceil(math.prod(lengths) * _bits(kind) / 8)


def _bits(kind: str) -> int:
  """Bits of a number: 'pred' has 8, 'f32' 32, 'f8e4m3fn' 8, 'c64' 64."""
  return 8 if kind == "pred" else int(_first(r"(\d+)", kind))


def _instructions(text: str) -> Iterator[tuple[str, str, str, str]]:
  """(computation, shape, opcode, the line) of each instruction."""
  computation = ""
  for line in text.splitlines():
    if match := INSTRUCTION.match(line):
      yield computation, match[2], match[3], line
    elif match := COMPUTATION.match(line):
      computation = match[1]


def _branches(line: str) -> list[str]:
  """The computations that a conditional chooses from."""
  several = _first(r"branch_computations=\{([^}]*)\}", line)
  return re.findall(r"[\w.\-]+", several) or re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)


def _called_in_turn(text: str) -> set[str]:
  """The computations that stand in a call of their own, whose results are stored like any other's."""
  calls = (line for _, _, opcode, line in _instructions(text) if opcode == "call")
  return {_first(r"to_apply=%?([\w.\-]+)", line) for line in calls}


def _named(text: str) -> dict[str, str]:
  """{computation: the last of its lines that has a name of the traced function}."""
  return {computation: line for computation, _, _, line in _instructions(text) if "op_name=" in line}


def _source(line: str, lines: dict[int, str]) -> str:
  if file := _first(r'source_file="([^"]*)"', line):
    return file + ":" + _first(r"source_line=(\d+)", line)
  frame = _first(r"stack_frame_id=(\d+)", line)
  return lines.get(int(frame), "") if frame else ""


def _first(pattern: str, text: str) -> str:
  match = re.search(pattern, text)
  return match[1] if match else ""
