# Everything happens in a local .venv; nothing else on the machine is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint setup clean

# Build VMamba-T with STORM keep=0.75 for a T4, and validate it against PyTorch.
demo: $(READY)
	$(BIN)/stormrt build --model vmamba_tiny_s1l8 --size 224 --batch 1 --storm keep=0.75 \
		--target t4 --precision fp16 --out demo

# Lint, types and tests.
test: lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[workstation,rtx,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
