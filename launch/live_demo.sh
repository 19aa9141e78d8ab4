#!/usr/bin/env bash
# Installs the project, learns a small task, serves it, and goes on learning what its users correct and teach while it
# answers. Prints the scores before and after, and what became of every request. Takes less than four minutes.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
usage: launch/live_demo.sh [--seed N] [--cluster PROFILE] [--set KEY=VALUE]...

  --seed N            seed of the run (default 0): it decides the initial weights and the order of the examples
  --cluster PROFILE   where students learn (default laptop: two processes)
  --set KEY=VALUE     changes a setting of launch/experiments/live.yaml
  --help              print this text

The run goes to runs/ in the repository. RAY_L4_VENV names a virtual environment to use instead of .venv there.
TEXT
}

seed=0 profile=laptop
settings=()
while (($#)); do
  case $1 in
    --seed)
      [[ ${2:-} =~ ^(0|[1-9][0-9]*)$ ]] || fail "--seed expects a whole number, not '${2:-}'"
      seed=$2
      shift 2
      ;;
    --cluster)
      [[ -n ${2:-} ]] || fail "--cluster expects the name or the file of a profile"
      profile=$2
      shift 2
      ;;
    --set)
      [[ ${2:-} == *=* ]] || fail "--set expects KEY=VALUE, not '${2:-}'"
      settings+=(--set "$2")
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
install_project serve

run=runs/live-seed$seed
if [[ -e $run ]]; then # never overwrite a result
  say "$run exists already and is kept"
  run+=-$(date +%Y%m%d-%H%M%S)
fi
began=$SECONDS

# The commands have process groups of their own, so that Ctrl-C comes to each once, from here: a second signal would end
# it at once.
output=$(mktemp)
running=()
trap 'stop_all; rm -f "$output"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# End what still goes on, and wait until it has.
stop_all() {
  ((${#running[@]} == 0)) || { kill "${running[@]}"; wait "${running[@]}"; } 2>/dev/null || true
}

# in_background COMMAND...: start a command, which ends with this script; its process is the last of `running`.
in_background() {
  set -m
  "$@" &
  set +m
  running+=($!)
}

# address_of_service: print the address that the service serves at, once it does; fail if it ends, or takes minutes.
address_of_service() {
  local second
  for ((second = 0; second < 120; second++)); do
    grep -om1 'http://[^ ]*' "$output" && return
    kill -0 "$1" 2>/dev/null || break
    sleep 1
  done
  cat "$output" >&2
  fail "the service did not start; its output is above"
}

in_background "$VENV/bin/ray-l4" run launch/experiments/live.yaml --set "seed=$seed" "${settings[@]}" \
  --cluster "$profile" --run-dir "$run"
step "learning mini.sql, into $run" wait "${running[0]}"
running=()

say "ray-l4 live $run"
in_background "$VENV/bin/ray-l4" live "$run" --port 0 --cluster "$profile" >"$output" 2>&1
service=${running[0]}
address=$(address_of_service "$service")
say "it answers at $address, also in a browser; its users ask, correct mini.sql, and teach a new task, restaurants"

in_background "$VENV/bin/python" -m analysis.live_load "$address" --run "$run" --pid "$service" --clients answers --quiet 5 \
  --corrections mini.sql=150 --new restaurants=mini.rest:200 --json "$run/live_demo.json"
failed=
wait "${running[1]}" || failed=true
running=("$service")

say "stopping the service"
kill "$service"
code=0
wait "$service" || code=$?
running=()
# 130 is the code of a service that was stopped and has finished what was under way.
if [[ $code != 130 || -n $failed ]]; then
  cat "$output" >&2
  fail "the output of the service is above${failed:+; what failed is said before it}"
fi
say "total: $((SECONDS - began)) s after installation"
