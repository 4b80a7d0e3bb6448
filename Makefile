# Two commands suffice: `make demo` and `make test`. Python 3.11 or later is all they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

STUDIES := outliers architectures train_test pixels
BOUNDARIES := curvature topology detection

.PHONY: demo test studies bench lint format clean

demo: $(STAMP)
	$(BIN)/raysense demo demo-output

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# The studies of Shu & Zhu (2019), Fawzi et al. (2018) and Khaitan & Banerjee (2026) on the bundled digits, that of Hamdi &
# Ghanem (2020) on procedural shapes.
studies: $(STAMP)
	for study in $(STUDIES); do $(BIN)/python -m jobs.influence_$$study --out studies-output/$$study || exit 1; done
	$(BIN)/python -m jobs.semantic_srvr --out studies-output/srvr
	$(BIN)/python -m jobs.significance_conditions --out studies-output/conditions
	for study in $(BOUNDARIES); do $(BIN)/python -m jobs.boundary_$$study --out studies-output/$$study || exit 1; done

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/run_all.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy jobs

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Reinstalled when the dependencies change; otherwise a second run starts at once.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "raysense needs Python 3.11 or later; set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo-output studies-output .pytest_cache .mypy_cache .ruff_cache build
