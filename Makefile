# Everything a newcomer types. `make demo` and `make test` set themselves up.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python

# No dependency phones home, and no compiled file is missing at import time.
export DO_NOT_TRACK := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo demo-buildings test test-slow bench coverage lint lock up-native down-native audit sbom licences clean

help:                ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

setup: .venv/.ok     ## create .venv from the hashed lock (about a minute)

# uv does not byte-compile by itself, and without it every process recompiles torch.
.venv/.ok: requirements.lock pyproject.toml
	@echo "Setting up .venv (about a minute with a warm package cache; 7 GB)"
	test -x .venv/bin/python || python3 -m venv .venv
	.venv/bin/python -m pip install -q uv==0.13.9 || true
	if .venv/bin/uv --version >/dev/null 2>&1; then \
	  .venv/bin/uv pip sync -q --python .venv/bin/python --compile-bytecode --require-hashes requirements.lock; \
	else .venv/bin/python -m pip install -q --require-hashes --no-deps -r requirements.lock; fi
	.venv/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

demo: .venv/.ok      ## fetch real scenes, train, evaluate, register, predict through Prefect, report
	.venv/bin/maskbridge demo crowns

demo-buildings: .venv/.ok ## the same over SpaceNet buildings
	.venv/bin/maskbridge demo buildings

test: .venv/.ok      ## every check but the slow ones
	$(MAKE) --no-print-directory lint
	$(PY) -m pytest -q -m "not slow"

test-slow: .venv/.ok ## kill matrices, full-size models, long overfits
	$(PY) -m pytest -q -m slow

bench: .venv/.ok     ## timings and full trainings; results go to benchmarks/results
	$(PY) -m benchmarks

coverage: .venv/.ok  ## the quick tests again, with what they do not reach
	$(PY) -m pytest -q -m "not slow" --cov --cov-report=term-missing:skip-covered

lint: .venv/.ok      ## ruff, mypy, import-linter
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy -p maskformer -p adapters -p pipelines -p flows -p deploy
	.venv/bin/lint-imports

lock: .venv/.ok      ## resolve pyproject.toml again into requirements.lock
	.venv/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements.lock

up-native: .venv/.ok ## start the services of docker-compose.yml without Docker (PostgreSQL from the system)
	$(PY) -m deploy.native up

down-native: .venv/.ok ## stop them; nothing is deleted
	$(PY) -m deploy.native down

audit: .venv/.ok     ## known vulnerabilities of the lock; fails on high ones that have a fix
	$(PY) -m deploy.audit

sbom: .venv/.ok      ## bill of materials of the lock as CycloneDX JSON
	$(PY) -m deploy.sbom sbom.json

licences: .venv/.ok  ## write THIRD_PARTY.md, the licences of the lock
	$(PY) -m deploy.licences

clean:               ## remove what runs leave behind, not the environment
	rm -rf demo-output mlruns mlflow.db .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage build dist sbom.json *.egg-info
