# `make help` lists the targets. VENV=path shares one environment between clones.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
EXPERIMENT ?= params.yaml
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup reproduce report test test-fast lint format micro status docs drill bench gpu lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## make the environment from requirements.lock

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

reproduce: setup ## run an experiment (EXPERIMENT=params.yaml) and print its tables
	snakemake --config experiment=$(EXPERIMENT)
	mls show --experiment $(EXPERIMENT)

report: setup ## write report/<experiment>.html (EXPERIMENT=params.yaml): tables, figures, provenance; needs no network
	snakemake --config experiment=$(EXPERIMENT) -- pages
	pages=$$(mls report --experiment $(EXPERIMENT)) && file=$${pages%-*}.html && \
	  snakemake --config experiment=$(EXPERIMENT) --quiet all --report $$file -- pages && echo $$file

test: setup ## run the tests, in parallel
	python -m pytest -n 2

test-fast: setup ## the tests that need no other process: for use while editing
	python -m pytest -n 2 -m "not slow"

lint: setup ## ruff, mypy, import-linter, snakefmt; changes nothing
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	snakefmt --check --compact-diff Snakefile workflow

format: setup ## rewrite the code as lint wants it
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

micro: setup ## the whole path in about a minute (experiments/micro.yaml)
	$(MAKE) reproduce EXPERIMENT=experiments/micro.yaml

status: setup ## state of each artifact of the experiment (EXPERIMENT=params.yaml)
	mls status --experiment $(EXPERIMENT)

docs: setup ## build the docs as a site in site/, with an API reference (python -m http.server -d site shows it)
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

drill: setup ## kill -9 the micro experiment 20 times, fill its disk, damage it; nothing may be lost (DRILL="--seed 7")
	python -m tests.drill $(DRILL)

bench: setup ## measure speed and memory beside lightly (BENCH="--images FOLDER": other JPEGs than coco-tiny)
	python benchmarks/compare.py $(BENCH)
	python benchmarks/compare.py --backbone resnet50 --crop 224 --batch 32 --steps 4 --warm-up 2 --rounds 1 \
	  --sides ours lightly lightly-bf16 $(BENCH)
	python benchmarks/memory.py

gpu: ## what only a GPU can tell, in at most 8 minutes; installs nothing, PYTHON=path has torch (GPU="--parts pretrain")
	$(PYTHON) benchmarks/gpu.py $(GPU)

lock: setup ## resolve requirements.lock again from pyproject.toml
	python -m pip install --quiet uv
	{ echo "# Every dependency at the version this repository was tested with. Written by: make lock"; \
	  uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
	    --no-header --no-annotate --no-emit-index-url; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean: ## remove caches, never artifacts or results
	rm -rf .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find mls tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
