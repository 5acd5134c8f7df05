"""What the benchmark has measured, for people."""

from __future__ import annotations


def of_steps(name: str, report: dict) -> str:
  """The suite `step`."""
  lines = [f"{name} on {report['environment']['device']}, jax {report['environment']['jax']}"]
  for what in ("train", "detect"):
    lines += _step(what, report[what])
  peer = report["environment"].get("peer", {})
  if "proposals" in peer:
    lines.append(f"  an image of the peer has {peer['proposals']:.0f} proposals, {peer['detections']:.0f} detections")
  lines += [
    f"  the peer's fastest form: {what}, {peer[f'{what}_variant']}"
    for what in ("train", "detect")
    if f"{what}_variant" in peer
  ]
  lines.append(f"  peak memory {report['peak_memory_MiB']:.0f} MiB")
  return "\n".join(lines)


def of_row(row: dict) -> str:
  """One row of the suite `gpu`."""
  head = f"{row['experiment']}, batch {row['batch_size']}"
  if "left_out" in row:
    return f"{head}\n  {row['what']:<7}left out: {row['left_out']}"
  lines = [head, *_step(row["what"], row)]
  if "peak_share" in row:
    lines.append(f"  {row['what']:<7}{row['peak_share']:.1%} of the device's peak")
  return "\n".join(lines)


def of_scaling(row: dict) -> str:
  """One row of the suite `scaling`."""
  seconds = [f"{what} {row[what]['ours']['s']:.4f} s" for what in ("train", "detect")]
  return f"{row['axis']:<12}{row['value']!s:>10}   {'   '.join(seconds)}"


def of_ops(report: dict) -> str:
  """The suite `ops`, in milliseconds."""
  lines = [f"operations on {report['environment']['device']}, jax {report['environment']['jax']}; ms"]
  for name, found in report["ops"].items():
    text = f"  {name:<36}{found['ours']['s'] * 1e3:9.3f}"
    if "peer" in found:
      ratio = found["ratio"]
      text += f"{found['peer']['s'] * 1e3:11.3f}   ours / peer {ratio['median']:.2f}"
      text += f" ({ratio['min']:.2f} to {ratio['max']:.2f})"
    lines.append(text)
  return "\n".join(lines)


def _step(what: str, found: dict) -> list[str]:
  """Lines on a step of ours and the peer's, and their ratio."""
  notes, lines = [f"compile {found['compile_s']:.1f} s"], []
  if "GFLOP" in found:
    notes.append(f"{found['GFLOP']:.1f} GFLOP")
  if "program_memory_MiB" in found:
    notes.append(f"{found['program_memory_MiB']:.0f} MiB")
  if "proposals" in found:
    notes.append(f"an image has {found['proposals']:.0f} proposals, {found['detections']:.0f} detections")
  for who in ("ours", "peer"):
    if who in found:
      row = found[who]
      text = f"  {what:<7}{who:<5}{row['s']:9.4f} s {row['images_per_s']:9.2f} images/s"
      text += f"   {row['s_min']:.4f} to {row['s_max']:.4f} s"
      lines.append(f"{text}   {', '.join(notes)}" if who == "ours" else text)
  if "ratio" in found:
    ratio = found["ratio"]
    lines.append(f"  {what:<7}ours / peer {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
  return lines
