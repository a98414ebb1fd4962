# `make` lists the targets. Each target that needs Python sets up .venv first, once.
#   PYTHON=python3.11   the Python to make .venv with
#   ARGS="..."          more arguments for demo, test and bench's programs

VENV := .venv
RUN  := $(VENV)/bin/python
ARGS ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slurm minimum lint format docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## set up .venv; does nothing where it is up to date
	@echo "$(VENV) is ready."

$(VENV)/.ready: pyproject.toml constraints.txt
	@bash tools/setup.sh

demo: $(VENV)/.ready ## run all stages on a tiny data set made on the spot; prints where to look
	@$(RUN) run.py -m experiment=demo,demo_sipe,demo_cpal stage=all $(ARGS)
	@$(RUN) run.py experiment=demo stage=report 'report.runs=[demo,demo_sipe,demo_cpal]'

test: $(VENV)/.ready ## run the tests; one file: make test ARGS=tests/test_packaging.py
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q --durations=10 -n logical --dist loadfile $(ARGS)

test-slurm: $(VENV)/.ready ## the tests under a Slurm of two nodes that is started for them (root)
	@OMP_NUM_THREADS=1 tools/slurm_here.sh $(RUN) -m pytest -q --durations=0 tests/slurm $(ARGS)

minimum: $(VENV)/.ready ## the quick tests with the oldest versions that pyproject.toml allows
	@$(RUN) tools/minimum.py $(ARGS)

lint: $(VENV)/.ready ## check style, types and layers
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy wsss
	$(VENV)/bin/lint-imports

format: $(VENV)/.ready ## rewrite the files in the project's style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(VENV)/.ready ## build the documentation site in build/site; any warning is an error
	@$(RUN) -c "import zensical, mkdocstrings, latex2mathml" 2>/dev/null || \
		$(RUN) -m pip install -q -c constraints.txt -e ".[docs]"
	@$(RUN) tools/docs.py
	@$(RUN) -m zensical build --strict --clean

bench: $(VENV)/.ready ## run the benchmarks one after the other
	@set -e; for program in benchmarks/*.py; do echo "== $$program"; $(RUN) $$program $(ARGS); done

clean: ## remove caches; outputs/ and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache build ./*.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
