"""How the commands leave what they found on disk."""

from __future__ import annotations

import json
import pathlib
from typing import Any


def write_json(path: pathlib.Path, form: Any) -> None:
  """Whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(form, indent=1) + "\n")
  partial.replace(path)
