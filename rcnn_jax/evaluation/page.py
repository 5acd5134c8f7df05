"""The look of a report: a few builders of HTML that escape what they are given, and one style sheet."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { --ink: #1f2937; --quiet: #6b7280; --line: #e5e7eb; --paper: #fff; --ground: #f6f7f9; --accent: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 72px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 12px; }
p.lead { color: var(--quiet); margin: 0; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 18px 22px;
          margin: 0 0 16px; overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px; margin: 26px 0 0; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; }
.card b { display: block; font-size: 28px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--quiet); font-size: 13px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 16px; }
.pair section { margin: 0; }
.pair img { max-width: min(100%, 640px); }
img { max-width: 100%; display: block; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { color: var(--quiet); font-weight: 500; font-size: 13px; text-align: right; vertical-align: bottom; }
th, td { padding: 7px 12px; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; padding-left: 2px; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
tbody tr:hover { background: var(--ground); }
table.settings th { text-align: left; }
table.settings td { text-align: left; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
details { margin-top: 10px; }
details summary { cursor: pointer; color: var(--accent); }
.bar { display: inline-block; height: 8px; border-radius: 4px; background: var(--accent); opacity: .75;
       vertical-align: middle; margin-right: 10px; }
figure { margin: 0 0 18px; }
figure:last-child { margin-bottom: 0; }
"""


def document(title: str, body: Iterable[str]) -> str:
  """A page that needs no other file."""
  return (
    f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
    + "\n".join(body)
    + "\n</main>\n</body>\n</html>\n"
  )


def heading(title: str, lead: str) -> str:
  return f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>'


def section(title: str, *parts: str) -> str:
  """A titled box of ready HTML; nothing at all if there are no parts."""
  return f"<h2>{html.escape(title)}</h2>\n<section>{''.join(parts)}</section>" if any(parts) else ""


def pair(title: str, *parts: str) -> str:
  """Like `section`, with each part in a box of its own, side by side where there is room."""
  boxes = "".join(f"<section>{part}</section>" for part in parts if part)
  return f'<h2>{html.escape(title)}</h2>\n<div class="pair">{boxes}</div>' if boxes else ""


def cards(values: Sequence[tuple[str, str]]) -> str:
  """(value, what it is) in large figures."""
  items = "".join(f'<div class="card"><b>{html.escape(v)}</b><span>{html.escape(t)}</span></div>' for v, t in values)
  return f'<div class="cards">{items}</div>' if values else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, style: str = "") -> str:
  """Text in rows and columns; nothing at all without rows."""
  if not rows:
    return ""
  cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
  head = f"<thead><tr>{cells}</tr></thead>" if any(header) else ""
  body = "".join(
    "<tr>" + "".join(f"<td>{cell if isinstance(cell, Html) else html.escape(cell)}</td>" for cell in row) + "</tr>\n"
    for row in rows
  )
  return f'<table class="{style}">{head}<tbody>\n{body}</tbody></table>'


class Html(str):
  """Text that is HTML already, for a table's cell."""


def percent_bar(value: float | None) -> Html:
  """A fraction as percent with a bar in proportion; a dash where there is no value."""
  if value is None:
    return Html("–")
  return Html(f'<span class="bar" style="width:{90 * value:.0f}px"></span>{100 * value:.1f}')


def details(summary: str, content: str) -> str:
  return f"<details><summary>{html.escape(summary)}</summary>{content}</details>" if content else ""


def image(data: bytes, caption: str) -> str:
  """A PNG or JPEG, embedded."""
  kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
  text = base64.b64encode(data).decode("ascii")
  return f'<figure><img alt="{html.escape(caption)}" src="data:image/{kind};base64,{text}"></figure>'
