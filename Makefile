# Every target creates .venv with everything in it if that has not been done yet: nothing else is to be typed.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
CASES ?= 3000
BIN := .venv/bin
STAMP := .venv/.secateur-installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check format bench-cifar bench-scores bench-ranks bench-scan bench-score-cost bench-certificate bench-executors bench-zoo \
        bench-zoo-after bench-zoo-cuda bench-cuda-speed bench-recurrent bench-llama fuzz crash clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 20

install: $(STAMP)  ## .venv with the library, all extras and the tools

# torch is constrained in the same command as everything else, so that no extra brings another build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Secateur needs Python 3.11 or newer; set PYTHON=python3.x"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: $(STAMP)  ## train, prune, certify and report on real digits; ARGS="--arch lstm --out DIR"
	$(BIN)/secateur demo $(ARGS)

test: $(STAMP)  ## all tests, on WORKERS processes of one thread each; ARGS="-k name"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

check: $(STAMP)  ## linters, types, import contract, smoke test of the built wheel
	$(BIN)/ruff check --no-cache
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	rm -rf build/smoke build/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . >/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target build/smoke build/wheel/*.whl
	PYTHONPATH=build/smoke $(BIN)/python -P .ci/smoke_wheel.py build/smoke

format: $(STAMP)  ## let ruff rewrite the files
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-cifar: $(STAMP)  ## a trained ResNet-20 beside Torch-Pruning; needs SECATEUR_DATA; ARGS="--quick"
	$(BIN)/python benchmarks/cifar_resnet20.py $(ARGS)

bench-scores: $(STAMP)  ## every criterion beside leave-one-out; ARGS="--units 16 --quick"
	$(BIN)/python benchmarks/scores.py $(ARGS)

bench-ranks: $(STAMP)  ## scores of a ResNet-20 beside leave-one-out on 5,000 other images; needs SECATEUR_DATA
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ranks.py $(ARGS)

bench-score-cost: $(STAMP)  ## processor time and memory of scores; ARGS="--rounds 1"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/score_cost.py $(ARGS)

bench-scan: $(STAMP)  ## the scan beside the loop that everybody writes; ARGS="--networks cnn --quick"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scan.py $(ARGS)

bench-certificate: $(STAMP)  ## how often the certificate is wrong, and how much it can prove
	$(BIN)/python benchmarks/certificate.py $(ARGS)

bench-executors: $(STAMP)  ## two workers against one, processes and Ray: ten minutes; ARGS="--minutes 0.2"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/executors.py $(ARGS)

# A case takes a tenth of a second to a second; pytest's limit on a single test is meant for the suite.
fuzz: $(STAMP)  ## random networks and count equations against slow oracles, CASES of each kind; ARGS="-k recurrent"
	FUZZ=$(CASES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --timeout 0 tests/test_engine_hypothesis.py tests/test_counts.py $(ARGS)

crash: $(STAMP)  ## kill -9 a scan at 20 random moments, serial and in processes; what is resumed has the same bits
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_store.py tests/test_scan.py -k killed $(ARGS)

clean:  ## remove what was built (not .venv)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

bench-zoo: $(STAMP)  ## every model of torchvision, timm, transformers and torch.nn; hours; ARGS="--set nasty --peer"
	$(BIN)/python benchmarks/zoo.py $(ARGS)

bench-zoo-after: $(STAMP)  ## what models can still do after a cut: load, export, compile, train, generate; ARGS="--set nn"
	$(BIN)/python benchmarks/zoo_after.py $(ARGS)

bench-zoo-cuda: $(STAMP)  ## on a GPU: groups as on the CPU, cuts verified there; ARGS="--every 3 --workers 8"
	$(BIN)/python benchmarks/zoo_cuda.py $(ARGS)

bench-cuda-speed: $(STAMP)  ## on a GPU: how much faster with half of the MACs, with and without round_to; ARGS="--batch 16"
	$(BIN)/python benchmarks/cuda_speed.py $(ARGS)

bench-llama: $(STAMP)  ## a Llama of 7B without weights, and one of 0.5B cut and verified; ARGS="--quick"
	$(BIN)/python benchmarks/llama.py $(ARGS)

bench-recurrent: $(STAMP)  ## recurrent networks with half of their hidden units: exact, and how much faster; ARGS="--quick"
	$(BIN)/python benchmarks/recurrent.py $(ARGS)
