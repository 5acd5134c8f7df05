"""What compiled programs tell, for people: the report of one, and the table of many."""

from __future__ import annotations

from collections.abc import Iterable

from rcnn_jax.evaluation.tables import text_table


def text(report: dict) -> str:
  """The report of one program (`launch.compile` writes its JSON form)."""
  line = report["roofline"]
  work = f"{report['flops'] / 1e9:.1f} GFLOP, {report['bytes'] / 1e9:.2f} GB moved"
  versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
  size = "x".join(map(str, report["canvas"]))
  lines = [
    f"{report['experiment']}: {report['what']}, batch {report['batch_size']} of {size} on "
    f"{report['devices']} device(s) of {report['topology']}; compiled in {report['compile_s']:.1f} s by {versions}",
    "each device:",
    *_memory(report["memory"]),
    f"  work         {work}; loop bodies count once",
    f"  roofline     {line['s'] * 1e3:.2f} ms at least, bound by {line['bound']} (arithmetic "
    f"{line['arithmetic_s'] * 1e3:.2f} ms, memory {line['memory_s'] * 1e3:.2f} ms)",
  ]
  if "estimate_s" in report:
    lines.append(f"  estimate     {report['estimate_s'] * 1e3:.2f} ms by the compiler's own reckoning")
  for kind, row in report["collectives"].items():
    lines.append(f"  {kind:<22}{row['count']:4d} x, {row['bytes'] / 2**20:.1f} MiB")
  lines.append("  largest buffers (they share memory over time):")
  for row in report["buffers"]:
    made_by = f"{row['op_name'] or row['opcode']}  {row['source']}"
    lines.append(f"  {row['bytes'] / 2**20:9.1f} MiB  {shortened(row['shape'])}  {made_by}")
  if "fit" in report:
    each = f", {report['fit'] // report['devices']} a device" if report["devices"] > 1 else ""
    lines.append(f"the largest batch that fits: {report['fit']}{each}" if report["fit"] else "no batch fits")
  return "\n".join(lines)


def _memory(memory: dict) -> list[str]:
  """Two or three lines on the peak and its parts."""
  spare = memory["device"] - memory["peak"]
  verdict = f"fits, {gib(spare)} are left" if spare >= 0 else f"does not fit, {gib(-spare)} too much"
  lines = [
    f"  memory       {gib(memory['peak'])} of {gib(memory['device'])}: {verdict}",
    f"               arguments {gib(memory['argument'])}, results {gib(memory['output'])} (in place "
    f"{gib(memory['alias'])}), temporaries {gib(memory['temp'])}",
  ]
  if memory["lent"] < memory["peak"] <= memory["device"]:
    share = memory["peak"] / memory["device"]
    lines.append(f"               more than JAX takes by default: XLA_PYTHON_CLIENT_MEM_FRACTION above {share:.2f}")
  return lines


def table(reports: Iterable[dict]) -> str:
  """A row for each program that was compiled, or why it was not; programs without a report are left out."""
  header = [
    "experiment",
    "program",
    "device",
    "images",
    "canvas",
    "peak GiB",
    "fits",
    "GFLOP",
    "GB moved",
    "roofline ms",
  ]
  rows = [_row(report) for report in reports if report]
  return text_table([*header, "bound by", "compile s"], rows)


def _row(report: dict) -> list[str]:
  asked = [report[name] for name in ("experiment", "what", "topology")]
  asked += [str(report["batch_size"]), "x".join(map(str, report.get("canvas", "-")))]
  if "failed" in report:
    return [*asked, "-", "no" if "does not fit" in report["failed"] else "failed", "-", "-", "-", "-", "-"]
  memory, line = report["memory"], report["roofline"]
  return [
    *asked,
    f"{memory['peak'] / 2**30:.2f}",
    "yes" if memory["peak"] <= memory["lent"] else "no",
    f"{report['flops'] / 1e9:.0f}",
    f"{report['bytes'] / 1e9:.1f}",
    f"{line['s'] * 1e3:.1f}",
    line["bound"],
    f"{report['compile_s']:.0f}",
  ]


def gib(size: int) -> str:
  """'1.50 GiB'."""
  return f"{size / 2**30:.2f} GiB"


def shortened(shape: str) -> str:
  """The first of many arrays, and how many more there are."""
  first, *more = shape.split(" ")
  return f"{first} and {len(more)} more" if more else first
