# One word per task. Each target works alone on a fresh machine: it makes .venv and installs what it needs.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help run demo test check perf backlog simulate torture clean

help: ## Say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 20

$(READY): pyproject.toml .ci/venv
	@PYTHON="$(PYTHON)" sh .ci/venv "$(VENV)"
	@echo "installing Tanist and its tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

run: $(READY) ## Start a three-node cluster on loopback, until Ctrl-C
	@$(BIN)/tanist dev --nodes 3

demo: $(READY) ## Kill nodes under real messages and count that nothing is lost
	@sh .ci/demo-data "$(VENV)"
	@$(BIN)/python -m perf.demo

check: $(READY) ## Formatting, lint, types, import contracts
	@echo "ruff format" && $(BIN)/ruff format --check .
	@echo "ruff check" && $(BIN)/ruff check .
	@echo "mypy --strict" && $(BIN)/mypy
	@echo "import contracts" && $(BIN)/lint-imports

test: $(READY) ## Every test, at most 12 minutes
	@sh .ci/test "$(BIN)"

simulate: $(READY) ## The long simulations, every planted mistake at full budget
	@$(BIN)/pytest -m long tests/simulation

torture: $(READY) ## KILLS=100 real kills under load, a line each
	@$(BIN)/python -m perf.torture --kills $${KILLS:-100}

perf: $(READY) ## The benchmarks, one after another; nothing else should run
	@for bench in throughput promotion memory idle pages; do \
	    echo "--- $$bench"; $(BIN)/python -m perf.$$bench || exit 1; \
	done

backlog: $(READY) ## Queues larger than memory: 16 GB in DIR=/tmp, about ten minutes; nothing else should run
	@$(BIN)/python -m perf.backlog --dir "$${DIR:-/tmp}" --plot build/backlog.svg
	@$(BIN)/python -m perf.promotion --dir "$${DIR:-/tmp}" --budget-mib 512 \
	    --rounds 5 --backlog 5000000 --once 50000000

clean: ## Remove what the other targets made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
