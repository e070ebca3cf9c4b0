# One command from a clone to green: `make test`.  A bare machine needs python3.11 (or newer), a JDK 17, Maven and make.
#
#   setup   a virtual environment in .venv with the locked dependencies (quick when nothing has changed)
#   demo    orders through an outage and a kill -9, then an audit of every ledger
#   demo-cluster  three instances on one Kafka: orders through a kill -9, a newcomer and a drain; then the same audit
#   test    all of it: style, types, layers, tests (with a real Kafka, fetched once)
#   check   style, types and layers only             fast    the tests that need no socket
#   fuzz    the decoders under random input          bench   what it costs, beside the floors
#   soak    commands of every kind while daemons are killed and stopped at random; minutes
#   spec    the protocol, every interleaving of a model (docs/spec); needs Debian's spin and gcc
#   chaos   three daemons on three brokers: killed, hung, cut off, restarted in turn under load; MINUTES=…
#   proto   generated code of proto/                 lock    the newest dependencies that pyproject.toml allows
#   clean   everything that the above has made here
#
# KAFKA_BOOTSTRAP=host:port makes the tests use a Kafka that runs already.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := coordinator bench clients/python examples tests deploy

LONG := tests/simulation tests/chaos tests/integration tests/scenarios

.PHONY: setup demo demo-cluster test check fast fuzz bench soak chaos proto lock clean kafka deploy-check sim spec
.DELETE_ON_ERROR:

setup: $(READY)
	@:

# The stamp is the last thing written, so an interrupted set-up is simply done again.
$(READY): requirements-dev.lock pyproject.toml clients/python/pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed, not " + sys.version.split()[0])'
	@echo "setting up $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

demo: $(READY)
	@$(BIN)/coordinator demo

# A Kafka of one broker (BROKERS=3: three) for as long as the demo takes, or the one of KAFKA_BOOTSTRAP.
demo-cluster: $(READY) kafka
	@if test -n "$$KAFKA_BOOTSTRAP"; then exec $(BIN)/python -m coordinator.demo.group; fi; \
	data=$$(mktemp -d); trap '$(BIN)/python -m coordinator.testing.kafka stop --data $$data/kafka; rm -rf $$data' EXIT; \
	echo "starting a Kafka of $(or $(BROKERS),1) in $$data"; \
	export $$($(BIN)/python -m coordinator.testing.kafka start --nodes $(or $(BROKERS),1) --data $$data/kafka) && \
	$(BIN)/python -m coordinator.demo.group

# pytest comes last, so that its summary is the last line of a log.  Of two files side by side the long ones go first, or
# one worker would be left with them at the end.
test: check kafka
	@$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(LONG) tests clients/python/tests

check: $(READY)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy

fast: $(READY)
	@$(BIN)/pytest -q tests/unit tests/properties

fuzz: $(READY)
	@$(BIN)/pytest -q tests/fuzz

bench: $(READY) kafka
	@$(BIN)/python -m bench

# Every Kubernetes version whose schemas are here; `make test` looks at the oldest and the newest.
deploy-check: $(READY)
	@$(BIN)/python deploy/check.py

# The whole daemon from seeds: `make sim MINUTES=10`, or SEEDS=100000.
sim: $(READY)
	@$(BIN)/python -m coordinator.testing.simulator $(if $(SEEDS),--seeds $(SEEDS),--minutes $(or $(MINUTES),1))

# The jars once, into ~/.cache: a test that starts Kafka then only starts it.
kafka: $(READY)
	@test -n "$$KAFKA_BOOTSTRAP" || $(BIN)/python -m coordinator.testing.kafka install

soak: $(READY) kafka
	@$(BIN)/python -m tests.integration.soak
	@$(BIN)/python -m tests.integration.soak --rivals 2
	@$(BIN)/python -m tests.integration.soak --rivals 2 --log kafka

# The model of docs/spec: what must hold holds, each known shortcut is found broken.  Needs nothing of $(VENV).
spec:
	@$(PYTHON) scripts/spec.py

# Three brokers, three daemons, every fault in turn while clients call: `make chaos MINUTES=30`.
chaos: $(READY) kafka
	@$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),0)

proto: $(READY)
	@PYTHON=$(BIN)/python scripts/generate_proto.sh

lock: $(READY)
	@$(PIP) install uv
	@$(BIN)/uv pip compile --quiet --upgrade $(LOCK) -o requirements.lock
	@$(BIN)/uv pip compile --quiet --upgrade $(LOCK) --group dev -c requirements.lock -o requirements-dev.lock

# For every platform, with hashes; the client is part of this checkout.
LOCK := pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-emit-package coordinator-client

clean:
	@rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
