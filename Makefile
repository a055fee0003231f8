# The commands of the README, and their environment. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help report results app test lint clean
help:
	@echo "make report   build .venv, run every notebook on MovieLens-100K, write reports/<run>/index.html"
	@echo "make results  fetch MovieLens-1M, and show our published runs on it as a report; nothing is trained"
	@echo "make app      open the app over the runs, on localhost"
	@echo "make test     build .venv, run the test suite (10 minutes on 2 cores)"
	@echo "make lint     check style"
	@echo "make clean    remove .venv; runs and reports stay"

report: $(STAMP)
	$(BIN)/sellarec report $(ARGS)

# FROM names a copy of MovieLens-1M. The runs are in bfloat16, whatever this machine would choose.
results: $(STAMP)
	$(BIN)/sellarec fetch ml-1m $(if $(FROM),--from "$(FROM)")
	$(BIN)/sellarec adopt --dataset ml-1m
	$(BIN)/sellarec report --dataset ml-1m --dtype bfloat16 --no-compute $(ARGS)

app: $(STAMP)
	$(BIN)/sellarec app $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)

clean:
	rm -rf .venv
