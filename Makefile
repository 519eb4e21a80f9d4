# Needs Python 3.11 and make; everything else goes into .venv.
#
#   make repro [PRESET=name] [DATA=folder] [FORCE=1]   run what is not up to date, print the table
#   make deploy      make stop      Prefect's server, the deployment rarlhf/full, its worker; end them
#   make exp       make dag      DVC experiments side by side; a picture of the stages in Mermaid
#   make test      make check      make ui      make bench      make clean
#   make test-quick [QUICK=folders]      tests that are not marked slow, for use while editing; under a minute
#   make accelerator [WHEELS=folder]      check and time PPO on the accelerator at hand, within ten minutes
#   make docs      build the documentation into site/, which opens without a network
#   make test-long      what make test leaves out: further presets and kinds of models, stages on two machines, a killed training
#   make test-kill      kill trainings at two dozen random points; some minutes

.DEFAULT_GOAL := repro
.PHONY: repro exp dag test test-quick test-kill test-long check format types layers docs ui deploy stop bench accelerator clean
.SUFFIXES:

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY ?= true
export DO_NOT_TRACK ?= true
export HF_HUB_DISABLE_TELEMETRY ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export PYTHONUNBUFFERED ?= 1
export TOKENIZERS_PARALLELISM ?= false
export CUBLAS_WORKSPACE_CONFIG ?= :4096:8
export PYTHONHASHSEED ?= 0
# Many short processes would each compile all modules of this project, and each worker of pytest all tests.
export PYTHONDONTWRITEBYTECODE :=

BIN := .venv/bin
PEER := .venv-peer
INSTALLED := .venv/.installed
QUICK := $(addprefix tests/rarlhf/,config messages system rewards data risk rl evaluation)
IS_3_11 := import sys; sys.exit(sys.version_info[:2] != (3, 11))

repro: $(INSTALLED)
	@$(if $(PRESET)$(DATA),$(BIN)/python -m tasks.preset $(if $(PRESET),"$(PRESET)") $(if $(DATA),--data "$(DATA)") $(if $(filter-out 0,$(FORCE)),--force))
	@# An unpacked archive has no git repository; DVC does without when it is told so.
	@[ -e .git ] || git rev-parse --git-dir >/dev/null 2>&1 || $(BIN)/dvc config --local core.no_scm true
	$(BIN)/python -m flows.repro

exp: $(INSTALLED)
	@$(BIN)/python -m flows.experiments

dag: $(INSTALLED)
	@$(BIN)/python -m flows.stages

# One worker a core, four at most: each takes about a gigabyte.
test: $(INSTALLED)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Leaves out the rooms whose tests load models. Shows what took over half a second: on an idle machine that is to be marked slow.
test-quick: $(INSTALLED)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal -q -m "not slow and not kill and not long" --durations 9 --durations-min 0.5 $(QUICK)

test-long: $(INSTALLED)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m long

test-kill: $(INSTALLED)
	$(BIN)/pytest -m kill -s tests/rarlhf/rl/test_kill.py

# Types take most of the time, so the others run beside them.
check: $(INSTALLED)
	@$(MAKE) --no-print-directory -j2 types format layers docs

format: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

layers: $(INSTALLED)
	$(BIN)/lint-imports

docs: $(INSTALLED)
	@$(BIN)/python docs/build.py

ui: $(INSTALLED)
	@$(BIN)/python -m flows.serving.ui

deploy: $(INSTALLED)
	@$(BIN)/python -m flows.serving.deploy up

stop:
	@$(BIN)/python -m flows.serving.deploy down

# Takes about 25 minutes and wants an idle machine; the peer has an environment of its own.
bench: $(INSTALLED) $(PEER)/.installed
	$(BIN)/python -m benchmarks.run --peer $(PEER)/bin/python
	$(BIN)/python -m benchmarks.report

# Takes .venv where there is one, otherwise python3 as it is, with the wheels of a folder added: a machine with an
# accelerator often has its libraries already, and no network.
accelerator:
	@python=$$([ -e $(INSTALLED) ] && echo $(BIN)/python || echo python3); \
	if [ -n "$(WHEELS)" ]; then \
		$$python -m pip install -q --no-index --no-deps --no-compile --upgrade --target .wheels $(WHEELS)/*.whl || exit 1; \
		export PYTHONPATH="$$PWD/.wheels"; \
	fi; \
	$$python -m benchmarks.accelerator

$(PEER)/.installed: benchmarks/peer-constraints.txt $(INSTALLED)
	$(BIN)/python -m venv --clear $(PEER)
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peer-constraints.txt
	@touch $@

# What the pipeline and the set-up made. Records (MLflow, Prefect) and cached results go too; params.yaml, dvc.lock and
# metrics/, which are in git, stay.
clean:
	rm -rf models/base models/reward models/second_scorer models/sft models/*/[0-9]* generations judgements utility plots curves reports
	rm -rf data/inputs data/code data/modules data/raw data/prompts data/samples data/plan
	rm -rf site .docs .cache .checkpoints .partial mlflow.db* .mlflow.lock .mlflow.down mlartifacts .prefect dvc_plots .dvc/cache .dvc/tmp
	rm -rf .venv .venv-peer *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find rarlhf tasks flows tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
	-@rmdir models/* data models 2>/dev/null || true

# An install that was cut short leaves .venv/.installing behind and is begun anew.
$(INSTALLED): constraints.txt pyproject.toml
	@python=$$(for name in python3.11 python3; do $$name -c '$(IS_3_11)' 2>/dev/null && echo $$name && break; done); \
	[ -n "$$python" ] || { echo "error: Python 3.11 is needed; neither python3.11 nor python3 is it" >&2; exit 1; }; \
	if [ -e .venv/.installing ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "Setting up .venv, once: this downloads the packages named in constraints.txt and takes some minutes."; \
		$$python -m venv --clear .venv; \
	fi
	@touch .venv/.installing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,judges,dev]'
	@rm .venv/.installing
	@touch $@
