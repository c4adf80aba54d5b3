# `make demo` runs the embedded recipe and lets its arms meet, `make test` the tests, `make lint` the checks, `make docs` writes the generated
# parts of the docs, `make models` fetches two real models (1.2 GB), and `make real` runs the loop on them. Each installs
# what is missing into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Images are not judged: llama.cpp is compiled without its image library.
export CMAKE_ARGS := $(or $(CMAKE_ARGS),-DLLAVA_BUILD=OFF)

.PHONY: demo models real test lint docs docs-check clean

demo: $(VENV)/.installed
	$(BIN)/tpo-lite train --recipe embedded --cpu --out runs/demo
	$(BIN)/tpo-lite eval versus runs/demo

models: $(VENV)/.installed
	$(BIN)/python -m benchmarks.models models

real: models
	$(BIN)/python -m benchmarks.real --out runs/real --results runs/real/real.md

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.lint-installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Text between `[[[cog` and `[[[end]]]` is written by docs/generated.py; docs-check fails if it is out of date.
GENERATED := docs/architecture.md docs/commands.md
COG = PYTHONPATH=.:docs $(BIN)/cog
SCHEMA = PYTHONPATH=. $(BIN)/python -m tpo_lite.loop.results_schema

docs: $(VENV)/.lint-installed
	$(COG) -r $(GENERATED)
	$(SCHEMA) > docs/results.schema.json

docs-check: $(VENV)/.lint-installed
	$(COG) --check --check-fail-msg="Run make docs." $(GENERATED)
	$(SCHEMA) | diff docs/results.schema.json -

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

# unsloth pins a certifi that not every index has, and would fall back to an old release of itself. So it is
# installed without its dependencies, and those that it needs beside ours by name. It lies in a folder of its
# own, which the engine tests put on the path: torchao, which it needs, slows down every other import of peft.
$(VENV)/.test-installed: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/unsloth unsloth unsloth_zoo \
		cut_cross_entropy docstring_parser einops hf_transfer json5 msgspec nest_asyncio nvidia-ml-py pillow \
		protobuf sentencepiece structlog torchao typeguard tyro
	touch $@

$(VENV)/.lint-installed: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[lint]'
	touch $@

clean:
	rm -rf $(VENV) runs
