# Every target sets itself up: a virtual environment in .venv, versions pinned by constraints.txt.
PYTHON ?= python3
# Such as an index of torch builds without CUDA.
PIP_FLAGS ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := .venv-peers
OLDEST := .venv-oldest
RELEASE := build/release
# Tests side by side, one file of tests in one process; each process takes a core and up to 3 GB.
WORKERS ?= 2

.PHONY: demo test check docs fuzz guided mutants format peers oldest release clean
demo: $(STAMP)
	$(BIN)/cvq demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The documentation as a site, in build/site; a warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Inputs of every kind, damaged and absurd, for ten minutes; `make check` gives them 20 seconds.
fuzz: $(STAMP)
	FUZZ_SECONDS=600 $(BIN)/python -m pytest -s -o timeout=1200 tests/fuzz

# A minute a kind of inputs that coverage guides (atheris: CPython on Linux or macOS). What falls is left as guided-KIND-...
guided: $(STAMP)
	$(BIN)/python -m pip install --quiet atheris
	for kind in cvq manifest tokens checkpoint weights shard token-shards overrides; do PYTHONPATH=. $(BIN)/python \
		tests/fuzz/guided.py $$kind -max_total_time=60 -artifact_prefix=guided-$$kind- || exit 1; done

# Small faults (mutmut) in one module, one at a time in a copy of the sources: which of them do its tests not see?
# make mutants MODULE=channelvq/car/choice.py TESTS=tests/car/test_choice.py; `mutmut show NAME` in build/mutants shows one.
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet "mutmut>=3.8"
	rm -rf build/mutants && mkdir -p build/mutants
	git ls-files -z src tests lab pyproject.toml | xargs -0 tar c | tar x -C build/mutants
	cd build/mutants && printf '%s\n' '[mutmut]' source_paths=src only_mutate=src/$(MODULE) also_copy= '  lab' \
		pytest_add_cli_args= '  -x' timeout_constant=10 use_git_change_detection=false \
		pytest_add_cli_args_test_selection= $(addprefix '  ,$(addsuffix ',$(TESTS))) > setup.cfg
	cd build/mutants && OMP_NUM_THREADS=1 $(abspath $(BIN))/mutmut run --max-children $(WORKERS)
	cd build/mutants && $(abspath $(BIN))/mutmut results

format: $(STAMP)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}; set PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

# The tests with the oldest versions that pyproject.toml declares, in an environment of their own.
oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile -o filterwarnings=default  # old libraries warn of new ones

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable ".[dev]"
	touch $@

# Figures of torch-fidelity, lpips and torchmetrics for the tests, from an environment of their own: a download of 5.5 GB.
peers: $(PEERS)/.installed
	$(PEERS)/bin/python -W ignore scripts/peers.py tests/expected/peers.json

$(PEERS)/.installed: scripts/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement scripts/peers.txt
	touch $@

# The wheel of this commit, equal to the byte wherever it is built; it is installed in an empty environment, draws the demo
# there, and what came with it is listed with its licences (sbom.json, CycloneDX).
release:
	rm -rf $(RELEASE) && mkdir -p $(RELEASE)/source
	umask 022 && git archive HEAD | tar -x -C $(RELEASE)/source
	$(PYTHON) -m venv $(RELEASE)/tools && $(PYTHON) -m venv $(RELEASE)/empty
	$(RELEASE)/tools/bin/python -m pip install --quiet build cyclonedx-bom
	umask 022 && SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) PIP_CONSTRAINT=$(CURDIR)/constraints.txt \
		$(RELEASE)/tools/bin/python -m build --wheel --outdir $(RELEASE) $(RELEASE)/source
	$(RELEASE)/empty/bin/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt $(RELEASE)/*.whl
	$(RELEASE)/empty/bin/cvq demo --output $(RELEASE)/demo
	$(RELEASE)/tools/bin/cyclonedx-py environment --output-reproducible --output-file $(RELEASE)/sbom.json $(RELEASE)/empty/bin/python
	cd $(RELEASE) && sha256sum *.whl sbom.json

clean:
	rm -rf $(VENV) $(PEERS) $(OLDEST) demo build *.egg-info src/*.egg-info
