# What CI calls and what people call are the same targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Most of the time of a test is waiting for something: two workers for each of two cores.
WORKERS ?= 4
TEST    = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
COMPILE = $(BIN)/pip-compile -q --no-header --generate-hashes --allow-unsafe --strip-extras --no-annotate

.PHONY: setup setup-dev run test check format chaos test-arm bench docs proto lock clean

setup: $(VENV)/.installed            ## create .venv with what running needs
setup-dev: $(VENV)/.installed-dev    ## and what developing needs

$(VENV)/.installed: requirements.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@# setuptools warns of any editable install whose folders lie in the root: they are meant to
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

run: setup                           ## the main job: start everything, serve a small model, ask it a question
	$(BIN)/aima first-run $(if $(ONCE),--once)

test: setup-dev                      ## all tests, on four workers, or as many as WORKERS says
	$(TEST)

check: setup-dev                     ## format, lint, types, import rules, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy $(wildcard examples/*.py examples/*/*.py)
	$(BIN)/lint-imports
	$(TEST)

format: setup-dev                    ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: setup-dev                     ## kill what runs at random for five minutes, under load, and hold it against the truth
	$(BIN)/python -m tests.system.chaos $(if $(DURATION),--seconds $(DURATION))

test-arm:                            ## the first run on an emulated 64-bit ARM machine; as root, see the script's first lines
	tests/platforms/first_run_on_arm.sh

bench: setup-dev                     ## figures beside limits measured in the same run
	$(BIN)/python -m benchmarks

docs: setup                          ## write the generated pages, tables and pictures of docs/ anew from the code
	$(BIN)/python -m docs.generators.units > docs/units.md
	$(BIN)/python -m docs.generators.states
	$(BIN)/python -m docs.generators.configuration > docs/configuration.md
	$(BIN)/python -m docs.generators.routes

proto: setup-dev                     ## make the messages of the gRPC door from their description
	cd services/gateway/grpc/proto && ../../../../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. gateway.proto

lock: setup-dev                      ## resolve the dependencies anew, with hashes and without index addresses
	$(COMPILE) --extra build -o requirements.txt pyproject.toml
	$(COMPILE) --extra build --extra grpc --extra dev -c requirements.txt -o requirements-dev.txt pyproject.toml
	echo 'litellm[proxy]' | $(COMPILE) -o benchmarks/litellm-requirements.txt -
	sed -i '/^-/d' requirements.txt requirements-dev.txt benchmarks/litellm-requirements.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
