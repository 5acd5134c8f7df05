"""The commands: `python -m launch.NAME`."""

import os

# XLA writes a line about the processor for each program for the CPU that it reads back; whatever it writes of an error,
# it raises as well. Its logging takes the level from the environment, once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
