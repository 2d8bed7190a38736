# `make repro` and `make test` need nothing but Python 3.11 or newer, make and git.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: setup repro test docs bench zoo lint check verify compare gallery params.yaml lock

setup: .venv/ready

# uv installs the pinned, hashed requirements; bytecode is compiled once, for every stage is a process of its own.
.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet uv==0.13.9
	uv pip install --python .venv --require-hashes --compile-bytecode -r requirements.txt
	uv pip install --python .venv --no-deps --editable .
	touch .venv/ready

# What tests, linters and benchmarks need beyond that: other libraries to compare with, a browser's driver, S3's double.
.venv/test: .venv/ready requirements-test.txt
	uv pip install --python .venv --require-hashes --compile-bytecode -r requirements-test.txt
	touch .venv/test

# As `dvc repro` does, with JOBS stages at once, which share the cores.
JOBS ?= 2
repro: .venv/ready
	python stages/repro.py --jobs $(JOBS)

test: .venv/test
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# The pages of docs/ as HTML: tutorials are run, and no warning passes. Sphinx comes only here, not with `setup`.
docs: .venv/docs
	sphinx-build --fresh-env --write-all --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

.venv/docs: .venv/test requirements-docs.txt
	uv pip install --python .venv --require-hashes --compile-bytecode -r requirements-docs.txt
	touch .venv/docs

# Speed against literal loops and other libraries, with the same numbers first, and memory: minutes on two cores.
bench: .venv/test
	python benchmarks/perturbation.py
	python benchmarks/masking.py
	python benchmarks/explainers.py
	python benchmarks/inputs.py
	python benchmarks/together.py
	python benchmarks/memory.py
	python benchmarks/throughput.py

lint: .venv/test
	ruff check .
	ruff format --check .
	mypy

# What must pass before anything lands.
check: lint test

# Hash every output again and compare with dvc.lock.
verify: .venv/ready
	python stages/verify.py

# Verdicts and numbers of this tree against OTHER, a folder or a git revision.
compare: .venv/ready
	python stages/compare.py $(OTHER)

# Every explainer on every network: writes docs/zoo.md.
zoo: .venv/test
	python -m tests.zoo

# The pictures of docs/gallery.md, of what `make repro` made.
gallery: .venv/ready
	python docs/gallery.py

# The committed parameters: conf/ composed with the profile mini.
params.yaml: .venv/ready
	python conf/compose.py > params.yaml.new && mv params.yaml.new params.yaml

# Pin anew what pyproject.toml asks for.
PINNED = --quiet pyproject.toml --universal --generate-hashes --custom-compile-command "make lock"
lock: .venv/ready
	uv pip compile $(PINNED) --extra review --extra lite --output-file requirements.txt
	uv pip compile $(PINNED) --extra test --constraint requirements.txt --output-file requirements-test.txt
	uv pip compile $(PINNED) --extra docs --constraint requirements.txt --constraint requirements-test.txt \
	  --output-file requirements-docs.txt
