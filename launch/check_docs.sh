#!/usr/bin/env bash
# Runs every command of README.md, CONTRIBUTING.md and docs/ once, in a fresh copy of the project (tests/docs/).
#   launch/check_docs.sh          with smaller experiments; the tests do the same
#   launch/check_docs.sh --full   the quickstart as it is (two minutes more on two cores)
# Other arguments go to pytest, such as -k README.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$ROOT"
install_project dev
step "running the commands of the documentation" "$VENV/bin/python" -m pytest -n 0 tests/docs "$@"
