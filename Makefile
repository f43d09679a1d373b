# `make demo` and `make test` on a fresh clone set up .venv and run; the others use the same set-up.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Without compiling libraries to bytecode, which takes as long as the rest: see below.
PIP = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

# Tests start dozens of processes, and rewrite two hundred modules: compiled once, not each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test thorough compiled longer slow bench mutants lint types docs clean adapters

demo: $(STAMP)
	$(BIN)/scoretk demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

thorough: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'thorough and not compiled and not slow'

compiled: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'compiled and not slow'

# Both at once, collected once.
longer: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m '(thorough or compiled) and not slow'

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# The published tables whose small rows take a minute together; all of them: scoretk bench.
bench: $(STAMP)
	$(BIN)/scoretk bench few-steps amortised --quick

# The adapters against the libraries themselves, which are large: several GB, in an environment of their own. They are compiled
# at once: a test would take what Python warns of for an error.
adapters:
	$(MAKE) VENV=.venv-adapters .venv-adapters/.installed
	.venv-adapters/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[adapters]'
	.venv-adapters/bin/pip install --quiet --disable-pip-version-check --no-deps torchcfm k-diffusion
	# Stan's sources and compiler, of which test_stan.py compiles two programs; it is left out where no wheel fits.
	-.venv-adapters/bin/pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: httpstan
	# azula brings torchvision, which fits one build of torch: beside another it keeps diffusers from importing.
	.venv-adapters/bin/python -c 'import torchvision' 2> /dev/null || .venv-adapters/bin/pip uninstall --quiet --yes torchvision
	.venv-adapters/bin/python -m pytest tests/adapters -m ''

mutants: $(STAMP)
	$(BIN)/python -m tests.mutants.run --afresh

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# The site, into build/docs; a warning is an error.
docs: $(STAMP)
	$(PIP) -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -E -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e '.[all,dev]'
	# Of torch what is imported; of the others all, by all cores: a test would take what Python warns of for an error.
	-$(BIN)/python -W ignore -m compileall -q -j 0 -x '/torch/' $(VENV)/lib
	$(BIN)/python -W ignore -c 'import torch._dynamo'
	touch $@

clean:
	rm -rf $(VENV) build docs/auto_gallery *.egg-info
