# `make demo` and `make test` need Python 3.11 or newer with pip, and nothing else: they set up .venv themselves.
ifndef PYTHON
PYTHON := $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
endif
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
LOADS := $(VENV)/loads

.PHONY: demo pretrained quick test lint install clean

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: no Python 3.11 or newer; install one, or name it: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; \
		exit 2; }
	@echo "installing into $(VENV): some minutes, once" >&2
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@

# SUMO's packages leave four shared libraries to the system: brought once, where they are missing and that is allowed.
$(LOADS): $(READY)
	@$(BIN)/python -m grpo.simulator.libraries
	@touch $@

install: $(LOADS)

# The whole pipeline on generated traffic: scenarios, data, SFT, GRPO, evaluation on held-out traffic.
demo: $(LOADS)
	$(BIN)/grpo pipeline config/demo

# The shipped controller again: networks, a larger model and labels of its driving, SFT and GRPO of the small one. Hours on a CPU.
pretrained: $(LOADS)
	$(BIN)/grpo pipeline config/pretrained

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --allow-untyped-defs tests
	$(BIN)/lint-imports
	$(BIN)/python docs/architecture.py --check

# The pure parts, for the desk: under a minute.
quick: $(LOADS)
	$(BIN)/python -m pytest -n 2 -m "not slow"

test: $(LOADS) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Leaves data/, model/ and results/ alone: they may hold work of days.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis
