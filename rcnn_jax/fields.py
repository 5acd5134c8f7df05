"""What may stand in a field of an experiment: values by type hint, text of the command line, and what fits instead.

A hint that leaves open what fits (`Any`) is read together with the value that stands there: a part of an experiment
may only be replaced by a part of its kind.
"""

from __future__ import annotations

import ast
import collections.abc
import contextlib
import dataclasses
import difflib
import functools
import math
import numbers
import sys
import types
import typing
import warnings
from typing import Any

import flax.linen as nn

WORDS = {"none": None, "null": None, "true": True, "false": False}
WORDS |= {"inf": math.inf, "+inf": math.inf, "-inf": -math.inf}
LARGEST = 2**53  # up to which every whole number is a float of its own


class ExperimentError(ValueError):
  """An experiment that cannot be found, read or changed as asked."""


@dataclasses.dataclass(frozen=True)
class Text:
  """A value still in the command line's writing."""

  text: str


def fields_of(cls: type) -> list[dataclasses.Field]:
  """The fields that configure a value of this class: Linen's own `parent` and `name` are not among them."""
  linen = {"parent", "name"} if issubclass(cls, nn.Module) else set()
  return [f for f in dataclasses.fields(cls) if f.init and f.name not in linen]


def field_hint(cls: type, name: str) -> Any:
  """The type of a field; Any where its annotation names what is not there at run time."""
  return _hints(cls).get(name, Any)


@functools.lru_cache(maxsize=None)
def _hints(cls: type) -> dict[str, Any]:
  found = {}
  for base in reversed(cls.__mro__):
    scope = vars(sys.modules.get(base.__module__, typing))
    for name, annotation in base.__dict__.get("__annotations__", {}).items():
      alone = types.SimpleNamespace(__annotations__={name: annotation})  # so that one bad name spoils no other's
      with contextlib.suppress(NameError, AttributeError, TypeError, SyntaxError):
        found |= typing.get_type_hints(alone, scope)
  return found


def element_hint(hint: Any, index: int, length: int) -> Any:
  """The type of one element of a tuple whose type is `hint`."""
  for option in _options(hint):
    if _is_tuple(option):
      elements = _element_hints(option, length)
      return Any if elements is None else elements[index]
  return Any


def checked(value: Any, hint: Any, path: str, present: Any = None) -> Any:
  """The value in the type that its field asks for, read from text where it is still text.

  Args:
    value: a plain value or a part of an experiment, or `Text`.
    hint: the type of the field.
    path: of the field, for errors.
    present: what stands there, which counts where the hint leaves open what fits; None for nothing.

  Raises:
    ExperimentError: it does not fit, with what would.
  """
  readings = _readings(value.text) if isinstance(value, Text) else (value,)
  for reading in readings:
    fits, fitted = fit(reading, hint)
    if fits and _is_like(fitted, hint, present):
      return fitted
  raise ExperimentError(f"{path}: {_misfit(readings, value, hint, path, present)}")


# ---------------------------------------------------------------------------------------------- reading text


def _readings(text: str) -> tuple[Any, ...]:
  """What a word of the command line may mean, most literal first: a plain literal, none/true/false, the text."""
  if not text:
    return ()
  if text.lower() in WORDS:
    return (WORDS[text.lower()], text)
  try:
    with warnings.catch_warnings(action="ignore"):  # Python's own about text that is no literal
      value = ast.literal_eval(text)
  except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
    return (text,)
  return (value, text) if _is_plain(value) else (text,)


def _is_plain(value: Any) -> bool:
  if isinstance(value, (tuple, list)):
    return all(_is_plain(element) for element in value)
  return value is None or isinstance(value, (bool, int, float, str))


# ---------------------------------------------------------------------------------------------- values and hints


def fit(value: Any, hint: Any) -> tuple[bool, Any]:
  """(whether the value is of the type, the value in that type).

  Lists become tuples; an int becomes a float where that is asked for, and a float that is whole an int.
  """
  hint = getattr(hint, "__supertype__", hint)  # typing.NewType
  origin = typing.get_origin(hint)
  if hint is Any or isinstance(hint, typing.TypeVar):
    return _fit_any(value)
  if origin is typing.Literal:
    return any(value == word and type(value) is type(word) for word in typing.get_args(hint)), value
  if len(_options(hint)) > 1:
    return _fit_union(value, _options(hint))
  if _is_tuple(hint):
    return _fit_tuple(value, hint)
  if hint is None or hint is type(None):
    return value is None, value
  if hint in (int, float):
    return _fit_number(value, hint)
  cls = origin or hint
  try:
    return isinstance(value, cls) and not isinstance(value, type), value
  except TypeError:  # a hint that has no class to ask, such as a protocol
    return True, value


def _fit_any(value: Any) -> tuple[bool, Any]:
  if isinstance(value, (tuple, list)):
    elements = [_fit_any(element) for element in value]
    return all(fits for fits, _ in elements), tuple(element for _, element in elements)
  return _is_plain(value) or _is_part(value), value


def _fit_number(value: Any, hint: type) -> tuple[bool, Any]:
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return False, value
  whole = isinstance(value, numbers.Integral) or (float(value).is_integer() and abs(value) <= LARGEST)
  try:
    new = hint(value)
  except (OverflowError, ValueError):  # a whole number beyond the floats, or infinity for a whole number
    return False, value
  return hint is float or whole, new if new == value else value


def _fit_union(value: Any, options: tuple[Any, ...]) -> tuple[bool, Any]:
  fitting = [new for fits, new in (fit(value, option) for option in options) if fits]
  unchanged = [new for new in fitting if type(new) is type(value)]
  return bool(fitting), (unchanged or fitting or [value])[0]


def _fit_tuple(value: Any, hint: Any) -> tuple[bool, Any]:
  if not isinstance(value, (tuple, list)):
    return False, value
  hints = _element_hints(hint, len(value))
  if hints is None:
    return False, value
  elements = [fit(element, hint) for element, hint in zip(value, hints, strict=True)]
  return all(fits for fits, _ in elements), tuple(element for _, element in elements)


def _is_tuple(hint: Any) -> bool:
  return (typing.get_origin(hint) or hint) in (tuple, collections.abc.Sequence)


def _element_hints(hint: Any, length: int) -> tuple[Any, ...] | None:
  """The type of each element of a tuple of this type and length; None where it has another length."""
  arguments = typing.get_args(hint)
  if not arguments:
    return (Any,) * length
  if typing.get_origin(hint) is not tuple or (len(arguments) == 2 and arguments[1] is Ellipsis):
    return (arguments[0],) * length
  return arguments if len(arguments) == length else None


def _options(hint: Any) -> tuple[Any, ...]:
  return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_part(value: Any) -> bool:
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_like(value: Any, hint: Any, present: Any) -> bool:
  """Whether a value that fits its hint is also of the kind that stands there, as far as the hint leaves that open."""
  if isinstance(present, tuple) and isinstance(value, tuple):
    open_hints = [element_hint(hint, index, len(value)) for index in range(len(value))] if _is_tuple(hint) else []
    parts = [part for part in present if _is_part(part)]
    return all(not parts or any(_is_like(new, each, part) for part in parts) for new, each in zip(value, open_hints))
  if hint is not Any or not _is_part(present):
    return True
  kinds = _methods(type(present))
  return _is_part(value) and (not kinds or bool(kinds & _methods(type(value))))


def _methods(cls: type) -> set[str]:
  """What a part can be asked to do, by which parts of one kind are known: a data set's `open`, say."""
  return {name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))}


def _others_like(cls: type) -> list[str]:
  """The names of other parts of its kind, from modules of the same package that are in use."""
  package, kinds = cls.__module__.rpartition(".")[0], _methods(cls)
  modules = [module for name, module in list(sys.modules.items()) if package and name.rpartition(".")[0] == package]
  parts = {part for module in modules for part in vars(module).values() if _is_class_of(part, module)}
  return sorted(part.__name__ for part in parts if part is not cls and kinds and _methods(part) & kinds)


def _is_class_of(value: Any, module: types.ModuleType) -> bool:
  """Whether it is the class of a part that this module defines."""
  is_class = isinstance(value, type) and dataclasses.is_dataclass(value)
  return is_class and value.__module__ == module.__name__ and not value.__name__.startswith("_")


# ---------------------------------------------------------------------------------------------- what is said


def _misfit(readings: tuple[Any, ...], value: Any, hint: Any, path: str, present: Any) -> str:
  """What is wrong with a value, and what would fit."""
  from_text = isinstance(value, Text)
  given = value.text if from_text else value
  wanted = expected(hint, present, given)
  if not readings:
    return f"nothing stands behind '='; expected {wanted}" + (" ('' is an empty one)" if fit("", hint)[0] else "")
  said = f"expected {wanted}, got {shown(given)} ({type(readings[0]).__name__})"
  takes_tuple = any(_is_tuple(option) for option in _options(hint))
  if takes_tuple and fit((readings[0],), hint)[0] and _is_like((readings[0],), hint, present):
    return f"{said}; a tuple of one is written ({shown(readings[0])},)"
  if not from_text:
    return said
  if _is_part(present) or _names_part(hint):
    own = [f"{path}.{field.name}" for field in fields_of(type(present))] if _is_part(present) else []
    settable = f"; --set changes its values: {', '.join(own)}" if own else ""
    return f"{said}; another part is put there by an experiment file (Experiment.override){settable}"
  if takes_tuple:
    return f"{said}; a tuple is written like (1, 2), of words like ('car', 'dog')"
  return said


def _names_part(hint: Any) -> bool:
  return any(isinstance(option, type) and dataclasses.is_dataclass(option) for option in _options(hint))


def shown(value: Any) -> str:
  """A value in at most 80 characters of one line."""
  text = " ".join(repr(value).split())
  return text if len(text) <= 80 else f"{text[:77]}..."


def expected(hint: Any, present: Any = None, near: Any = "") -> str:
  """The values that fit, for people; of a few words the nearest to `near` first."""
  if hint is Any and _is_part(present):
    return f"a value like {', '.join([f'{type(present).__name__}(...)', *_others_like(type(present))])}"
  if _is_tuple(hint) and present and isinstance(present, tuple) and all(_is_part(part) for part in present):
    return f"a tuple, each {expected(Any, present[0])}"
  if hint is None or hint is type(None):
    return "None"
  if typing.get_origin(hint) is typing.Literal:
    closeness = lambda word: -difflib.SequenceMatcher(None, str(word), str(near)).ratio()
    return _alternatives([repr(word) for word in sorted(typing.get_args(hint), key=closeness)])
  if len(_options(hint)) > 1:
    return _alternatives([expected(option, near=near) for option in _options(hint)])
  if hint is bool:
    return "bool (true or false)"
  if hint is Any or hint is Ellipsis:
    return "..." if hint is Ellipsis else "any value"
  if _is_tuple(hint) and typing.get_args(hint):
    return f"tuple[{', '.join(expected(element) for element in typing.get_args(hint))}]"
  if typing.get_origin(hint) is None and isinstance(hint, type):
    return hint.__name__
  return str(hint).replace("typing.", "")


def _alternatives(names: list[str]) -> str:
  return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
