# Everything a fresh machine needs is Python >= 3.11 and make: `make demo` and `make test` set up the rest in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo up down test cluster test-cluster bench-stream bench-trainer bench-serving bench-embeddings bench-identities bench-drn bench-learning bench-classics k8s-tools test-k8s alerts lint format lock schema metrics config-table dashboards capacity protos clean

demo: $(READY)
	$(BIN)/pageturn demo

# The production shape on this machine, from the manifests: needs kubectl, redis-server, prometheus, alertmanager and Java.
# `make up OVERLAY=prod` is without Flink; FACTOR=1 leaves alerts the time that they wait in production.
OVERLAY ?= prod-flink
FACTOR ?= 0.02

up: $(READY) cluster
	$(BIN)/python -m cluster up --overlay $(OVERLAY) --factor $(FACTOR)
	$(BIN)/python -m cluster drill

down: $(READY)
	$(BIN)/python -m cluster down

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not cluster and not k8s" $(PYTEST_ARGS)

# Servers that tests start on this machine: pinned jars, fetched by Maven (Java 17 or later) into .cluster.
cluster:
	cluster/fetch.sh kafka
	cluster/fetch.sh flink

test-cluster: $(READY) cluster
	$(BIN)/python -m pytest -m cluster --timeout 900 $(PYTEST_ARGS)

# Prints the table and keeps its figures. On a machine that does nothing else: ten minutes.
bench-stream: $(READY) cluster
	$(BIN)/python -m benchmarks.on_flink --json benchmarks/results/stream.json

# DRN and what it is compared with on the simulated news: eleven methods, five seeds. Resumes where it was stopped;
# `python -m benchmarks.drn --docs` writes its tables into docs/drn.md.
bench-drn: $(READY)
	$(BIN)/python -m benchmarks.drn --json benchmarks/results/drn.json

# Rows that benchmarks/results/learning.json has are not run again: stop it and resume as you like. All of them, on a
# core of its own: about two hours. `make bench-learning QUICK=--quick`: ten minutes, figures of less weight.
LEARNING_PEERS := .peers/learning

bench-learning: $(READY) $(LEARNING_PEERS)/.ready
	$(BIN)/python -m benchmarks.learning $(QUICK)

$(LEARNING_PEERS)/.ready: benchmarks/peers/learning.txt $(READY)
	test -x $(LEARNING_PEERS)/bin/python || $(BIN)/uv venv -q --python $(BIN)/python $(LEARNING_PEERS)
	$(BIN)/uv pip install -q --python $(LEARNING_PEERS)/bin/python -r benchmarks/peers/learning.txt
	touch $@

# CartPole and Pendulum. Resumes where it was stopped; `make bench-classics QUICK=--quick` only says whether it runs.
bench-classics: $(READY)
	$(BIN)/python -m benchmarks.classics $(QUICK)

# The model server is the stand-in, or the binary that PAGETURN_MODEL_SERVER names. Seven minutes.
bench-serving: $(READY)
	$(BIN)/python -m benchmarks.serving --json benchmarks/results/serving.json

# Two to ten minutes, and 3 GB of memory for the Redis that it starts.
ITEMS ?= 10000000
bench-embeddings: $(READY)
	$(BIN)/python -m benchmarks.embeddings --items $(ITEMS) --json benchmarks/results/embeddings.json

# Ids of features that come and go: IDS=10000000 takes ten minutes, and 3 GB of disk.
IDS ?= 10000000
bench-identities: $(READY)
	$(BIN)/python -m benchmarks.identities --ids $(IDS) --json benchmarks/results/identities.json

# Learners to compare with, each in an environment of its own, of pinned versions; several gigabytes.
PEERS := .peers
$(PEERS)/%/.ready: benchmarks/peers/%.txt $(READY)
	rm -rf $(PEERS)/$*
	$(BIN)/uv venv -q --python $(BIN)/python $(PEERS)/$*
	$(BIN)/uv pip install -q --python $(PEERS)/$* --no-deps --compile-bytecode --require-hashes -r $<
	touch $@

# On a machine that does nothing else: less than ten minutes.
bench-trainer: $(READY) $(PEERS)/stable_baselines3/.ready $(PEERS)/tf_agents/.ready
	$(BIN)/python -m benchmarks.trainer --environments $(PEERS) --json benchmarks/results/trainer.json

# Manifests and images, looked at without a cluster: rendered, against schemas, against our own commands.
k8s-tools: $(READY)
	tests/k8s/tools/fetch.sh $(BIN)/uv

test-k8s: $(READY) k8s-tools
	$(BIN)/python -m pytest -m k8s tests/k8s $(PYTEST_ARGS)

alerts: $(READY)
	$(BIN)/python -m tests.k8s.alerts

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The lock names versions and hashes, no registry: each machine installs from the one it is set up for.
lock: $(READY)
	$(BIN)/uv pip compile -q pyproject.toml --extra dev --universal --generate-hashes \
		--no-emit-index-url --no-header -o requirements.lock

# Files that are generated and committed; tests fail when one is out of date.
schema: $(READY)
	$(BIN)/pageturn schema > pipeline/events.schema.json

metrics: $(READY)
	$(BIN)/python -m pageturn.metrics_table docs/metrics.md

config-table: $(READY)
	$(BIN)/python -m pageturn.config_table docs/configuration.md

capacity: $(READY)
	$(BIN)/python -m benchmarks.capacity

dashboards: $(READY)
	$(BIN)/python -m tests.k8s.dashboards

protos: $(READY)
	$(BIN)/python -m pipeline.serving.build_descriptors
	$(BIN)/python -m pipeline.agent.build_protos

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Pageturn needs Python 3.11 or later; found $$($(PYTHON) --version). Set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "uv>=0.5"
	$(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@
