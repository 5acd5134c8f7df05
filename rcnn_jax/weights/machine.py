"""The language of pickles, as far as files of weights are written in it, carried out within bounds.

Python's own unpickler can be made to crash, to hang and to fill the memory by files of a few bytes: by a key of a
dict that is a tuple in a tuple in a tuple and so on, by a large index into its memory, by a length that nothing
follows. Here an instruction takes time and memory in proportion to the bytes that it is written in, and what a
pickle names is looked up in a table that the caller gives.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

MOST_INSTRUCTIONS = 2_000_000  # of a pickle, a few bytes each, that may make objects of a hundred
LONGEST_LINE = 1 << 16  # bytes, of what the oldest protocol writes as text
LONGEST_INTEGER = 255  # bytes
LONGEST_KEY = 16  # elements of a tuple that is a key


class Fault(ValueError):
  """A pickle that does what no file of weights does; the message says what."""


class CutShort(Fault):
  """A pickle that ends before its last instruction."""

  def __init__(self):
    super().__init__("it ends in the middle of a pickle")


class Value:
  """What a pickle names, and what is made of that: all that it can be asked for is refused, but for what is below."""

  __slots__ = ()

  def call(self, arguments: tuple) -> Any:
    """What calling it with these arguments gives."""
    raise Fault(f"it calls {type(self).__name__}, which is no function")

  def build(self, state: Any) -> None:
    """Sets its state."""
    raise Fault(f"it sets the state of {type(self).__name__}")


class Stream:
  """The bytes of a file from where it stands, as the numbers and texts that instructions have for operands."""

  def __init__(self, file: BinaryIO, length: int):
    """length: bytes of the whole file."""
    self._file, self._left, self.read = file, length - file.tell(), 0

  def take(self, count: int) -> bytes:
    """The next bytes."""
    if not 0 <= count <= self._left:
      raise CutShort
    self._left -= count
    self.read += count
    return self._file.read(count)

  def line(self) -> bytes:
    """The bytes up to the next line's end, without it."""
    line = self._file.readline(LONGEST_LINE)
    self._left -= len(line)
    self.read += len(line)
    if not line.endswith(b"\n"):
      raise CutShort
    return line[:-1]

  def number(self, size: int) -> int:
    return int.from_bytes(self.take(size), "little")

  def integer(self, size: int) -> int:
    if size > LONGEST_INTEGER:
      raise Fault(f"an integer of {size} bytes")
    return int.from_bytes(self.take(size), "little", signed=True)

  def text(self, size: int) -> str:
    return self.take(self.number(size)).decode("utf-8", "surrogatepass")

  def decimal(self) -> int | bool:
    line = self.line()
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line.rstrip(b"L"))

  def quoted(self) -> str:
    line = self.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
      raise Fault("a text without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")


# Instructions that push one value, made of their operands alone.
PUSHED: dict[bytes, Callable[[Stream], Any]] = {
  b"N": lambda s: None,
  b"\x88": lambda s: True,
  b"\x89": lambda s: False,
  b"I": Stream.decimal,
  b"L": Stream.decimal,
  b"J": lambda s: s.integer(4),
  b"K": lambda s: s.number(1),
  b"M": lambda s: s.number(2),
  b"\x8a": lambda s: s.integer(s.number(1)),
  b"\x8b": lambda s: s.integer(s.number(4)),
  b"F": lambda s: float(s.line()),
  b"G": lambda s: struct.unpack(">d", s.take(8))[0],
  b"S": Stream.quoted,
  b"T": lambda s: s.take(s.number(4)).decode("latin1"),
  b"U": lambda s: s.take(s.number(1)).decode("latin1"),
  b"V": lambda s: s.line().decode("raw-unicode-escape"),
  b"\x8c": lambda s: s.text(1),
  b"X": lambda s: s.text(4),
  b"\x8d": lambda s: s.text(8),
  b"C": lambda s: s.take(s.number(1)),
  b"B": lambda s: s.take(s.number(4)),
  b"\x8e": lambda s: s.take(s.number(8)),
  b"\x96": lambda s: s.take(s.number(8)),
  b"]": lambda s: [],
  b")": lambda s: (),
  b"}": lambda s: {},
  b"\x8f": lambda s: [],  # a set, of which nothing is asked
}


class Machine:
  """One run of a pickle.

  Args:
    stream: where the pickle begins.
    names: what it may name, (module, name) -> value.
    persistent: makes a value of a reference to something outside of the pickle.
  """

  def __init__(self, stream: Stream, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any]):
    self._stream, self._names, self._persistent = stream, names, persistent
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}
    self._work = 0

  def run(self) -> Any:
    """What the pickle makes. Raises Fault, and other ValueErrors for operands that are none."""
    for _ in range(MOST_INSTRUCTIONS):
      code = self._stream.take(1)
      if code == b".":
        return self._pop()
      if code in PUSHED:
        self._stack.append(PUSHED[code](self._stream))
      elif code in OTHERS:
        OTHERS[code](self)
      else:
        raise Fault(f"an instruction {code!r}, which no file of weights has")
    raise Fault(f"more than {MOST_INSTRUCTIONS:,} instructions")

  # What the other instructions do, by their names in Python's pickletools.

  def mark(self) -> None:
    self._marks.append(len(self._stack))

  def tuple_(self) -> None:
    self._stack.append(tuple(self._marked()))

  def tuple_of(self, count: int) -> None:
    self._stack.append(tuple([self._pop() for _ in range(count)][::-1]))

  def list_(self) -> None:
    self._stack.append(self._marked())

  def dict_(self) -> None:
    items = self._marked()
    self._stack.append({})
    self._set(items)

  def append(self) -> None:
    value = self._pop()
    self._top(list).append(value)

  def appends(self) -> None:
    values = self._marked()
    self._top(list).extend(values)

  def setitem(self) -> None:
    value, key = self._pop(), self._pop()
    self._set([key, value])

  def setitems(self) -> None:
    self._set(self._marked())

  def dup(self) -> None:
    self._stack.append(self._top(object))

  def get(self, index: int) -> None:
    if index not in self._memo:
      raise Fault(f"it looks up number {index}, which it has not noted")
    self._stack.append(self._memo[index])

  def put(self, index: int) -> None:
    self._memo[index] = self._top(object)

  def memoize(self) -> None:
    self.put(len(self._memo))

  def stack_global(self) -> None:
    name, module = self._pop(), self._pop()
    if not (isinstance(name, str) and isinstance(module, str)):
      raise Fault("a name that is no text")
    self.find(module, name)

  def find(self, module: str, name: str) -> None:
    if (module, name) not in self._names:
      named = f"{module}.{name}"[:200]
      raise Fault(f"it names {named}, which is neither a tensor nor a plain container")
    self._stack.append(self._names[module, name])

  def reduce(self) -> None:
    arguments, function = self._pop(), self._pop()
    if not (isinstance(function, Value) and isinstance(arguments, tuple)):
      raise Fault("it calls what is no function")
    # The arguments may be noted, and be worked through again and again at a few bytes a time.
    self._work += sum(len(each) for each in arguments if isinstance(each, (str, bytes, tuple, list, dict)))
    if self._work > 1000 + 4 * self._stream.read:
      raise Fault("it uses the same arguments over and over")
    self._stack.append(function.call(arguments))

  def build(self) -> None:
    state, value = self._pop(), self._top(object)
    if not isinstance(value, Value):
      raise Fault(f"it sets the state of a {type(value).__name__}")
    value.build(state)

  def persistent(self, reference: Any) -> None:
    self._stack.append(self._persistent(reference))

  # ----------------------------------------------------------------------------------------------------- the stack

  def _pop(self) -> Any:
    if len(self._stack) <= (self._marks[-1] if self._marks else 0):
      raise Fault("it takes a value that it has not made")
    return self._stack.pop()

  def _top(self, kind: type) -> Any:
    if not self._stack or not isinstance(self._stack[-1], kind):
      raise Fault(f"it fills a {kind.__name__} that is none")
    return self._stack[-1]

  def _marked(self) -> list[Any]:
    """All values since the last mark, which are taken off."""
    if not self._marks:
      raise Fault("it takes values that it has not marked")
    first = self._marks.pop()
    values = self._stack[first:]
    del self._stack[first:]
    return values

  def _set(self, items: list[Any]) -> None:
    """Puts keys and values, one after the other, into the dict on top."""
    if len(items) % 2:
      raise Fault("a key without a value")
    self._top(dict).update(zip(map(checked_key, items[::2]), items[1::2]))


def checked_key(value: Any) -> Any:
  """The value, if to look it up takes no longer than to write it down."""
  if not _plain(value) and not (isinstance(value, tuple) and len(value) <= LONGEST_KEY and all(map(_plain, value))):
    raise Fault(f"a key that is a {type(value).__name__} and no plain value")
  return value


def _plain(value: Any) -> bool:
  """Whether it is text, bytes or a number; large integers, of which many can be made with one hash, are none."""
  small = isinstance(value, int) and abs(value) < 1 << 60
  return small or value is None or isinstance(value, (str, bytes, float))


OTHERS: dict[bytes, Callable[[Machine], Any]] = {
  b"(": Machine.mark,
  b"t": Machine.tuple_,
  b"\x85": lambda m: m.tuple_of(1),
  b"\x86": lambda m: m.tuple_of(2),
  b"\x87": lambda m: m.tuple_of(3),
  b"l": Machine.list_,
  b"d": Machine.dict_,
  b"\x91": Machine.list_,  # a frozenset
  b"a": Machine.append,
  b"e": Machine.appends,
  b"s": Machine.setitem,
  b"u": Machine.setitems,
  b"\x90": Machine.appends,  # to a set
  b"0": lambda m: m._pop(),
  b"1": lambda m: m._marked(),
  b"2": Machine.dup,
  b"g": lambda m: m.get(int(m._stream.line())),
  b"h": lambda m: m.get(m._stream.number(1)),
  b"j": lambda m: m.get(m._stream.number(4)),
  b"p": lambda m: m.put(int(m._stream.line())),
  b"q": lambda m: m.put(m._stream.number(1)),
  b"r": lambda m: m.put(m._stream.number(4)),
  b"\x94": Machine.memoize,
  b"c": lambda m: m.find(m._stream.line().decode(), m._stream.line().decode()),
  b"\x93": Machine.stack_global,
  b"R": Machine.reduce,
  b"\x81": Machine.reduce,  # NEWOBJ: what is made of a class and its arguments
  b"b": Machine.build,
  b"P": lambda m: m.persistent(m._stream.line().decode()),
  b"Q": lambda m: m.persistent(m._pop()),
  b"\x80": lambda m: m._stream.take(1),  # the protocol
  b"\x95": lambda m: m._stream.take(8),  # how long a frame is: nothing depends on it
}
