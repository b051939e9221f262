# Everything happens in a local .venv; nothing else on the machine is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := .tools/.ready
# TensorRT's lean runtimes, whose plugin registries the tests use. Both cannot be in one environment.
LEAN := 10.16.1.11 11.4.0.106
CPP := $(wildcard $(foreach kind,cpp cu cuh h hpp,plugins/*/*.$(kind) tests/plugins/native/*.$(kind) \
	benchmarks/operator_bench/*.$(kind) pipeline/package/templates/plain/*.$(kind) \
	tests/pipeline/package_stand_ins/*.$(kind) runtime/include/stormrt/*.$(kind) \
	tests/runtime/*.$(kind) tests/runtime/cpp/*.$(kind)))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint setup clean

# A trained model cut down, built for a T4, validated against PyTorch, and asked what it sees; with
# DATA (a folder of labelled images or an npz) also how often it is right, whole and cut down.
DEMO_MODEL := --model vmamba_nano_scenes
DEMO_STORM := --storm flops=0.75
# A photograph that comes with scikit-learn; the shell finds it once .venv is there.
PHOTO ?= $(VENV)/lib/python3*/site-packages/sklearn/datasets/images/china.jpg
demo: $(READY)
	$(BIN)/stormrt build $(DEMO_MODEL) $(DEMO_STORM) --target t4 --precision fp16 --out demo
	$(BIN)/stormrt classify $(PHOTO) $(DEMO_MODEL)
	$(BIN)/stormrt classify $(PHOTO) $(DEMO_MODEL) $(DEMO_STORM) --precision fp16
	$(BIN)/stormrt storm show $(PHOTO) $(DEMO_MODEL) $(DEMO_STORM) --out demo/storm.png
ifdef DATA
	$(BIN)/stormrt evaluate $(DEMO_MODEL) --data $(DATA)
	$(BIN)/stormrt evaluate $(DEMO_MODEL) $(DEMO_STORM) --data $(DATA)
	$(BIN)/stormrt evaluate $(DEMO_MODEL) $(DEMO_STORM) --precision fp16 --data $(DATA)
endif

# Lint, types and tests.
test: lint $(TOOLS)
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

setup: $(READY) $(TOOLS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable '.[workstation,rtx,dev]'
	touch $@

# What only tests need, and pip cannot have in the environment beside the rest.
$(TOOLS): $(READY) Makefile
	# For TensorRT's headers alone: what kernel-lens would bring (Triton) is not needed for them.
	$(PIP) --no-deps kernel-lens==2.0.1
	for version in $(LEAN); do \
		rm -rf .tools/lean-$$version && $(PIP) --no-deps --target .tools/lean-$$version \
			tensorrt_lean_cu13_libs==$$version tensorrt_lean_cu13_bindings==$$version || exit 1; \
	done
	# Types of full TensorRT. In the environment they would pass for the package itself.
	rm -rf .tools/tensorrt-stubs && $(PIP) --no-deps --target .tools/tensorrt-stubs \
		tensorrt-stubs==10.13.0.35.1
	touch $@

clean:
	rm -rf $(VENV) .tools demo build dist *.egg-info
