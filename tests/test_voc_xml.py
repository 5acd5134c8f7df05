"""One annotation file: encodings, numbers, flags, and files that would hang or fill the process."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from test_voc import write_object

from rcnn_jax.data import voc_xml
from rcnn_jax.data.voc_xml import Record, parse


def annotation(items: str = "", size: str = "<size><width>60</width><height>40</height><depth/></size>") -> str:
  return f"<annotation><filename>a.jpg</filename>{size}{items}</annotation>"


def declared(encoding: str, name: str) -> str:
  return f'<?xml version="1.0" encoding="{encoding}"?>\n{annotation(write_object(name, (1, 2, 3, 4)))}'


def read(text: str) -> Record:
  return parse(text.encode(), "a.xml")


def problems(record: Record) -> list[str]:
  assert not any(fault.fatal for fault in record.faults)
  return [str(fault) for fault in record.faults]


@pytest.mark.parametrize(
  "encoding, said, name",
  [
    ("utf-8-sig", "utf-8", "Käfer"),
    ("utf-16", "utf-16", "Käfer"),  # with a byte order mark
    ("utf-16-le", "utf-16", "Käfer"),
    ("utf-16-be", "utf-16", "方块"),
    ("utf-32", "utf-32", "Käfer"),
    ("utf-8", "utf-16", "Käfer"),  # as .NET declares what it writes as UTF-8
    ("latin-1", "ISO-8859-1", "Käfer"),
    ("cp1252", "windows-1252", "“Käfer”"),
    ("gb2312", "GB2312", "方块"),
    ("gbk", "gb2312", "镕"),  # not in GB2312, but files that declare it have such
    ("gbk", "GBK", "方块"),
    ("gb18030", "gb18030", "方块"),
    ("big5", "Big5", "方塊"),
    ("shift_jis", "Shift_JIS", "犬"),
    ("cp932", "Shift_JIS", "犬①"),
    ("euc_kr", "EUC-KR", "개"),
    ("koi8-r", "KOI8-R", "собака"),
  ],
)
def test_encodings(encoding, said, name):
  record = parse(declared(said, name).encode(encoding), "a.xml")
  assert problems(record) == [] and [item.name for item in record.objects] == [name]


def test_what_is_declared_wrongly_is_read_as_what_it_is_and_told():
  for bogus in ("utf8mb4", "", "zip", "rot13", "base64", "idna", "punycode", "unicode_escape", "undefined", "x" * 90):
    record = parse(declared(bogus, "Käfer").encode(), "a.xml")
    assert [item.name for item in record.objects] == ["Käfer"]
    (line,) = problems(record) or [""]
    assert not bogus or line.startswith("a.xml: declares the unknown encoding '") and line.endswith(": read as UTF-8")
  record = parse(annotation(write_object("Käfer", (1, 2, 3, 4))).encode("latin-1"), "a.xml")
  assert [item.name for item in record.objects] == ["Käfer"]
  assert problems(record) == ["a.xml: neither UTF-8 nor declared to be anything else: read as Latin-1"]
  # A byte that GB2312 has not, in a file that declares it.
  assert problems(parse(declared("GB2312", "\xff").encode("latin-1"), "a.xml")) == [
    "a.xml: cannot be decoded as GB2312"
  ]


def test_blank_lines_before_the_declaration_are_no_fault():
  assert read(f"\n  {declared('utf-8', 'dog')}\n\0").objects[0].name == "dog"


@pytest.mark.parametrize(
  "text, problem",
  [
    ("", "not readable as XML: no element found: line 1, column 0"),
    ("<annotation><object></annotation>", "not readable as XML: mismatched tag: line 1, column 22"),
    ("<annotation>a & b</annotation>", "not readable as XML: not well-formed (invalid token): line 1, column 15"),
    ("<annotation>\x08</annotation>", "not readable as XML: not well-formed (invalid token): line 1, column 12"),
    ("<annotation>&lol;</annotation>", "not readable as XML: undefined entity: line 1, column 12"),
    ("<svg/>", "its root is 'svg', not <annotation>"),
    ("{}", "not readable as XML: not well-formed (invalid token): line 1, column 0"),
  ],
)
def test_files_of_another_kind_are_not_usable(text, problem):
  record = read(text)
  assert not record.usable and problems(record) == [f"a.xml: {problem}"]


def billion_laughs() -> str:
  entities = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9))
  return f'<!DOCTYPE a [<!ENTITY l0 "ha">{entities}]><annotation>&l9;</annotation>'


@pytest.mark.parametrize(
  "text, problem",
  [
    (billion_laughs(), "declares entities (<!ENTITY ...>), which are not read"),
    ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "declares entities"),
    ("<a>" * 2**17, "not readable as XML: no element found"),  # nested deeply
    (f"<annotation>{'<a>' * 2**16}{'</a>' * 2**16}</annotation>", None),
    ("<a/>" * 2**21, "more than 1,048,576 tags: no annotation file"),
    (f"<annotation><filename>{'x' * 2**22}</filename></annotation>", None),
    (" " * (voc_xml.MAX_BYTES + 1), "more than 16,777,216 bytes: no annotation file"),
  ],
)
def test_no_file_fills_the_process(text, problem):
  tracemalloc.start()
  began = time.process_time()
  record = read(text)
  taken, seconds = tracemalloc.get_traced_memory()[1], time.process_time() - began
  tracemalloc.stop()
  assert taken < 100e6 and seconds < 5
  assert problem is None or problem in problems(record)[0]


@pytest.mark.parametrize(
  "size, expected",
  [
    ("<size><width>60</width><height>40</height></size>", (40, 60)),
    ("<size><width> 60.0 </width><height>4e1</height><depth></depth></size>", (40, 60)),
    ("<size><width>0</width><height>0</height></size>", None),
    ("<size><width>60</width></size>", None),
    ("<size><width>60</width><height>-40</height></size>", None),
    ("<size><width>60.5</width><height>40</height></size>", None),
    ("<size><width>inf</width><height>nan</height></size>", None),
    ("<size><width>1e300</width><height>40</height></size>", None),
    ("<size/>", None),
    ("", None),
  ],
)
def test_a_size_that_is_none_is_left_to_the_image(size, expected):
  record = read(annotation(size=size))
  assert record.usable and record.size == expected and problems(record) == []


@pytest.mark.parametrize(
  "word, expected",
  [
    *((word, False) for word in ("0", "", " ", "False", "no", "Unspecified", "None", "0.0", "-0")),
    *((word, True) for word in ("1", "True", "TRUE", "yes", " y ", "2", "1.0", "-1")),
  ],
)
def test_difficult(word, expected):
  record = read(annotation(write_object("dog", (1, 1, 5, 5), word)))
  assert record.objects[0].difficult is expected and problems(record) == []


def test_difficult_that_says_nothing_is_told_and_the_object_stays():
  record = read(annotation(write_object("dog", (1, 1, 5, 5), "perhaps") + write_object("dog", (1, 1, 5, 5), "nan")))
  assert [item.difficult for item in record.objects] == [False, False]
  assert problems(record) == [
    "a.xml: object 1: <difficult> is 'perhaps': read as 0",
    "a.xml: object 2: <difficult> is 'nan': read as 0",
  ]


def test_corners_in_every_spelling():
  record = read(annotation(write_object("dog", ("12.5", " 3 ", "20,25", "1e2"))))
  assert record.objects[0].corners == (12.5, 3, 20.25, 100)


def test_names_are_compared_without_spaces_around_and_with_composed_accents():
  items = write_object(" traffic \n light ", (1, 1, 5, 5)) + write_object("Cafe\u0301", (1, 1, 5, 5))
  assert [item.name for item in read(annotation(items)).objects] == ["traffic light", "Café"]


def test_a_name_of_thousands_of_characters_is_none():
  record = read(annotation(write_object("x" * 5000, (1, 1, 5, 5))))
  assert record.objects == ()
  assert problems(record) == ["a.xml: object 1: <name> of 5,000 characters: no class's"]


def test_parts_and_polygons_of_an_object_are_not_its_box():
  part = "<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>12</xmax><ymax>12</ymax></bndbox></part>"
  polygon = "<polygon><x1>7</x1><y1>7</y1></polygon>"
  item = write_object("person", (1, 2, 30, 31)).replace("<difficult>", f"{part}{polygon}<difficult>")
  assert [(one.name, one.corners) for one in read(annotation(item)).objects] == [("person", (1, 2, 30, 31))]


@pytest.mark.parametrize(
  "boxes, fractions",
  [
    ([(0.1, 0.2, 0.5, 0.6)], True),
    ([(0, 0, 1, 1)], True),
    ([(0.1, 0.2, 0.5, 0.6), (0.5, 0.5, 0.5, 0.5)], True),
    ([(0.1, 0.2, 0.5, 0.6), (5, 6, 7, 8)], False),
    ([(1, 1, 1, 1)], False),  # a stray click, which is told as a degenerate box
    ([], False),
  ],
)
def test_fractions_of_the_image_are_no_pixels(boxes, fractions):
  record = read(annotation("".join(write_object("dog", box) for box in boxes)))
  assert record.usable is not fractions
  assert bool(problems(record)) is fractions


def test_a_file_that_cannot_be_opened_is_told(tmp_path):
  assert problems(voc_xml.read(tmp_path / "a.xml")) == [f"{tmp_path}/a.xml: no such file or directory"]
  assert problems(voc_xml.read(tmp_path)) == [f"{tmp_path}: is a directory"]
