# Each target sets up what it needs and runs. From a fresh clone: `make train`, `make test`.
# Needs git, make, a C++ compiler and Python 3.11 or later; pip brings everything else, CMake and ninja too.

PYTHON ?= python3

# What `make train` trains, and for how many transitions (a few minutes on two cores).
ENV_ID ?= HalfCheetah-v5
STEPS ?= 10000
# What `make bench` adds to the command: make bench BENCH="--threads 1"
BENCH ?=

VENV := .venv
CUDA_VENV := .venv-cuda
PEERS_VENV := .venv-peers
# The CPU set-up is pinned: a bare `torch` can bring gigabytes of CUDA packages to a machine without a GPU.
TORCH := torch==2.13.0
CUDA_TORCH := torch==2.14.1
# The implementations that `bench-peers` measures beside this one.
PEERS := 'stable-baselines3==2.9.*' 'sbx-rl==0.28.*' rltools==2.2.1 mkl mkl-include 'gymnasium[mujoco]'

NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find cmake csrc -type f)
FORMATTED := $(shell find csrc tests/csrc tests/ptx -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
# Prints lists of requirements from pyproject.toml, so that they stand in one place.
REQUIREMENTS := import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb")); project = p["project"]; \
	lists = {"build": p["build-system"]["requires"], "run": project["dependencies"], **project["optional-dependencies"]}; \
	print(*(line for name in sys.argv[1:] for line in lists[name]), sep="\n")

.PHONY: train test bench bench-collect bench-update bench-train bench-peers docs lint format sanitize setup
.PHONY: bench-record golden speed-gate pictures film faults cuda-compile cuda-build ptx gpu-check wheel clean

train: setup
	$(VENV)/bin/sacfast train --env-id $(ENV_ID) --total-timesteps $(STEPS)

test: lint $(VENV)/.test-dependencies
	$(VENV)/bin/python -m pytest

bench: setup
	$(VENV)/bin/sacfast benchmark ops $(BENCH)

bench-collect: setup
	$(VENV)/bin/sacfast benchmark collect $(BENCH)

bench-update: setup
	$(VENV)/bin/sacfast benchmark update --only fused reference reference_compiled $(BENCH)

bench-train: setup
	$(VENV)/bin/sacfast benchmark train $(BENCH)

# Kills runs, fills a disk, damages checkpoints, takes every run up again; what a checkpoint costs. Some minutes.
faults: setup
	$(VENV)/bin/python -m benchmarks.faults
	$(VENV)/bin/python -m benchmarks.checkpoint_cost

# Two builds beside each other, before and after a change of native code: `make golden BASE=COMMIT`,
# `make speed-gate BASE=COMMIT CASES="update op"`. Both builds are kept in build/compare/.
BASE ?= HEAD
CASES ?=
golden: setup
	$(VENV)/bin/python -m benchmarks.golden --base $(BASE)

speed-gate: setup
	$(VENV)/bin/python -m benchmarks.speed_gate --base $(BASE) --cases $(CASES) $(BENCH)

# What peers need stays out of $(VENV). The sources are used as they lie, with the library that `setup` has built: both
# environments have the same Python and the same torch. RLtools compiles with g++ for a minute when it is first used.
bench-peers: setup $(PEERS_VENV)/.dependencies
	PYTHONPATH=. $(PEERS_VENV)/bin/python -m sacfast benchmark update $(BENCH)
	PYTHONPATH=. $(PEERS_VENV)/bin/python -m sacfast benchmark train

# The site goes to build/site; a warning is an error. Nothing is fetched, neither now nor when a page is read.
docs: setup $(VENV)/.test-dependencies
	$(VENV)/bin/properdocs build --strict

# Appends to benchmarks/results/history.jsonl how fast this commit is on this machine, and draws the history anew.
bench-record: setup
	$(VENV)/bin/python -m benchmarks.history
	$(VENV)/bin/python -m benchmarks.pictures history

# The pictures of README and docs, from the data in benchmarks/results: docs/images/NAME-light.svg and NAME-dark.svg.
pictures: setup
	$(VENV)/bin/python -m benchmarks.pictures

# Trains HalfCheetah for some ten minutes and films it for the README. Needs an OpenGL library, such as libegl1.
FILM := runs/film
film: setup
	$(VENV)/bin/python -m pip install -qq 'gymnasium[mujoco]'
	$(VENV)/bin/sacfast train --env-id HalfCheetah-v5 --total-timesteps 200000 --seed 1 --critic-lr 1e-3 --actor-lr 1e-3 \
		--alpha-lr 1e-3 --torch-threads 1 --env-threads 1 --evaluate-every 20000 --checkpoint-every 100000 --run-dir $(FILM)
	$(VENV)/bin/python -m benchmarks.film $(FILM)

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(FORMATTED)

format: setup
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(FORMATTED)

# The native tests under AddressSanitizer with UndefinedBehaviorSanitizer, those with threads under ThreadSanitizer.
sanitize: setup
	PYTHONPATH=. $(VENV)/bin/python tests/native.py

# ---- Set-up: stamps, so that a change of dependencies installs and a change of native sources builds ------------

setup: $(VENV)/.built

# torch comes first and alone: what depends on it must find the pinned one.
$(VENV)/.dependencies: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -qq --upgrade pip
	$(VENV)/bin/python -m pip install -qq $(TORCH)
	$(VENV)/bin/python -c '$(REQUIREMENTS)' build run envpool dev > $(VENV)/requirements.txt
	$(VENV)/bin/python -m pip install -qq $(TORCH) -r $(VENV)/requirements.txt
	touch $@

# What the examples show sacfast beside, and what builds the site; `make train` needs neither.
$(VENV)/.test-dependencies: $(VENV)/.dependencies
	$(VENV)/bin/python -c '$(REQUIREMENTS)' examples docs > $(VENV)/test-requirements.txt
	$(VENV)/bin/python -m pip install -qq $(TORCH) -r $(VENV)/test-requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.dependencies $(NATIVE)
	$(VENV)/bin/python -m pip install -qq --no-build-isolation --no-deps --editable .
	touch $@

$(PEERS_VENV)/.dependencies: pyproject.toml
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install -qq --upgrade pip
	$(PEERS_VENV)/bin/python -m pip install -qq $(TORCH)
	$(PEERS_VENV)/bin/python -c '$(REQUIREMENTS)' run envpool > $(PEERS_VENV)/requirements.txt
	$(PEERS_VENV)/bin/python -m pip install -qq $(TORCH) -r $(PEERS_VENV)/requirements.txt $(PEERS)
	touch $@

# ---- CUDA, on any machine with nvcc; none of this needs a GPU -----------------------------------------------------

# All .cu files for sm_80 and sm_90a (SACFAST_CUDA_ARCHITECTURES in CMakeLists.txt), without a CUDA build of torch.
cuda-compile: $(VENV)/.dependencies
	$(VENV)/bin/cmake -S . -B build/cuda-kernels -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV)/bin/ninja) \
		-DPython_EXECUTABLE=$(abspath $(VENV)/bin/python) -DSACFAST_CUDA=OFF $(SACFAST_CMAKE_ARGS)
	$(VENV)/bin/cmake --build build/cuda-kernels --target cuda_kernels

# Runs the PTX of every kernel in the interpreter of tests/ptx, at large sizes too (`make test` runs the small ones), and
# prints what it counts. Some five minutes on two cores.
ptx:
	$(PYTHON) tests/ptx/ptx_build.py

$(CUDA_VENV)/.dependencies: pyproject.toml
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install -qq --upgrade pip
	$(CUDA_VENV)/bin/python -m pip install -qq $(CUDA_TORCH)
	$(CUDA_VENV)/bin/python -c '$(REQUIREMENTS)' build > $(CUDA_VENV)/requirements.txt
	$(CUDA_VENV)/bin/python -m pip install -qq $(CUDA_TORCH) -r $(CUDA_VENV)/requirements.txt
	touch $@

# The whole library against a CUDA build of torch, in a folder of its own: the CPU set-up stays as it is.
cuda-build: $(CUDA_VENV)/.dependencies
	$(CUDA_VENV)/bin/cmake -S . -B build/cuda-library -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(CUDA_VENV)/bin/ninja) \
		-DPython_EXECUTABLE=$(abspath $(CUDA_VENV)/bin/python) -DSACFAST_CUDA=ON $(SACFAST_CMAKE_ARGS)
	$(CUDA_VENV)/bin/cmake --build build/cuda-library --target _ops _ops_cuda _autograd _C
	$(CUDA_VENV)/bin/python .ci/show_cuda.py build/cuda-library

# On a machine with a GPU: builds against the torch of $(PYTHON), tests and measures there. Needs no network.
# make gpu-check GPU_CHECK="--wheels FOLDER"
GPU_CHECK ?=
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check $(GPU_CHECK)

# ---- Wheels: one for each Python, for every torch from 2.11 on; with CUDA kernels where nvcc is found ---------------

# make wheel WHEEL_PYTHONS="python3.11 python3.12". Fetches each torch once, for its headers, and two to try each wheel.
# Writes what the tries took to build/install.json. SACFAST_CUDA=0 make wheel: without CUDA kernels.
WHEEL_PYTHONS ?= $(PYTHON)
wheel:
	$(PYTHON) .ci/wheel.py $(WHEEL_PYTHONS)

clean:
	rm -rf $(VENV) $(CUDA_VENV) $(PEERS_VENV) build dist *.egg-info sacfast/_ops*.so sacfast/_autograd_*.so sacfast/_C.*.so sacfast/_collect.*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
