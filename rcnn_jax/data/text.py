"""The encodings in which text files come: by their first bytes, by what they declare, or as UTF-8."""

from __future__ import annotations

import codecs

# The larger character sets that files mean which declare the smaller ones: nearly every "GB2312" file is GBK.
_MEANT = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "cp950"}
# Python's own escapes and domain names, which nobody declares in earnest (and which take their time).
_NOT_OF_FILES = frozenset(("idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7"))


def encoding_of(encoded: bytes) -> str | None:
  """The encoding that a file's bytes give away: by a byte order mark, or as UTF-16 by its zeros; else None."""
  if encoded.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
    return "utf-32"
  if encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    return "utf-16"
  if encoded.startswith(codecs.BOM_UTF8):
    return "utf-8-sig"
  start = encoded[:4096]
  even, odd = start[0::2].count(0), start[1::2].count(0)
  if 20 * max(even, odd) <= len(start):  # at least the ends of lines and the digits of UTF-16 have a zero
    return None
  return "utf-16-le" if odd > even else "utf-16-be"


def meant(declared: str) -> str | None:
  """Python's name of the encoding that a file means when it declares this one; None where there is none such."""
  try:
    name = codecs.lookup(declared.strip()).name
    b"a".decode(name)  # refuses what is no encoding of text: zip, base64, rot13
  except UnicodeDecodeError:  # of UTF-16, half a character
    pass
  except (LookupError, ValueError):  # ValueError: a zero byte in the name
    return None
  return None if name.replace("_", "-") in _NOT_OF_FILES else _MEANT.get(name, name)
