#!/usr/bin/env bash
# Runs all checks, as the continuous integration does: style, format, types, tests. Stops at the first failure.
#   launch/test.sh                    everything
#   launch/test.sh --quick            without Ray, browsers, other processes and slow tests (four minutes)
#   launch/test.sh tests/config -x    arguments go to pytest, which also knows --quick (tests/conftest.py)
# Two test processes share the work (tests/scheduling.py; -n 0 for a single process).
# RAY_L4_VENV names a virtual environment to use instead of .venv.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$ROOT"
unset PYTHONDONTWRITEBYTECODE  # tests start many processes, each of which would compile the package anew
install_project dev

step "ruff check" "$VENV/bin/python" -m ruff check
step "ruff format --check" "$VENV/bin/python" -m ruff format --check
step "mypy" "$VENV/bin/python" -m mypy
step "pytest" "$VENV/bin/python" -m pytest -n 2 --dist loadgroup "$@"
say "all checks passed in $SECONDS s"
