# `make run` and `make test` need Python 3.11 or newer and nothing else: they make their own environment.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
LOCKS := requirements/run.lock requirements/dev.lock

.DEFAULT_GOAL := help
.PHONY: help run test lint format docs bench soak demo loop lock sbom clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

run: $(VENV)/.run ## Start the daemon with config.yaml (its own store, nothing to install)
	@exec $(BIN)/cbq-exporter serve

demo: $(VENV)/.run ## One minute of what the product does: load, failures, retries, live view
	@exec $(BIN)/cbq-exporter demo

loop: $(VENV)/.dev ## A fault, its alert, what heals it: with real Prometheus and Alertmanager
	@exec $(BIN)/python -m loop $(ARGS)

test: lint ## Lint, types, import contract and all tests
	$(BIN)/python -m tests.run $(ARGS)

lint: $(VENV)/.dev ## Lint, format check, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## Write the generated parts of docs/
	$(BIN)/python -m tests.generated --write

bench: $(VENV)/.dev ## Measure against other queues (needs redis-server, nginx and node)
	$(BIN)/python -m benchmarks.run $(ARGS)

soak: $(VENV)/.dev ## An hour of load and faults (ARGS=MINUTES): nothing lost, nothing that grows (needs redis-server)
	@$(BIN)/python -m benchmarks.soak $(ARGS)

lock: $(VENV)/.dev ## Renew the locks within the ranges of pyproject.toml
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--python-version 3.11 --extra embedded pyproject.toml requirements/build.in -o requirements/run.lock
	$(BIN)/uv pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--python-version 3.11 --extra embedded --group dev pyproject.toml requirements/build.in -o requirements/dev.lock

sbom: $(VENV)/bin/python ## Write dist/sbom.cdx.json: what an installation holds, from the lock (CycloneDX)
	@$(BIN)/python -m venv $(VENV)/sbom
	@$(VENV)/sbom/bin/pip install -q --disable-pip-version-check cyclonedx-bom==7.5.0
	@mkdir -p dist
	@$(VENV)/sbom/bin/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml \
		--of JSON --sv 1.6 -o dist/sbom.cdx.json requirements/run.lock
	@echo dist/sbom.cdx.json

clean: ## Remove the environment and caches (not the data of the embedded store)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "cbq-exporter needs Python 3.11 or newer; none was found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# What is installed is exactly what the lock names, checked by hash.
$(VENV)/.run: requirements/run.lock pyproject.toml | $(VENV)/bin/python
	@echo "Preparing $(VENV) (the first time takes half a minute) ..." >&2
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $<
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.run
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@
