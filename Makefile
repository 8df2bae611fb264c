# Everything that is done with this repository, for people and for CI. No target needs root.
#
# Another Python:   make demo PYTHON=python3.13
# More for pytest:  make test-postgres PYTEST="-k ledger -x"

.SUFFIXES:
.DEFAULT_GOAL := help

PYTHON ?= python3
PYTEST =

# Relative, so that the checkout's own path may contain blanks.
BIN = .venv/bin
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version=3.11 --generate-hashes --no-header

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

.PHONY: venv
venv: ## make .venv: locked packages and this project, editable
	@command -v "$(PYTHON)" > /dev/null || { \
	  echo "There is no $(PYTHON) on PATH. Install Python 3.11 or newer (Debian, Ubuntu: apt-get install python3" \
	    "python3-venv), or name yours: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -I sandbox/venv.py $(if $(filter file,$(origin PYTHON)),,--this-python)

.PHONY: demo
demo: venv ## show views becoming fresh (DEMO_SECONDS=30 ends it)
	@$(BIN)/python -m sandbox.demo

.PHONY: sandbox
sandbox: venv ## start the demo's servers, without operator and show
	@$(BIN)/python -m sandbox

.PHONY: test
test: venv ## run all tests, on real servers
	@$(BIN)/python -m sandbox.parts
	@$(BIN)/python -m sandbox.controlplane build
	@echo "Five suites, about 19 minutes on two cores. Each says at its end how many tests passed."
	@failed=; for folder in unit simulation postgres cluster acceptance; do \
	  $(MAKE) -s run-tests FOLDER=$$folder || failed="$$failed $$folder"; done; \
	if [ -n "$$failed" ]; then \
	  echo "Failed:$$failed. Each failure is above, under FAILURES; make test-NAME runs one suite again." >&2; exit 1; fi
	@echo "All five suites passed."

.PHONY: test-unit test-simulation test-postgres test-cluster test-acceptance
test-unit: venv ## run the tests that need no servers
	@$(MAKE) -s run-tests FOLDER=unit
test-simulation: venv ## live through 10,000 random histories
	@$(MAKE) -s run-tests FOLDER=simulation
test-postgres: venv ## run the tests on PostgreSQL 15, 16 and 18
	@$(MAKE) -s run-tests FOLDER=postgres
test-cluster: venv ## run tests on Kubernetes (yours: TEST_CLUSTER=current)
	@$(MAKE) -s run-tests FOLDER=cluster
test-acceptance: venv ## run the tests of demo, command line and packages
	@$(MAKE) -s run-tests FOLDER=acceptance

.PHONY: torture
torture: venv ## try long to break exactly once (SLOTS=20000)
	@EXACTLY_ONCE_SLOTS=$(or $(SLOTS),20000) $(BIN)/python -m pytest -q -s tests/postgres/test_exactly_once.py $(PYTEST)

.PHONY: run-tests
run-tests:
	@case $(FOLDER) in \
	  unit) echo "== tests/unit: pure decisions, no server" ;; \
	  simulation) echo "== tests/simulation: the engine in virtual time, through random histories" ;; \
	  postgres) echo "== tests/postgres: PostgreSQL 15, 16 and 18, a database per test, roles without superuser" ;; \
	  cluster) echo "== tests/cluster: kube-apiserver and etcd, PostgreSQL, the operator as a process" ;; \
	  acceptance) echo "== tests/acceptance: demo, command line and packages, from end to end" ;; \
	esac
	@# Two at a time where tests mostly wait for servers; each of the two has its own. Not the files of most tests first:
	@# those of few are the longest.
	@$(BIN)/python -m pytest -q tests/$(FOLDER) \
	  $(if $(filter postgres simulation,$(FOLDER)),-n 2 --dist worksteal,$(if $(filter cluster,$(FOLDER)),-n 2 --dist loadfile --no-loadscope-reorder)) \
	  $(PYTEST)

SEEDS = 1 100000
.PHONY: simulate
simulate: venv ## live through SEEDS="FIRST NUMBER", or tell SEEDS=ONE
	@$(BIN)/python -m tests.simulation $(SEEDS)

CASES = 100000
.PHONY: fuzz
fuzz: venv ## try CASES=100000 hostile policies on PostgreSQL
	@FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -q tests/postgres/test_hostile_strings.py $(PYTEST)

.PHONY: check
check: venv ## run every linter and rule, in under a minute
	@failed=; \
	run() { echo "== $$*"; "$$@" || failed="$$failed, $$*"; }; \
	run $(BIN)/ruff format --check .; \
	run $(BIN)/ruff check .; \
	run $(BIN)/mypy; \
	run $(BIN)/lint-imports --no-logo; \
	run $(BIN)/python -m matview_operator.api.crd --check crds; \
	run $(BIN)/python -m pytest -q tests/unit/test_repository.py tests/unit/test_migration_heads.py; \
	run $(BIN)/hadolint Dockerfile; \
	if [ -n "$$failed" ]; then echo "Failed:$${failed#,}" >&2; exit 1; fi

.PHONY: crds
crds: venv ## write crds/ from the models
	@$(BIN)/python -m matview_operator.api.crd crds

.PHONY: lock
lock: venv ## renew the locked versions of all dependencies
	$(COMPILE) --upgrade --output-file=requirements/run.txt pyproject.toml
	$(COMPILE) --upgrade --output-file=requirements/build.txt --group build
	$(COMPILE) --upgrade --output-file=requirements/dev.txt --group dev pyproject.toml
	$(COMPILE) --upgrade --output-file=requirements/go.txt --group go

.PHONY: bench
bench: venv ## measure, and write what was measured to bench/results
	@$(BIN)/python -m bench

.PHONY: clean
clean: ## remove what was made in this folder, say what it frees
	@"$(PYTHON)" -B -m sandbox.clean checkout

.PHONY: clean-cache
clean-cache: ## remove cached programs and templates, say what it frees
	@"$(PYTHON)" -B -m sandbox.clean cache
