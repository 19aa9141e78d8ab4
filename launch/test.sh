#!/usr/bin/env bash
# All checks, as the continuous integration runs them: style, format, types, tests. Stops at the first that fails.
# Arguments go to pytest (launch/test.sh tests/config -x); RAY_L4_VENV names another virtual environment.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$ROOT"
install_project dev

step "ruff check" "$VENV/bin/python" -m ruff check
step "ruff format --check" "$VENV/bin/python" -m ruff format --check
step "mypy" "$VENV/bin/python" -m mypy
step "pytest" "$VENV/bin/python" -m pytest "$@"
say "all checks passed in $SECONDS s"
