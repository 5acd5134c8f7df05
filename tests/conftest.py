"""Eight virtual CPU devices for every test; this must stand before the first import of jax."""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """The tests of a file go to one worker, so that its trained models and compiled programs are made once."""
  from xdist.scheduler import LoadFileScheduling

  return LoadFileScheduling(config, log) if config.getoption("dist") == "load" else None
