#!/usr/bin/env bash
# Checks the project on a machine with a GPU, meant to take about twelve minutes: the tests that need one, a run whose
# students read each other's GPU memory, and benchmarks of a step, of generation and of the papers' run. Goes on after a
# failure.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
usage: launch/gpu_check.sh OUT_DIR

Writes OUT_DIR/*.log, OUT_DIR/papers.json, OUT_DIR/papers-compiled.json and the ledger OUT_DIR/bench.jsonl. RAY_L4_VENV
names a virtual environment that has the project's dependencies (by default .venv); nothing is installed. OUT_DIR must be
empty or new.
TEXT
}

case ${1:-} in
  --help | -h)
    usage
    exit
    ;;
  "" | -*)
    usage >&2
    refuse "expected the folder for the results"
    ;;
esac
[[ -z $(ls -A "$1" 2>/dev/null) ]] || refuse "$1 is not empty; choose a new folder"
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$ROOT"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
[[ -x $VENV/bin/python ]] || fail "$VENV has no Python: set RAY_L4_VENV to an environment with the dependencies"

failed=()

# check NAME COMMAND...: run a command with its output in OUT_DIR/NAME.log; note the name if it fails.
check() {
  local name=$1 start=$SECONDS
  shift
  say "$name"
  if "$@" >"$out/$name.log" 2>&1; then
    say "$name: $((SECONDS - start)) s"
  else
    failed+=("$name")
    say "$name failed after $((SECONDS - start)) s: see $out/$name.log"
  fi
}

python="$VENV/bin/python"
on_gpu=(--device cuda --precision bfloat16 --ledger "$out/bench.jsonl")
check tests "$python" -m pytest -m gpu tests/learner tests/exchange
check papers "$python" -m analysis.benchmarks.papers "${on_gpu[@]}" --out "$out/papers.json"
check papers-compiled "$python" -m analysis.benchmarks.papers "${on_gpu[@]}" --compile --out "$out/papers-compiled.json"
check step-small "$python" -m ray_l4.cli bench step --model small --batch 32 "${on_gpu[@]}"
check cuda-ipc "$python" -m ray_l4.cli run launch/experiments/quickstart.yaml --cluster cluster_configs/one_gpu.yaml \
  --set cluster.exchange.transport=cuda_ipc --set training.epochs=1 --run-dir "$out/cuda-ipc"

((${#failed[@]} == 0)) || fail "failed: ${failed[*]}"
say "all checks passed in $SECONDS s; results are in $out"
