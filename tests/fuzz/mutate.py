"""Damages sound inputs as files get damaged, and as those who mean harm would: by structure, and by bytes.

Every function takes a generator of random numbers and returns something new; the same numbers give the same.
"""

from __future__ import annotations

import copy
import io
import json
import random
import re
import zipfile
from typing import Any

STRINGS = (
  *("", " ", "0", "1", "-1", "80.0", "nan", "1e5", "None", "true", "a" * 300, "é", "照片", "\n", "\0", "\ud800"),
  *("../secret.png", "/etc/passwd", "..", ".", "~", "a/../../secret.png", "C:\\a.png", "%s%n", "[1]", "*", "👍"),
)
NUMBERS = (
  *(0, 1, -1, 2, 7, 0.5, -0.5, 80.0, 1e-300, 1e18, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
  *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400),
)
VALUES = (
  *(None, True, False, [], {}, [[]], [None], [{}], {"": None}, [1, 2, 3, 4], [[1, 2, 3]]),
  *({"size": [4, 4], "counts": "04"}, {"size": [2**31, 2**31], "counts": [0, 2**62]}),
  *([[0, 0, 1e308, 0, 0, 1e308]], {"class": "os:system"}),
)
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "gbk", "shift_jis", "utf-7", "cp1252")
INTEGERS = tuple(value.to_bytes(4, "little") for value in (0, 1, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1))


def mutated(kind: str, seed: bytes, draw: random.Random) -> bytes:
  """A damaged input of a kind: 'json', 'lines' (of JSON), 'xml', 'text', 'bytes', 'zip' or 'safetensors'."""
  change = {"json": of_json, "lines": of_lines, "xml": of_xml, "text": of_text, "zip": of_zip}
  change["safetensors"] = of_safetensors
  data = seed
  if kind in change and draw.random() < 0.9:
    data = change[kind](seed, draw)
  if kind not in change or draw.random() < 0.15:
    data = of_bytes(data, draw)
  return data


# ---------------------------------------------------------------------------------------------- JSON


def of_json(seed: bytes, draw: random.Random) -> bytes:
  """One to five nodes of the tree changed, then perhaps the text or its encoding."""
  try:
    tree = json.loads(seed)
  except (ValueError, RecursionError):
    return of_bytes(seed, draw)
  for _ in range(draw.choice((1, 1, 1, 2, 3, 5))):
    tree = _changed(tree, draw)
  try:
    text = json.dumps(tree, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, None, 1)))
  except (ValueError, RecursionError):
    return seed
  return _encoded(_spliced(text, draw), draw)


def _nodes(tree: Any, path: tuple = ()) -> list[tuple]:
  parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
  return [path, *(found for key, part in parts for found in _nodes(part, (*path, key)))]


def _changed(tree: Any, draw: random.Random) -> Any:
  tree = copy.deepcopy(tree)
  path = draw.choice(_nodes(tree))
  if not path:
    return draw.choice((tree, tree, [tree], {"a": tree}, draw.choice(VALUES)))
  parent = tree
  for key in path[:-1]:
    parent = parent[key]
  key, value = path[-1], parent[path[-1]]
  how = draw.randrange(8)
  if how == 0:
    del parent[key]
  elif how == 1 and isinstance(parent, list):
    parent[key:key] = [copy.deepcopy(value)] * draw.choice((1, 1, 2, 50))
  elif how == 2 and isinstance(parent, dict):
    parent[draw.choice((f"{key} ", str(key).upper(), "extra", *STRINGS))] = parent.pop(key)
  elif how == 3:
    parent[key] = draw.choice(([value], {"a": value}, str(value), [value, value]))
  elif how == 4 and isinstance(value, (int, float)):
    parent[key] = draw.choice((-value, value * 10**9, str(value)[:4000], f"{str(value)[:300]}.0", [value]))
  elif how == 5:
    parent[key] = draw.choice(VALUES)
  else:
    parent[key] = draw.choice(STRINGS if isinstance(value, str) or how == 6 else NUMBERS)
  return tree


def _spliced(text: str, draw: random.Random) -> str:
  """Sometimes what no tree can express: keys twice, other literals, nesting without end, text cut short."""
  how = draw.randrange(40)
  place = draw.randrange(len(text) + 1)
  if how == 0:
    return text[:place]
  if how == 1:
    return re.sub(r'"(\w+)":', lambda found: f"{found[0]} 0, {found[0]}", text, count=1)
  if how == 2:
    deep = draw.choice((10, 1000, 100_000))
    return re.sub(r": ?(\d+|null|\[\])", lambda found: ": " + "[" * deep + "]" * deep, text, count=1)
  if how == 3:
    words = ("NaN", "-Infinity", "1e999", "9" * 5000, "0x10", "'a'", "01", "1.", "//", "undefined", "\ufeff")
    word = draw.choice(words)
    return re.sub(r"\d+", lambda found: word, text, count=draw.choice((1, 3)))
  return text


def _encoded(text: str, draw: random.Random) -> bytes:
  if draw.random() < 0.9:
    return text.encode("utf-8", "surrogatepass")
  return text.encode(draw.choice(ENCODINGS), "replace")


def of_lines(seed: bytes, draw: random.Random) -> bytes:
  """One line of several changed as JSON, or lines lost, doubled, cut short."""
  lines = seed.split(b"\n")
  place = draw.randrange(len(lines))
  how = draw.randrange(6)
  if how == 0:
    del lines[place]
  elif how == 1:
    lines[place:place] = [lines[place]] * 2
  elif how == 2:
    lines[place] = lines[place][: draw.randrange(len(lines[place]) + 1)]
  else:
    lines[place] = of_json(lines[place], draw)
  return b"\n".join(lines)


# ---------------------------------------------------------------------------------------------- XML and other text

XML_PIECES = (
  '<!DOCTYPE a [<!ENTITY e "eeeeeeeeee"><!ENTITY f "&e;&e;&e;&e;&e;&e;&e;&e;"><!ENTITY g "&f;&f;&f;&f;&f;">]>',
  '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>',
  *("&g;", "&e;", "&#0;", "&amp;", "<!-- -->", "<![CDATA[1]]>", "<?pi?>", "<a>", "</a>", "<object/>", "<bndbox/>"),
  *("<object><part><name>head</name></part></object>", "<name>a</name>", "<size/>", "\ufeff", "\0"),
  f"<a {'b=1 ' * 50}/>",
)


def of_xml(seed: bytes, draw: random.Random) -> bytes:
  """One to four elements changed: their text, their name, left out, doubled, nested; pieces put in."""
  text = seed.decode("utf-8", "replace")
  for _ in range(draw.choice((1, 1, 2, 4))):
    text = _changed_xml(text, draw)
  if draw.random() < 0.1:
    text = re.sub(r"encoding=[\"'][^\"']*", f'encoding="{draw.choice((*ENCODINGS, "bogus", ""))}', text)
  return _encoded(text, draw)


def _changed_xml(text: str, draw: random.Random) -> str:
  elements = list(re.finditer(r"<(\w+)[^<>]*>([^<]*)</\1>", text)) or list(re.finditer(r"<(/?\w+)()[^<>]*>", text))
  if not elements:
    return text + draw.choice(XML_PIECES)
  one = draw.choice(elements)
  before, after = text[: one.start()], text[one.end() :]
  how = draw.randrange(7)
  if how == 0:
    return before + after
  if how == 1:
    return before + one[0] * draw.choice((2, 3, 200)) + after
  if how == 2:
    return before + one[0].replace(one[1], draw.choice(("name", "xmin", "size", "a", "é", one[1].upper()))) + after
  if how == 3:
    deep = draw.choice((3, 200, 5000))
    return before + "<a>" * deep + one[0] + "</a>" * deep + after
  if how == 4:
    place = draw.randrange(len(text) + 1)
    return text[:place] + draw.choice(XML_PIECES) + text[place:]
  word = str(draw.choice(STRINGS if draw.random() < 0.4 else NUMBERS))
  return text[: one.start(2)] + word + text[one.end(2) :]


def of_text(seed: bytes, draw: random.Random) -> bytes:
  """Words and lines replaced, doubled, left out."""
  text = seed.decode("utf-8", "replace")
  for _ in range(draw.choice((1, 1, 2, 4))):
    pieces = re.split(r"(\W)", text)
    place = draw.randrange(len(pieces))
    signs = "()[]{},.='\"\\#@\t\r\x85\u2028"
    choice = draw.choice((*STRINGS, *map(str, NUMBERS[:20]), *signs, "(" * 200, "-" * 3000))
    pieces[place] = draw.choice(("", pieces[place] * 2, choice, choice, draw.choice(pieces)))
    text = "".join(pieces)
  return _encoded(text, draw)


# ---------------------------------------------------------------------------------------------- bytes and containers


def of_bytes(seed: bytes, draw: random.Random) -> bytes:
  """Bits turned, blocks lost, doubled or overwritten, numbers put in, the end cut off."""
  data = bytearray(seed)
  for _ in range(draw.choice((1, 1, 2, 4, 16))):
    if not data:
      return bytes(draw.randbytes(draw.randrange(40)))
    place = draw.randrange(len(data))
    size = draw.choice((1, 2, 4, 8, 64))
    how = draw.randrange(7)
    if how == 0:
      data[place] ^= 1 << draw.randrange(8)
    elif how == 1:
      data[place] = draw.randrange(256)
    elif how == 2:
      del data[place : place + size]
    elif how == 3:
      data[place:place] = data[place : place + size] * draw.choice((1, 1, 100))
    elif how == 4:
      data[place : place + 4] = draw.choice(INTEGERS)
    elif how == 5:
      data[place : place + size] = draw.randbytes(size)
    elif draw.random() < 0.3:
      del data[place:]
  return bytes(data)


def of_zip(seed: bytes, draw: random.Random) -> bytes:
  """One file of an archive changed by its kind, left out, doubled or renamed; its checksums are right."""
  try:
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
      files = {name: archive.read(name) for name in archive.namelist()}
  except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
    return of_bytes(seed, draw)
  if not files:
    return of_bytes(seed, draw)
  name = draw.choice(list(files))
  how = draw.randrange(10)
  if how == 0:
    del files[name]
  elif how == 1:
    files[draw.choice((f"../{name}", f"/tmp/{name}", name.upper(), "x"))] = files.pop(name)
  else:
    files[name] = mutated("json" if name.endswith(".json") else "bytes", files[name], draw)
  return zipped(files)


def zipped(files: dict[str, bytes]) -> bytes:
  """An archive of files, not compressed."""
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w") as archive:
    for name, data in files.items():
      archive.writestr(zipfile.ZipInfo(name), data)
  return packed.getvalue()


def of_safetensors(seed: bytes, draw: random.Random) -> bytes:
  """The header, which is JSON behind its length, changed as JSON; its length is right, mostly."""
  length = int.from_bytes(seed[:8], "little")
  header = of_json(seed[8 : 8 + length], draw)
  told = len(header) if draw.random() < 0.9 else draw.choice((0, 1, 2**40, 2**63, len(header) + 1))
  return told.to_bytes(8, "little") + header + seed[8 + length :]
