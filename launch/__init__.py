"""The commands: `python -m launch.NAME`."""

import os

# XLA writes a line about the processor for each program for the CPU that it reads back; whatever it writes of an error,
# it raises as well. Its logging takes the level from the environment, once. 1 is what JAX sets when it is imported, and
# what a command that a Python program starts inherits from there.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
