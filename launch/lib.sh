# shellcheck shell=bash
# Functions that the launch scripts share: find Python, install the project, print messages. To be sourced; it only sets
# ROOT (the repository) and VENV (the virtual environment: .venv there, or the one that RAY_L4_VENV names).

ROOT="$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${RAY_L4_VENV:-$ROOT/.venv}"
[[ $VENV == /* ]] || VENV="$PWD/$VENV"

say() { printf '==> %s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# refuse MESSAGE...: exit as ray-l4 does on a wrong command line.
refuse() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# profile_file PROFILE: print the file of a profile that is given as a file, or by the name of one in cluster_configs.
profile_file() {
  if [[ ! -e $1 && -f $ROOT/cluster_configs/$1.yaml ]]; then
    printf '%s\n' "$ROOT/cluster_configs/$1.yaml"
  else
    printf '%s\n' "$1"
  fi
}

# step TITLE COMMAND...: print the title, run the command, and print how long it took. The script exits if it fails.
step() {
  local title=$1 start=$SECONDS
  shift
  say "$title"
  "$@"
  say "$title: $((SECONDS - start)) s"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Print the first Python that is new enough; exit with an error if there is none.
find_python() {
  local candidate
  for candidate in python3 python3.12 python3.11 python3.13 python; do
    if is_new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed; found $(python3 --version 2>&1 || true). Install it, or put it on PATH."
}

# install_project [EXTRAS]: create the virtual environment if it is missing, and install the project into it if
# pyproject.toml or the repository's path have changed since the last installation (recorded in a stamp file).
install_project() {
  local extras=${1:-} python stamp wanted
  if [[ ! -e $VENV/bin/pip ]]; then # venv installs pip last: without it, an earlier attempt was interrupted
    python=$(find_python)
    step "creating a virtual environment in $VENV" "$python" -m venv "$VENV"
  fi
  is_new_enough "$VENV/bin/python" ||
    fail "$VENV has no working Python 3.11 or newer. Delete that folder and run this again."

  stamp="$VENV/.ray-l4-installed${extras:+-$extras}"
  wanted="$(cksum <"$ROOT/pyproject.toml") $extras $ROOT"
  if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    return
  fi
  step "installing ray-l4 and its dependencies (the first time takes minutes: PyTorch and Ray are large)" \
    "$VENV/bin/python" -m pip install --disable-pip-version-check --editable "$ROOT${extras:+[$extras]}"
  printf '%s\n' "$wanted" >"$stamp"
}
