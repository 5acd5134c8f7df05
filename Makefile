# One environment, made once: `make demo` and `make test` start in seconds after the first call.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export JAX_PLATFORMS ?= cpu

.PHONY: lint docs demo ladder compare test test-long clean
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

# What the ladder left, its rungs side by side; else what the demo left, its first evaluation beside its last.
compare: $(INSTALLED)
	@if [ -f runs/ladder/ladder.json ]; then runs=runs/ladder; \
	elif [ -d runs/demo/eval ]; then runs=$$(ls runs/demo/eval | sort -n | sed -n '1p;$$p' | sed 's|^|runs/demo@|' | paste -sd,); \
	else echo "nothing to compare yet: make demo, or make ladder" >&2; exit 1; fi; \
	$(BIN)/python -m launch.compare --runs=$$runs --output=runs/compare

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# Strict: a link or an anchor that leads nowhere fails.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "Open site/index.html; with search: $(BIN)/python -m http.server -d site"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long

clean:
	rm -rf $(VENV) runs
