# Every target sets up what it needs in .venv; only Python 3.11 or newer has to be there.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
ARGS ?=

.PHONY: demo test test-fast test-e2e test-nightly lint page-types format bench-report clean

demo: .venv/.demo
	@$(BIN)/shoal demo $(ARGS)

test: lint page-types test-fast test-e2e

# Everything without a real model. A file stays in one process, which starts what its tests share once.
test-fast: .venv/.dev
	$(BIN)/pytest -n 2 --dist loadfile -m "not e2e and not gpu" $(ARGS)

# The real vLLM CPU engine with a real small model; the first run installs both.
test-e2e: .venv/.dev
	$(BIN)/pytest -m "e2e" tests/e2e tests/engines/plugin $(ARGS)

# The properties of memory and of the relay's HTTP with a hundred times the examples, a million frames at the broker and a
# million damaged streams at the relay: hours.
test-nightly: .venv/.dev
	SHOAL_TEST_EXAMPLES=10000 SHOAL_TEST_FRAMES=1000000 $(BIN)/pytest -n 2 --dist loadgroup --timeout 14400 \
		-m "not e2e and not gpu" tests/memory tests/engines/plugin $(addprefix tests/gateway/test_,framing.py http1.py \
		smuggling.py differential.py fuzz.py bounds.py bad_engines.py) $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The types of the page's scripts, where there is npm; also fetches what its tests use. Shoal itself needs none of it.
page-types:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory tools/node_modules/.package-lock.json && \
		tools/node_modules/.bin/tsc -p tools/tsconfig.json; \
	else echo "no npm on this machine: the types of the page's scripts are left out"; fi

tools/node_modules/.package-lock.json: tools/package-lock.json
	cd tools && npm ci --no-audit --no-fund
	@touch $@

# What was promised and measured, for every benchmark.
bench-report: .venv/.dev
	@$(BIN)/python -m shoal.bench.results benchmarks

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Shoal needs Python 3.11 or newer; none was found"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml
	@echo "Installing Shoal into .venv …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml
	@echo "Installing Shoal and its development tools into .venv …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/.demo

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build
