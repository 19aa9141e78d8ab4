# shellcheck shell=bash
# What the launch scripts share: a Python, a virtual environment that is up to date, and messages. Source it; it has no
# effect of its own. It sets ROOT (the repository) and VENV (the virtual environment; RAY_L4_VENV names another one).

ROOT="$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${RAY_L4_VENV:-$ROOT/.venv}"
[[ $VENV == /* ]] || VENV="$PWD/$VENV"

say() { printf '==> %s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# step TITLE COMMAND...: run a command, and say what it is and how long it took. The script ends if it fails.
step() {
  local title=$1 start=$SECONDS
  shift
  say "$title"
  "$@"
  say "$title: $((SECONDS - start)) s"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The first Python that is new enough; none is an error.
find_python() {
  local candidate
  for candidate in python3 python3.12 python3.11 python3.13 python; do
    if is_new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed; found $(python3 --version 2>&1 || true). Install it, or put it first in PATH."
}

# install_project [EXTRAS]: make the virtual environment if it is missing, and install the project into it if its
# metadata or its place have changed since the last time (a stamp in the environment knows).
install_project() {
  local extras=${1:-} python stamp wanted
  if [[ ! -e $VENV/bin/pip ]]; then # pip comes last: without it, an earlier attempt was cut short
    python=$(find_python)
    step "making a virtual environment in $VENV" "$python" -m venv "$VENV"
  fi
  is_new_enough "$VENV/bin/python" ||
    fail "$VENV does not hold a working Python 3.11 or newer. Delete that folder and start again."

  stamp="$VENV/.ray-l4-installed${extras:+-$extras}"
  wanted="$(cksum <"$ROOT/pyproject.toml") $extras $ROOT"
  if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    return
  fi
  step "installing ray-l4 and what it needs (the first time takes some minutes: PyTorch and Ray are large)" \
    "$VENV/bin/python" -m pip install --disable-pip-version-check --editable "$ROOT${extras:+[$extras]}"
  printf '%s\n' "$wanted" >"$stamp"
}
