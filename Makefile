# Everything runs in .venv, which the first target that needs it makes. PYTHON picks the interpreter.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
export OMP_NUM_THREADS ?= 2

.PHONY: env demo test check format stress bench clean

env: .venv/.complete

.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The main job: ingest, validate, slice, stream, train, sample, evaluate. With OUTS=... IMAGE=... on a run of your own.
demo: env
	$(BIN)/stzarr demo $(DEMO) $(if $(OUTS),--outs '$(OUTS)') $(if $(IMAGE),--image '$(IMAGE)')
	$(BIN)/python training/train.py --store $(DEMO)/slide.zarr --task sr --preset demo --run-dir $(DEMO)/run
	$(BIN)/python training/sample.py --run-dir $(DEMO)/run
	$(BIN)/python training/evaluate.py --run-dir $(DEMO)/run

test: env
	$(BIN)/python -m pytest

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Minutes to hours: the tests marked slow.
stress: env
	$(BIN)/python -m pytest -m slow --timeout 3600

bench: env
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(DEMO) .pytest_cache .ruff_cache .mypy_cache .hypothesis dist build
