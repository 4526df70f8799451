# An active virtual environment is used as it is; otherwise everything lives in .venv.
ifdef VIRTUAL_ENV
ENV := $(VIRTUAL_ENV)
else ifneq ($(filter-out base,$(CONDA_DEFAULT_ENV)),)
ENV := $(CONDA_PREFIX)
else
ENV := .venv
endif
BIN := $(ENV)/bin

PYTHON ?= python3
# A bare machine with a GPU has an interpreter with torch, and no environment of this program.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
TORCH ?=
export PYTHON TORCH

.DEFAULT_GOAL := help
# Two workers share the tests file by file; with more threads than one each they would starve each other.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} "$(BIN)/python" -m pytest -q
WORKERS = -n $${WORKERS:-2} --dist loadfile

COMPOSE ?= docker compose
COMPOSED = $(COMPOSE) --file deployments/compose.yaml
HAVE_COMPOSE = $(COMPOSE) version >/dev/null 2>&1 || { echo '`$(COMPOSE)` does not run here: install a container engine, \
or name another command in COMPOSE. `make stack` runs the same as processes.' >&2; exit 1; }

.PHONY: help install install-vllm demo demo-real test test-all test-services test-gpu unit golden check format clean stack stack-stop up down soak bench gpu-check bench-real

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@echo 'PYTHON=python3.12 names the interpreter of .venv. TORCH=keep leaves torch alone; TORCH="torch==2.9.1 --index-url URL"'
	@echo 'installs that one. An active virtual environment is used in place of .venv, and a torch that it has stays.'

install: ## Make .venv and install everything
	@bash .ci/install "$(ENV)"

install-vllm: ## Make .venv-vllm, 3.5 GB, from which make test-services serves a judge and draws rollouts
	@bash .ci/install-vllm

demo: install ## Run the whole method on the built-in demonstrations
	@"$(BIN)/dpr" run demo

demo-real: install ## The same with a real model, SmolLM2-135M-Instruct, on word problems: two cores, a quarter of an hour
	@"$(BIN)/dpr" backbone smollm2-135m build/smollm2-135m
	@"$(BIN)/dpr" run demo-real --set backbone.name=build/smollm2-135m

test: install ## Run the quick tier: unit and integration tests, in minutes, on two cores (WORKERS=n changes that)
	@$(PYTEST) $(WORKERS)

test-all: test ## Run the quick tier, and then the slow one: kills, processes, deployments, the commands of the docs
	@$(PYTEST) $(WORKERS) -m "slow and not services and not gpu"

unit: install ## Run the unit tests alone
	@$(PYTEST) -m "not integration and not slow and not services and not gpu"

test-services: install ## Run the tests against real servers, such as vLLM; those of a server that is not there are skipped
	@$(PYTEST) $(WORKERS) --no-loadscope-reorder -rs -m services

test-gpu: install ## Run the tests that need a GPU
	@"$(BIN)/python" -m pytest -q -rs -m gpu

golden: install ## Compare what dpr does with the record in GOLDEN=build/golden, or say how to make one
	@"$(BIN)/python" tests/golden.py compare "$${GOLDEN:-build/golden}" $$SECTIONS

stack: install ## Start what a company runs, as processes here: PostgreSQL, S3, MLflow, Prefect, a worker a pool
	@"$(BIN)/python" -m deployments.stack start

stack-stop: ## End it, and remove what it made
	@"$(BIN)/python" -m deployments.stack stop

up: ## Build the image and start the same in containers, with COMPOSE="docker compose"
	@$(HAVE_COMPOSE)
	@$(COMPOSED) up --build --detach
	@echo 'Prefect: http://localhost:4200  MLflow: http://localhost:5000  A first run, the recipe demo:'
	@echo '  $(COMPOSED) exec worker-cpu prefect deployment run dense-path/run --watch'

down: ## End the containers; what they made stays in their volumes
	@$(HAVE_COMPOSE)
	@$(COMPOSED) down

soak: install ## Use, disturb and damage stores at random for MINUTES=60 from SEED=0, and look for what must never be
	@OMP_NUM_THREADS=1 "$(BIN)/python" -m tests.soak --minutes $${MINUTES:-60} --seed $${SEED:-0} --report $${REPORT:-build/soak.json}

bench: ## Time the program beside TRL and plain transformers, in .venv-bench, into bench.json and plots beside it; about an hour
	@env -u VIRTUAL_ENV bash .ci/install-bench
	@OMP_NUM_THREADS=1 .venv-bench/bin/python perf/all.py --out bench.json

bench-real: ## The same at the shape of SmolLM2, beside vLLM too where DENSE_PATH_VLLM or .venv-vllm has it, into bench-real.json; about an hour
	@env -u VIRTUAL_ENV bash .ci/install-bench
	@DENSE_PATH_VLLM="$${DENSE_PATH_VLLM-$(wildcard .venv-vllm)}" OMP_NUM_THREADS=1 .venv-bench/bin/python perf/all.py --real --out bench-real.json

gpu-check: ## Measure what one GPU gains, reaches and needs, in eight minutes, into OUT=gpu-check.json; without one, rehearse
	@"$(GPU_PYTHON)" perf/gpu_check.py --out "$${OUT:-gpu-check.json}"

check: install ## Check format, lint, types and layering
	"$(BIN)/ruff" format --check
	"$(BIN)/ruff" check
	"$(BIN)/mypy"
	"$(BIN)/lint-imports" --no-cache

format: install ## Format the code and mend what the linter can mend
	"$(BIN)/ruff" check --fix
	"$(BIN)/ruff" format

clean: ## Remove .venv, .venv-vllm, .venv-bench and all caches; artifacts in .dpr stay
	rm -rf .venv .venv-vllm .venv-bench build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
