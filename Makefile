# Everything here needs python3 and make only; the environment is made in .venv.
#
#   make demo       meta-train on images and on sinusoids (under 4 minutes on 2 cores), with pictures
#   make test       lint, type check, tests
#   make test-slow  the tests that take long
#   make bench      compare with other libraries (20 minutes or more); options in BENCH, see benchmarks/README.md
#   make docs       the documentation site, in docs/_build/html; a warning is an error
#   make help       this text

PYTHON ?= python3
VENV ?= .venv
TORCH ?= -c constraints.txt torch
RUN := $(VENV)/bin
DEMO := demo/$(shell date +%Y%m%d-%H%M%S)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo bench docs test test-slow lint format table clean help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -8

$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install -q $(TORCH)
	@touch $@

$(VENV)/demo: $(VENV)/torch pyproject.toml
	$(RUN)/pip install -q -e '.[cli,plot]'
	@touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml
	$(RUN)/pip install -q -e '.[all,dev]'
	@touch $@

demo: $(VENV)/demo
	$(RUN)/innerloop train sinusoid-maml --run $(DEMO)/sinusoids \
	  --set train.iterations=5000 --set train.validate_every=1000
	$(RUN)/innerloop train strokes-5w1s-maml --run $(DEMO)/strokes --set train.iterations=300
	$(RUN)/python examples/pictures.py $(DEMO)/sinusoids $(DEMO)/strokes

bench: $(VENV)/dev
	$(RUN)/python -m benchmarks.run $(BENCH)
	$(RUN)/python -m benchmarks.table

$(VENV)/docs: $(VENV)/torch pyproject.toml
	$(RUN)/pip install -q -e '.[all,docs]'
	@touch $@

docs: $(VENV)/docs
	$(RUN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	@echo docs/_build/html/index.html

test: lint
	$(RUN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/dev $(VENV)/docs
	$(RUN)/python -m pytest -m slow

lint: $(VENV)/dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: $(VENV)/dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

# The tables of the README and of experiments/, made from the result files in experiments/.
table: $(VENV)/dev
	$(RUN)/python experiments/table.py --write
	$(RUN)/python experiments/alphabet_pairs.py write

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis docs/_build docs/api docs/project
