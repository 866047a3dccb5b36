# make demo: see it work.  make test: the whole suite.  Both install what they need into .venv.
PYTHON ?= python3
BIN := .venv/bin
# uv unpacks many packages at once, pip one after another. uv reads none of pip's settings, so index and certificates are handed
# over; where that is not enough (a second index, a local folder), uv fails and pip installs. Neither compiles: COMPILE_PACKAGES
# leaves out what nobody imports, and uses all cores. A file that this Python cannot compile is its importer's business.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
PIP_SETTING = $$($(BIN)/python -m pip config get global.$(1) 2>/dev/null)
UV := UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$(call PIP_SETTING,index-url)}}" \
	SSL_CERT_FILE="$${SSL_CERT_FILE:-$${PIP_CERT:-$(call PIP_SETTING,cert)}}" \
	$(BIN)/uv pip install --quiet --no-cache --python $(BIN)/python --constraint constraints.txt
INSTALL = { $(PIP) uv && $(UV) --editable $(1) || $(PIP) --editable $(1); }
COMPILE_PACKAGES := { $(BIN)/python -m compileall -qq -j 0 -x '/(tests|pip|setuptools|pkg_resources|mypyc?|hive_metastore|moto/(?!core|s3|utilities))/' .venv/lib || true; }
# More workers than cores, because many tests wait; each takes 6 s of CPU time to begin. Without bytecode, each process would
# rewrite the assertions of pytest's plugins anew.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 6

# Where Python may not write bytecode, each of the commands that the tests start would compile the package anew.
COMPILE := $(BIN)/python -m compileall -q harvester

.PHONY: demo test fast nightly spark chaos fuzz mutants lint docs dockerfile picture bench bench-short clean

demo: .venv/run
	$(BIN)/harvester demo

test: .venv/dev
	$(COMPILE)
	$(PYTEST)

fast: .venv/dev
	$(COMPILE)
	$(PYTEST) -m "not slow and not nightly and not chaos"

# The long forms of simulations, kills and cuts, and ten times the examples; make test has a short form of each.
nightly: .venv/dev
	$(COMPILE)
	$(PYTEST) -m nightly
	$(PYTEST) -m "hypothesis and not nightly" --hypothesis-profile=nightly
	$(MAKE) spark

# A real Spark on loopback, whose workers are killed. Installs 480 MB; needs Java, and SPARK_TESTS=required makes that sure.
spark: .venv/spark
	$(COMPILE)
	SPARK_TESTS=required $(BIN)/python -m pytest tests/e2e/test_spark.py

# Each operation on a file fails, the power is cut after each, and 1,000 random scenarios, of which each takes about a second
# of CPU time; make test tries some of them.
chaos: .venv/dev
	$(COMPILE)
	$(PYTEST) -m chaos

# A minute for each parser, guided by the code that is reached; Linux alone.
fuzz: .venv/fuzz
	$(BIN)/python -m tests.fuzzing

# Changes one thing in a function, runs its tests, and so on; MUTANTS='harvester.bitly.query*' tries those of a module.
mutants: .venv/mutation
	$(COMPILE)
	$(BIN)/mutmut run $(if $(MUTANTS),'$(MUTANTS)')

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site; a broken link, a bad anchor and a docstring that cannot be parsed are errors.
docs: .venv/docs
	$(BIN)/python docs/site/build.py

dockerfile: .venv/docs
	$(BIN)/hadolint Dockerfile

# docs/live-display.svg, from a real demo in a terminal of its own, and docs/report.png, in Chromium.
picture: .venv/dev
	$(BIN)/python docs/site/picture.py
	$(BIN)/python docs/site/report_picture.py

# All benchmarks, and the programs that harvester is compared with; one table each, in benchmarks/RESULTS.md.
bench: .venv/dev
	$(BIN)/python -m benchmarks.bench

# In about five minutes, without the slowest; what it measures is printed, and the page stays as it is.
bench-short: .venv/dev
	$(BIN)/python -m benchmarks.bench --short --to build/RESULTS.md

# Debian and Ubuntu keep venv in a package of its own.
.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "harvester needs Python 3.11 or later: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo 'venv is missing; on Debian and Ubuntu: apt-get install -y python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv

.venv/run: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(call INSTALL,'.[report]') && $(COMPILE_PACKAGES) && touch $@

.venv/dev: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(call INSTALL,'.[dev]') && $(COMPILE_PACKAGES) && touch $@ .venv/run

.venv/docs: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(call INSTALL,'.[docs]') && $(COMPILE_PACKAGES) && touch $@ .venv/run

.venv/fuzz: .venv/dev
	$(call INSTALL,'.[fuzz]') && touch $@

.venv/mutation: .venv/dev
	$(call INSTALL,'.[mutation]') && touch $@

.venv/spark: .venv/dev
	$(call INSTALL,'.[spark]') && touch $@

clean:
	rm -rf .venv build mutants dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
