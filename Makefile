# Everything runs in .venv, made on first use from python3 alone.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
INSTALLED := .venv/installed
CXX_FILES = $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: build core pretrain test test-all mutants fuzz kills bench aot lint lock docs sanitized sanitize tsan clean

build: core  ## the package (editable), its tools and electra-fast in .venv

$(INSTALLED): pyproject.toml setup.py
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	rm -rf build *.egg-info
	$(BIN)/pip install "$(TORCH)"
	$(BIN)/pip install -e ".[dev]"
	touch $@

core: $(INSTALLED)  ## electra_fast/_C, where a source is newer than its object
	$(BIN)/python setup.py --quiet build_ext --inplace

pretrain: core  ## a tiny ELECTRA on text that Python carries
	$(BIN)/electra-fast pretrain --out runs/pretrain

test: core  ## what every change must pass, in minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "not slow"
	$(MAKE) --no-print-directory sanitize

test-all: core  ## the slow tests too
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2
	$(MAKE) --no-print-directory sanitize

SECONDS ?= 60
fuzz: core sanitized  ## damaged files for every reader and odd arguments for every op, for this many seconds in all
	$(BIN)/pip install --quiet atheris
	$(BIN)/python tests/fuzz --seconds $(SECONDS) $(if $(ASAN),--sanitized $(SANITIZED)/lib)

MINUTES ?= 15
kills: core  ## runs that are killed or refused the disk at every system call that writes, and resumed
	$(BIN)/python tests/kills.py --minutes $(MINUTES)

mutants: core  ## each break of tests/faults.py, planted in a copy, must turn its tests red; WORDS="9 csrc/" runs some
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(WORDS)

bench: core
	$(BIN)/python benches

aot: $(INSTALLED)  ## every Triton kernel in every tile of its table, for three GPU generations: ten minutes, no GPU
	rm -f build/aot.jsonl
	$(BIN)/python benches compile --json build/aot.jsonl

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy electra_fast
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

lock: $(INSTALLED)  ## requirements/dev.txt anew: the newest versions of all that builds, tests and documents the package
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --upgrade --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file requirements/dev.txt

docs: $(INSTALLED)  ## the documentation in build/site; a link or an anchor that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The package again, in build/sanitize, its core under AddressSanitizer and UndefinedBehaviorSanitizer; and of the tests
# of every op in C++ those that lead it through all sizes, in each instruction set, alone and on threads. `make fuzz`
# calls this core too.
SANITIZE := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SANITIZED := $(CURDIR)/build/sanitize
SANITIZE_TESTS ?= tests/csrc/test_core.py tests/ops/test_properties.py \
	$(wildcard $(patsubst csrc/%.cpp,tests/ops/test_%.py,$(wildcard csrc/*.cpp))) \
	-k "core or properties or instruction_set or threads"
ASAN := $(wildcard $(shell $(CXX) -print-file-name=libasan.so 2>/dev/null))
sanitized: $(INSTALLED)
ifeq ($(ASAN),)
	@echo "sanitized: left out, as $(CXX) has no libasan.so; with gcc's every read and write of the core is checked"
else
	rm -rf $(SANITIZED)/lib
	CXXFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py --quiet build_py --build-lib $(SANITIZED)/lib \
		build_ext --build-lib $(SANITIZED)/lib --build-temp $(SANITIZED)/objects
endif

sanitize: sanitized
ifneq ($(ASAN),)
	LD_PRELOAD="$(ASAN) $$($(CXX) -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED)/lib \
		OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -q -x -n 2 --capture=sys -p no:cacheprovider $(SANITIZE_TESTS)
endif

# The core again, in build/tsan, under ThreadSanitizer, and the tests that call it from several threads. A report fails
# the run.
TSAN := -O1 -fsanitize=thread -fno-omit-frame-pointer
THREADED := $(CURDIR)/build/tsan
TSAN_TESTS ?= tests/csrc tests/ops -k "race or (threads and not many_runs and not build)"
LIBTSAN := $(wildcard $(shell $(CXX) -print-file-name=libtsan.so 2>/dev/null))
tsan: $(INSTALLED)  ## no data race in the core: its threaded tests under ThreadSanitizer
ifeq ($(LIBTSAN),)
	@echo "tsan: left out, as $(CXX) has no libtsan.so; with gcc's it finds data races between the core's threads"
else
	rm -rf $(THREADED)/lib
	CXXFLAGS="$(TSAN)" LDFLAGS="$(TSAN)" $(BIN)/python setup.py --quiet build_py --build-lib $(THREADED)/lib \
		build_ext --build-lib $(THREADED)/lib --build-temp $(THREADED)/objects
	LD_PRELOAD="$(LIBTSAN)" TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1 exitcode=66" \
		PYTHONPATH=$(THREADED)/lib OMP_NUM_THREADS=1 $(BIN)/pytest -q -x --capture=sys -p no:cacheprovider $(TSAN_TESTS)
endif

clean:
	rm -rf build dist *.egg-info electra_fast/_C*.so .*_cache .benchmarks .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
