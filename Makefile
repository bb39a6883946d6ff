# make demo    the example chat on 4 workers: http://127.0.0.1:3000 (PORT=3001 for another port)
# make test    everything that has to be right before a commit
# make fast    the tests that need nothing but Python, without the slowest of them
#              (PYTHON=python3.12, here and everywhere, for another Python)
# make simulate  a million simulated histories of the master (HISTORIES, PROCESSES; more than an hour on two cores)
# make fuzz    the compiled core under AddressSanitizer and UBSan, fed for a minute (FUZZ_SECONDS)
# make bench   the benchmarks (a quarter of an hour; BENCH_QUICK=1: three minutes)
# make long    100,000 requests through each real proxy to each kind of server (a quarter of an hour)
# make soak    servers of each worker class disturbed in every way under load, with an oracle (ten
#              minutes; SECONDS=60 SEED=7 KINDS=asgi ONLY=kill,hup: python -m tests.soak --help)
# make deploy-check  a reload every three seconds under two hundred Socket.IO clients (KINDS=...)
# make events  100,000 messages between workers that are killed and reloaded meanwhile (EVENTS=...)
# make floods  thousands of connections, and what other slots' clients notice (KINDS=..., PART=0.1)
# make frameworks  Streamlit, Gradio, NiceGUI and others, each in an environment of its own, in a
#              browser: docs/frameworks.md gets what was seen (ONLY=shiny,panel; FRESH=1: install them
#              anew; THOROUGH=1: not only what of uvicorn fails first)
# make clean   remove what the others made
#
# All of them set up what they need, in a virtual environment of their own; the second time there is
# nothing left to set up.

PYTHON ?= python3
PORT ?= 3000

comma := ,

# Another Python than the usual one gets another environment.
ifeq ($(PYTHON),python3)
VENV ?= .venv
else
VENV ?= .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
BUILT_FROM := sticky/_core.pyx setup.py pyproject.toml
NODE_MODULES := tests/e2e/node_modules/.package-lock.json

# Three processes keep two cores busy: many tests wait most of their time. Those that share servers
# stay together (tests/conftest.py), and the order is that of the folders: contract and e2e, the
# slowest, first.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test lint fast simulate fuzz bench long soak deploy-check events floods frameworks clean ready ready-for-fast programs

demo: $(VENV)/installed
	@exec $(BIN)/python examples/chat/app.py $(PORT)

# The tests run also when the linters complain, so that one trouble does not hide another.
test: ready
	@status=0; $(MAKE) --no-print-directory lint || status=1; \
	echo "$(PYTEST)"; $(PYTEST) || status=1; exit $$status

lint: ready-for-fast
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" cython-lint sticky/_core.pyx

fast: ready-for-fast
	STICKY_HISTORIES=300 $(PYTEST) -o cache_dir=$(VENV)/pytest-cache tests/unit tests/simulation \
		tests/process/test_listen.py \
		--ignore tests/unit/test_core_mutants.py --ignore tests/unit/test_packaging.py \
		-k "not portable_form and not noticed_if and not at_every_step"

# A seed that breaks a promise is shown, with how to replay it.
HISTORIES ?= 1000000
PROCESSES ?= 0
simulate: ready-for-fast
	$(BIN)/python -m tests.simulation --histories $(HISTORIES) --processes $(PROCESSES)

fuzz: ready-for-fast
	$(BIN)/python -m tests.fuzz

bench: $(VENV)/ready-for-bench
	$(BIN)/python -m bench
	$(BIN)/python -m pytest bench

# nginx and HAProxy send the requests of 20 clients over few connections; every request has to be
# answered, by its own worker. The same tests run in `make test` with 5,000 requests.
long: ready
	STICKY_REQUESTS=100000 $(BIN)/python -m pytest tests/e2e/test_proxies.py \
		-k "own_worker and not 200" --timeout 1800

# `python -m tests.soak.prove` says whether it would find what it is there to find.
soak: ready
	$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),600) --kinds "$(KINDS)" --only "$(ONLY)" \
		$(if $(SEED),--seed $(SEED))

events: ready-for-fast
	STICKY_EVENTS=$(or $(EVENTS),100000) $(BIN)/python -m pytest tests/contract/test_event_stream.py \
		--timeout 900

EACH_KIND := $(or $(subst $(comma), ,$(KINDS)),eventlet gevent threads asgi)

deploy-check: ready
	@status=0; for kind in $(EACH_KIND); do \
		$(BIN)/python -m tests.soak.deploy --kind $$kind --seconds $(or $(SECONDS),60) || status=1; \
	done; exit $$status

floods: ready
	@status=0; for kind in $(EACH_KIND); do \
		$(BIN)/python -m tests.soak.floods --kind $$kind --part $(or $(PART),1) || status=1; \
	done; exit $$status

frameworks: ready
	@if [ "$(FRESH)" ]; then rm -rf .venv-frameworks; fi
	$(BIN)/python -m tests.frameworks --only "$(ONLY)" $(if $(THOROUGH),--thorough)

clean:
	rm -rf .venv .venv-* build dist *.egg-info sticky/_core.c sticky/*.so
	rm -rf tests/e2e/node_modules tests/e2e/artifacts .benchmarks
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@.ci/need build $(PYTHON)
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BUILT_FROM) | $(BIN)/python
	@.ci/need build $(BIN)/python
	@echo "Building sticky into $(VENV) (a minute or so the first time)"
	$(PIP) install --editable .
	@# As pip does with what it copies: else every process compiles all of it anew where Python may
	@# not write what it has compiled (PYTHONDONTWRITEBYTECODE).
	@$(BIN)/python -m compileall -q sticky examples
	@touch $@

$(VENV)/ready-for-tests: $(VENV)/installed
	$(PIP) install --upgrade "pip>=25.1"
	$(PIP) install --group test --group lint "socketio-sticky[all]"
	@$(BIN)/python -m compileall -q tests
	@touch $@

$(VENV)/ready-for-bench: $(VENV)/ready-for-tests
	$(PIP) install --group bench
	@touch $@

ready-for-fast: $(VENV)/ready-for-tests

ready: ready-for-fast programs $(NODE_MODULES)

# What is still missing then is named; its tests are skipped, or fail where CI=true.
programs:
	@.ci/need tests || true

$(NODE_MODULES): tests/e2e/package.json tests/e2e/package-lock.json | programs
	@if command -v npm >/dev/null; then cd tests/e2e && npm ci --no-progress && touch ../../$@; fi
