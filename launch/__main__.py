"""`rcnn-jax NAME …` and `python -m launch NAME …` are `python -m launch.NAME …`."""

from __future__ import annotations

import difflib
import pathlib
import runpy
import sys


def commands() -> list[str]:
  """The names of the commands: the modules of this folder that run as one."""
  files = pathlib.Path(__file__).parent.glob("[!_]*.py")
  return sorted(file.stem for file in files if "\n  launch_flags.run(main" in file.read_text())


def main() -> None:
  """Runs the command that the first argument names; an unknown one ends with status 2 and the nearest names."""
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name in ("", "-h", "--help"):
    print("usage: rcnn-jax COMMAND [--flag=value …]; each command has --help\n\n" + "\n".join(commands()))
    sys.exit(0 if name else 2)
  if name not in commands():
    near = difflib.get_close_matches(name, commands(), n=3) or commands()
    sys.exit(f"no command {name!r}; nearest: {', '.join(near)}")
  sys.argv = [f"rcnn-jax {name}", *sys.argv[2:]]
  runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
