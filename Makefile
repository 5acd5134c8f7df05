# One environment, made once: `make demo` and `make test` start in seconds after the first call.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export JAX_PLATFORMS ?= cpu

.PHONY: demo ladder test test-long clean
.DEFAULT_GOAL := demo

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "rcnn-jax needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@# Two builds of OpenCV own the same files: the one that earlier versions asked for goes first.
	@$(BIN)/python -m pip uninstall --quiet --quiet --quiet --yes opencv-python-headless
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m launch.train --experiment=demo --workdir=runs/demo
	@echo "Open runs/demo/report.html"

ladder: $(INSTALLED)
	$(BIN)/python -m launch.ladder --workdir=runs/ladder

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long

clean:
	rm -rf $(VENV) runs
