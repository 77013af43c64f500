# make demo, make test. VENV=dir takes another virtual environment, PYTHON=python3.12 another Python.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
# The editable install knows each module by its file: another set of files is another install.
INSTALLED := $(VENV)/.stablerep-installed-$(shell find stablerep -name '*.py' | LC_ALL=C sort | cksum | cut -d' ' -f1)
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help setup photos demo test lint bench sanitize test-triton gpu-pack gpu-check
# As the commands have it (process.py), so that a loaded machine shares its cores.
demo test: export GOMP_SPINCOUNT ?= 1000

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED) ## make the virtual environment and install the package with its tests' needs

$(INSTALLED): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.10 to 3.13 is needed; for another one than $(PYTHON): make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12"; exit 1; }
	@missing=; \
	command -v c++ > /dev/null || missing+=" g++"; \
	$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || missing+=" python3-venv"; \
	$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2> /dev/null || missing+=" python3-dev"; \
	[ -z "$$missing" ] || { echo "something is missing; run: sudo apt-get install$$missing"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -e '.[dev,onnx,trt-rtx,ray,s3]' -c constraints.txt
	@rm -f $(VENV)/.stablerep-installed*
	@touch $@

photos: setup ## fetch the real photos (Fashion-MNIST)
	@examples/fashion/fetch_photos.sh $(PY)

demo: photos ## paint, train and evaluate on two CPU cores; ends with a table and a report
	$(PY) -m examples.fashion.demo --out runs/demo

JOBS ?= 2
test: photos ## run the tests, JOBS=2 at a time; compile every kernel for the GPUs we name
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal
	$(PY) -m benchmarks.resources

lint: setup ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: setup ## measure, record in benchmarks/results, print
	$(PY) -m pytest benchmarks --benchmark -q
	$(PY) -m benchmarks.table --plot benchmarks/results/latest.png

NATIVE_OPS := philox_normal guided_step to_pixels strong_augment

# A venv without the editable install's hook, started where no stablerep folder lies: the package of build/sanitize is
# the one that is found.
sanitize: setup ## run the native ops' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf build/sanitize
	$(PY) -m venv --without-pip build/sanitize/venv
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$(build/sanitize/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/installed.pth
	$(PY) -m pip install -q --no-deps --target build/sanitize/package \
	  -C cmake.define.STABLEREP_SANITIZE=ON -C cmake.define.STABLEREP_CUDA=OFF .
	cd build/sanitize && ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	  venv/bin/python -m pytest -q -p no:cacheprovider -c ../../pyproject.toml --import-mode=append \
	  -o pythonpath=build/sanitize/package \
	  $(NATIVE_OPS:%=../../tests/ops/test_%.py) ../../tests/engines/test_native.py

# Beside the one of constraints.txt; 3.6 comes with torch 2.11. Its interpreter reads scalars as NumPy 2.4 no longer does.
TRITON ?= 3.6.0
TRITON_SITE = build/triton-$(TRITON)
test-triton: setup $(TRITON_SITE) ## the losses' kernels in another Triton, interpreted and compiled for sm_90 (TRITON=3.6.0)
	PYTHONPATH=$(TRITON_SITE) OMP_NUM_THREADS=1 $(PY) -m pytest -q -k "triton or shares or collapsed or bad_rows" \
	  tests/ops/test_multi_positive_loss.py tests/ops/test_image_text_loss.py
	PYTHONPATH=$(TRITON_SITE) $(PY) -m benchmarks.resources --triton --architecture 90

build/triton-%:
	$(PY) -m pip install -q --no-deps --target $@ triton==$* 'numpy<2.4'

GPU_PYTHON ?= python3.12
gpu-pack: setup ## what a GPU machine without network lacks, in build/gpu-pack (GPU_PYTHON=python3.12)
	$(PY) -m benchmarks.gpu_pack --python $(GPU_PYTHON)

# With PACK, PYTHON is the machine's own Python, with its torch: no virtual environment, no network, nothing compiled.
GPU_SITE := build/gpu-site
$(if $(PACK),$(if $(wildcard $(PACK)/*.whl),,$(error PACK=$(PACK) has no wheels; make gpu-pack makes some)))
gpu-check: export PYTHONPATH := $(if $(PACK),$(GPU_SITE):.,$(PYTHONPATH))
gpu-check: export LD_LIBRARY_PATH := $(if $(PACK),$(GPU_SITE)/nvidia/cu13/lib:)$(LD_LIBRARY_PATH)
gpu-check: $(if $(PACK),$(GPU_SITE),setup) ## check and measure what needs a CUDA GPU (PART=1 to 4, MINUTES=4, LIST=1, OUT=dir, PACK=build/gpu-pack)
	$(if $(PACK),$(PYTHON),$(PY)) -m benchmarks.gpu_check $(if $(PART),--part $(PART)) $(if $(OUT),--out $(OUT)) $(if $(LIST),--list) \
	  $(if $(MINUTES),--minutes $(MINUTES))

$(GPU_SITE): $(if $(PACK),$(wildcard $(PACK)/*))
	rm -rf $@
	$(PYTHON) -m pip install -q --no-index --no-deps --no-compile --target $@ $(filter %.whl,$^)
	cp $(filter %.so,$^) stablerep/
	@touch $@
