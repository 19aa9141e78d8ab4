#!/usr/bin/env bash
# From nothing to a comparison in minutes: installs the project, lets l4 and fine-tuning learn three small tasks, and
# prints their scores side by side.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
usage: launch/quickstart.sh [--seed N]

  --seed N   the run seed (default 0): another one gives other weights and another order of the examples
  --help     this text

RAY_L4_VENV names a virtual environment to use instead of .venv in the repository.
TEXT
}

seed=0
while (($#)); do
  case $1 in
    --seed)
      [[ ${2:-} =~ ^(0|[1-9][0-9]*)$ ]] || fail "--seed takes a whole number, not '${2:-}'"
      seed=$2
      shift 2
      ;;
    --help | -h)
      usage
      exit
      ;;
    *)
      usage >&2
      fail "unknown option '$1'"
      ;;
  esac
done

cd "$ROOT"
install_project

# A run is never overwritten: if either folder of this pair is taken, both go beside it under the present time.
suffix=
for method in l4 finetune; do
  if [[ -e runs/quickstart-$method-seed$seed ]]; then
    suffix=-$(date +%Y%m%d-%H%M%S)
    say "runs/quickstart-$method-seed$seed is there already and is kept; this run gets the suffix $suffix"
    break
  fi
done

folders=()
for method in l4 finetune; do
  folder=runs/quickstart-$method-seed$seed$suffix
  step "learning three tasks with $method, into $folder" \
    "$VENV/bin/ray-l4" run launch/experiments/quickstart.yaml --cluster cluster_configs/laptop.yaml \
    --set "method=$method" --set "seed=$seed" --run-dir "$folder"
  folders+=("$folder")
done

step "report" "$VENV/bin/ray-l4" report "${folders[@]}"
say "all of it: $SECONDS s"
