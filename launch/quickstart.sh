#!/usr/bin/env bash
# Installs the project, trains l4 and fine-tuning on three small tasks, and compares their scores: a table here, and an
# HTML page in runs/. Takes some minutes.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
usage: launch/quickstart.sh [--seed N]

  --seed N   seed of both runs (default 0): it decides the initial weights and the order of the examples
  --help     print this text

The results go to runs/ in the repository. RAY_L4_VENV names a virtual environment to use instead of .venv there.
TEXT
}

seed=0
while (($#)); do
  case $1 in
    --seed)
      [[ ${2:-} =~ ^(0|[1-9][0-9]*)$ ]] || fail "--seed expects a whole number, not '${2:-}'"
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

# Never overwrite a result: if a run directory or the page exists already, add the current time to all three names.
suffix=
for result in quickstart-l4-seed$seed quickstart-finetune-seed$seed quickstart-seed$seed.html; do
  if [[ -e runs/$result ]]; then
    suffix=-$(date +%Y%m%d-%H%M%S)
    say "runs/$result exists already and is kept; the new results get the suffix $suffix"
    break
  fi
done

l4=runs/quickstart-l4-seed$seed$suffix finetune=runs/quickstart-finetune-seed$seed$suffix
run=("$VENV/bin/ray-l4" run launch/experiments/quickstart.yaml --set "seed=$seed")

# Fine-tuning takes one process and no Ray. It runs beside l4, whose processes leave cores idle while they start. Each run
# has a process group of its own, so that Ctrl-C comes to it once, from here: a second signal would end it at once.
output=$(mktemp)
running=()
trap 'stop_runs; rm -f "$output"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# End the runs that still go on, and wait until they have.
stop_runs() {
  ((${#running[@]} == 0)) || { kill "${running[@]}" && wait "${running[@]}"; } 2>/dev/null || true
}

set -m
"${run[@]}" --set method=finetune --cluster cluster_configs/in_process.yaml --run-dir "$finetune" >"$output" 2>&1 &
beside=$!
"${run[@]}" --set method=l4 --cluster cluster_configs/laptop.yaml --run-dir "$l4" &
running=("$beside" $!)
set +m

step "training l4 on three tasks, into $l4, and finetune beside it" wait "${running[1]}"
running=("$beside")
say "finetune, into $finetune:"
failed=
wait "$beside" || failed=true
running=()
cat "$output"
[[ -z $failed ]] || fail "finetune failed; its output is above"

page=runs/quickstart-seed$seed$suffix.html
step "comparing both runs, into $page" "$VENV/bin/ray-l4" report "$l4" "$finetune" --out "$page"
say "total: $SECONDS s"
