# Everything sets itself up: a virtual environment in .venv, once, and again when the locked versions change.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
# What another environment left in this shell must not leak into ours.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH

BIN := .venv/bin
READY := .venv/.ready
LOCK := locks/develop.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3
MOST_LINES := 450
TYPED := shared gateway_node dispatcher pushfleet tests bench locks
# ARGS goes to the command of run, rocketmq, test and the tiers: make unit ARGS='-k ports'
ARGS :=

help: ## show this
	@echo 'make TARGET'
	@grep -hE '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-13s %s\n", $$1, $$2}'

run: $(READY) ## a whole cluster on this machine until Ctrl-C (ARGS='--bus rocketmq')
	@exec $(BIN)/pushfleet dev $(ARGS)

rocketmq: $(READY) ## a RocketMQ name server and broker on this machine until Ctrl-C; needs Java 17 and Maven
	@exec $(BIN)/pushfleet rocketmq $(ARGS)

test: lint jars ## all checks and all tests
	$(PYTEST) $(ARGS)

lint: $(READY) ## style, types, borders between the packages, file lengths
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@git ls-files '*.py' | xargs -r wc -l | awk '$$2 != "total" && $$1 > $(MOST_LINES) \
		{ print $$2 ": " $$1 " lines, more than $(MOST_LINES)"; long = 1 } END { exit long }'

types: $(READY) ## types alone
	$(BIN)/mypy

fmt: $(READY) ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: $(READY) ## pure tests, seconds
	$(PYTEST) tests/unit $(ARGS)

contract: $(READY) jars ## each bus adapter and Redis script against its contract
	$(PYTEST) tests/contract $(ARGS)

integration: $(READY) jars ## real processes, Valkey and RocketMQ
	$(PYTEST) tests/integration $(ARGS)

conformance: $(READY) ## WebSocket conformance
	$(PYTEST) tests/conformance $(ARGS)

chaos: $(READY) jars ## random faults for 20 minutes, nothing lost (ARGS='--minutes 5 --seed 7'); docs/chaos.md has the method
	$(BIN)/python -m tests.chaos.run $(ARGS)

fuzz: $(READY) ## hostile input to every parser, 10 minutes each (ARGS='frames tokens --minutes 1'); docs/fuzzing.md
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(PIP) --require-hashes --only-binary :all: -r locks/fuzz.txt
	$(BIN)/python -m tests.fuzz.run $(ARGS)

bench: $(READY) ## measure everything that is promised (ARGS='latency --quick'); bench/README.md has the method
	$(BIN)/python -m bench.run $(ARGS)

lock: $(READY) ## the lock files anew from pyproject.toml (ARGS=--upgrade: newest versions)
	@$(BIN)/python -m locks.renew $(ARGS)

audit: $(READY) ## known vulnerabilities of what is locked; code 3 where no service can be asked
	@$(BIN)/python -m locks.audit

jars: $(READY)
	@for need in java mvn; do \
		command -v $$need >/dev/null || { echo "$$need is missing: the tests run a real RocketMQ (Debian: apt-get install openjdk-17-jre-headless maven)"; exit 1; }; \
	done
	@$(BIN)/pushfleet rocketmq --fetch-only

clean: ## remove all that can be made again; data in .pushfleet stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	if [ -f bench/Makefile ]; then $(MAKE) -C bench clean; fi

$(READY): pyproject.toml $(LOCK)
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		for python in $(PYTHONS); do \
			if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				found=$$python; break; \
			fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo 'Python 3.11 or later with its venv module is needed (Debian: apt-get install python3-venv)'; exit 1; \
		fi; \
		echo "== making .venv with $$($$found -V)"; \
		$$found -m venv --clear .venv; \
	fi
	@echo '== installing what locks/develop.txt names into .venv (a minute or two the first time)'
	@# Wheels alone: building from sources would run code that no hash covers.
	@$(PIP) --require-hashes --only-binary :all: -r $(LOCK)
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: help run rocketmq test lint types fmt unit contract integration conformance chaos fuzz bench lock audit jars clean
