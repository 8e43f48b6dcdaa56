# make setup | demo | test | lint: everything happens in .venv of this folder.
# make demo BASIS=DIR: H of step zero from the orbital and pseudopotential files of a folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py CMakeLists.txt requirements-dev.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch and the build tools into $(VENV) (some minutes) …"
	$(BIN)/pip install --quiet -r requirements-dev.txt
	@echo "Compiling the kernels and installing the rest …"
	NEXTHAM_WERROR=1 $(BIN)/pip install --quiet --no-build-isolation -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/nextham demo --output demo-output $(if $(BASIS),--basis $(BASIS))

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile  # a thread each: two share the cores badly

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h

clean:
	rm -rf build $(VENV) demo-output
