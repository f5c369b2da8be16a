# Everything runs from a bare checkout: each target builds .venv first where it is missing or out of date.
# Nothing here names a package registry: pip's own configuration does.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# The first interpreter that really runs and is 3.11 or newer (a name on PATH may be an empty shim).
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.winnow-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_OUT ?= runs/demo
PYTEST_ARGS ?=
ASSETS ?=
BENCH ?= .winnow/bench-speed

.PHONY: help setup demo up test test-all bench-speed bench-verdict bench-leaks bench-parity bench-serving \
	results bench-solvers bench-crash bench-concurrent bench-bad-input bench-fleet bench-engines bench-week bench-drift bench-scale \
	pages lint audit format ui clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP)  ## build .venv, nothing else (instant when it is up to date)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make setup: no Python 3.11 or newer on PATH; install one or name one with make PYTHON=..." >&2; exit 2; }
	@rm -f $(STAMP)
	@echo "setting up .venv from constraints.txt with $(PYTHON) (the first time takes minutes)"
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet -c constraints.txt setuptools
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[demo,scale,postgres,s3,dev]'
	@rm -rf winnow.egg-info build
	@touch $(STAMP)

demo: setup  ## the main job: recipes/intents.yaml into runs/demo
	$(BIN)/winnow specialize recipes/intents.yaml --out $(DEMO_OUT)

# Two processes, a file's tests together in one: two cores are what every machine has.
test: setup  ## the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(PYTEST_ARGS)

test-all: setup  ## every test, the slow ones too
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench-speed: setup  ## the speed study's tables; ASSETS=DIR makes the study anew first (hours on a CPU)
	@if [ -n "$(ASSETS)" ]; then \
		$(BIN)/python benchmarks/speed.py plan --assets $(ASSETS) --home $(BENCH) && \
		$(BIN)/python benchmarks/speed.py profiles --home $(BENCH) --generalists $(ASSETS)/generalists --profiles $(BENCH)/profiles && \
		$(BIN)/python benchmarks/speed.py run --home $(BENCH) --generalists $(ASSETS)/generalists --profiles $(BENCH)/profiles --out $(BENCH)/out && \
		$(BIN)/python benchmarks/speed.py time --generalists $(ASSETS)/generalists --out $(BENCH)/out && \
		$(BIN)/python benchmarks/speed.py table $(BENCH)/out/rows.jsonl $(BENCH)/out/times.jsonl; \
	else \
		$(BIN)/python benchmarks/speed.py table benchmarks/results/speed-rows.jsonl benchmarks/results/speed-times.jsonl; \
	fi

bench-verdict: setup  ## do the intervals hold? writes benchmarks/verdict.md (two minutes)
	$(BIN)/python benchmarks/verdict_simulation.py

bench-leaks: setup  ## planted leaks and false alarms; ASSETS=DIR for real data
	$(BIN)/python benchmarks/leaks.py $(if $(ASSETS),--assets $(ASSETS))

bench-parity: setup  ## planted faults, each to be named at its hop and node
	$(BIN)/python benchmarks/parity_faults.py

bench-serving: setup  ## requests a second, specialist against generalist, after `make demo`
	$(BIN)/python benchmarks/serving.py $(DEMO_OUT)

bench-crash: setup  ## SIGKILL at 50 random moments of the demo, resumed (hours on two cores)
	$(BIN)/python benchmarks/crash.py --kills 50 --work .winnow/crash --out .winnow/crash.jsonl

bench-concurrent: setup  ## fifty runs at once on PostgreSQL; again with MLflow's server killed for a minute
	$(BIN)/python benchmarks/concurrent_runs.py --runs 50 --draws 4
	$(BIN)/python benchmarks/concurrent_runs.py --runs 50 --draws 4 --away 60

bench-bad-input: setup  ## 10,000 bad recipes and data files; writes benchmarks/bad_input.md
	$(BIN)/python benchmarks/bad_input.py --workers 2 --out benchmarks/bad_input.md

bench-fleet: setup  ## twelve specialists, one worker against two
	$(BIN)/python benchmarks/fleet.py make --members 12 --out .winnow/fleet
	$(BIN)/python benchmarks/fleet.py run .winnow/fleet/fleet.yaml --workers 1 --out .winnow/fleet/1.json
	$(BIN)/python benchmarks/fleet.py run .winnow/fleet/fleet.yaml --workers 2 --out .winnow/fleet/2.json
	$(BIN)/python benchmarks/fleet.py table .winnow/fleet/1.json .winnow/fleet/2.json

bench-engines: setup  ## Dask against Ray; RAY=PYTHON names an environment that has prefect-ray
	$(BIN)/python benchmarks/engines.py $(if $(RAY),--ray-python $(RAY)) --out benchmarks/engines.md

bench-week: setup  ## a week of rechecks in fast forward; writes benchmarks/week.md
	$(BIN)/python benchmarks/week.py --rechecks 500 --changes 20 --out benchmarks/week.md

bench-drift: setup  ## false alarms and power of the drift tests; writes benchmarks/drift.md
	$(BIN)/python benchmarks/drift_simulation.py --draws 100 --out benchmarks/drift.md

bench-scale: setup  ## stage times and requests measured, then 1,000 specialists on 100 workers simulated
	$(BIN)/python benchmarks/scale_measure.py --recipe recipes/intents.yaml --out benchmarks/results/scale-measured.json
	$(BIN)/python benchmarks/scale_simulation.py --measured benchmarks/results/scale-measured.json --out benchmarks/scale.md --picture docs/scale.png

bench-solvers: setup  ## the column sweep against llm-compressor's SparseGPT; PEER=WHEEL, ASSETS=DIR
	$(BIN)/python benchmarks/solver_speed.py $(if $(PEER),--peer $(PEER)) $(if $(ASSETS),--assets $(ASSETS))

results: setup  ## benchmarks/RESULTS.md anew, from the rows of all studies
	$(BIN)/python benchmarks/results_page.py

pages: setup  ## screenshots and checks of card, MLflow and Prefect pages in Chromium, after `make demo`
	$(BIN)/python benchmarks/pages.py --out .winnow/pages --card $(DEMO_OUT)/card.html --home .winnow --form .winnow/pages-home

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: setup  ## the lock, licences, known bad releases; asks pip-audit where a service answers
	$(BIN)/python .ci/audit.py

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up: setup  ## servers, deployments and a worker until Ctrl-C
	$(BIN)/winnow up

ui: setup  ## the pages: MLflow and Prefect
	$(BIN)/winnow ui

clean:  ## remove .venv and caches; runs, stores and registries stay
	rm -rf .venv build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -path ./.git -prune -o -type d -name __pycache__ -print0 | xargs -0 -r rm -rf
