# `make demo` and `make test` need Python >= 3.11 and make, nothing else; all the set-up is in .venv.
PYTHON ?= python3
VENV := .venv
LOCK := requirements/lock.txt
BIN = $(CURDIR)/$(VENV)/bin
# a module's Hub is started once, and modules run side by side
PYTEST_ARGS ?= -n auto --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-oldest lint format docs pictures bench lock clean

demo: $(VENV)/.ready
	@PATH="$(BIN):$$PATH" $(BIN)/jhlauncher demo $(DEMO_ARGS)

test: $(VENV)/.ready
	@PATH="$(BIN):$$PATH" $(BIN)/python -m pytest $(PYTEST_ARGS)

# the same suite on the oldest versions that pyproject.toml admits, but for what does not depend on them: docs, looks,
# deployments, whose images have the versions of the lock, operations, rights in a cluster, many servers at once, in the
# page and of a class, of which other tests show that they work with the oldest Hub, Swarm, pulls, disks and packages, whose
# code is Docker's, or for which both have the same client, what the manager does while it runs and when it is killed, and
# what Slurm does with a job
NEWEST_ONLY = tests/test_docs.py tests/test_examples.py tests/page/test_looks.py tests/page/test_class.py \
	tests/deployments tests/operations tests/engines/test_kubernetes_rights.py tests/engines/test_swarm.py \
	tests/engines/test_pulling.py tests/engines/test_disks.py tests/engines/test_packages.py \
	tests/manager/test_killed.py tests/manager/test_running.py tests/people/test_class_of_thirty.py \
	tests/userjobs/test_slurm.py tests/userjobs/test_injection.py tests/userjobs/test_manager.py
test-oldest:
	@$(MAKE) --no-print-directory test VENV=.venv-oldest LOCK=requirements/oldest.txt \
	  PYTEST_ARGS="$(PYTEST_ARGS) $(NEWEST_ONLY:%=--ignore=%)"

lint: $(VENV)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.ready
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# the site, below docs/_build/html; whatever is not in order is an error
docs: $(VENV)/.ready
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# the site's pictures, from the running page in Chromium
pictures: $(VENV)/.ready
	@PATH="$(BIN):$$PATH" $(BIN)/python -m tests.page.pictures

bench: $(VENV)/.ready
	@PATH="$(BIN):$$PATH" $(BIN)/python -m bench.compare
	@PATH="$(BIN):$$PATH" $(BIN)/python -m bench.pending
	@PATH="$(BIN):$$PATH" $(BIN)/python -m bench.waiting
	@PATH="$(BIN):$$PATH" $(BIN)/python -m bench.burst

$(VENV)/.ready: pyproject.toml setup.cfg requirements/*
	@requirements/setup "$(PYTHON)" "$(VENV)" "$(LOCK)"
	@touch $@

# newest versions within pyproject.toml's ranges, and the oldest ones; needs uv (pip install uv)
UV_COMPILE = uv pip compile --quiet --no-config --universal --python-version 3.11 --extra dev --upgrade \
	--no-annotate --custom-compile-command "make lock" --no-emit-index-url --no-emit-find-links pyproject.toml
lock:
	$(UV_COMPILE) --output-file requirements/lock.txt
	$(UV_COMPILE) --resolution lowest-direct --output-file requirements/oldest.txt
	cd requirements && npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved

clean:
	rm -rf .venv .venv-oldest .mypy_cache .pytest_cache .ruff_cache build docs/_build *.egg-info
