# `make simulate` and `make test` set up what they need; a second call skips what is done.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export FLWR_TELEMETRY_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help install simulate serve proto triton test test-slow test-gpu lint format clean

help: ## Show these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## Make .venv and install Fedveil into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

simulate: $(STAMP) ## Train on handwritten digits: ten clients, differential privacy, a report
	$(BIN)/fedveil simulate $(ARGS)

serve: $(STAMP) ## Serve the newest run under runs/ over the Open Inference Protocol
	@newest=$$(ls -td runs/*/run.json 2>/dev/null | head -n 1); \
	if [ -z "$$newest" ]; then echo "error: there is no run under runs/; make one first: make simulate" >&2; exit 1; fi; \
	exec $(BIN)/fedveil serve "$$(dirname "$$newest")" $(ARGS)

proto: ## Make the protocol's messages anew from oip.proto; needs pip install grpcio-tools
	cd fedveil/server/inference && $(PYTHON) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. oip.proto

triton: ## Make .venv-triton with NVIDIA's client, which some tests then use
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --disable-pip-version-check --quiet 'tritonclient[grpc,http]' ml_dtypes

test: $(STAMP) ## Run the tests, without the slow and the GPU ones
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-slow: $(STAMP) ## Run the slow tests
	$(BIN)/python -m pytest -m slow $(ARGS)

test-gpu: $(STAMP) ## Run the tests that need CUDA
	$(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv and caches
	rm -rf $(VENV) .venv-triton build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
