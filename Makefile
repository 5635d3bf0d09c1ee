# train | test | check | clean. The environment in .venv is made, or brought up to date, when a target needs it.
# More arguments: make train ARGS="--seed 1". Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OFFLINE := HF_HUB_OFFLINE=1

.DEFAULT_GOAL := test
.PHONY: train test check clean

train: $(STAMP)
	$(OFFLINE) $(PY) train_trainer.py configs/vader.yaml $(ARGS)

test: $(STAMP)
	$(OFFLINE) $(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

check: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment whose interpreter does not start (its Python was removed, say) is out of date, whatever its stamp.
ifneq ($(shell $(PY) -c 'print("starts")' 2>/dev/null),starts)
.PHONY: $(STAMP)
endif

# The stamp goes first and comes back last: without it, what an interrupted attempt left is cleared and made anew.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: '$(PYTHON)' is not found. Give a Python >= 3.11: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("make: Python >= 3.11 is needed, but $(PYTHON) is %d.%d. Give another: make PYTHON=..." % v[:2])'
	test -e $@ && $(PY) -c "" || $(PYTHON) -m venv --clear $(VENV)
	rm -f $@
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
