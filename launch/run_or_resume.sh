#!/usr/bin/env bash
# Starts a run, or resumes it if the run directory holds one: for schedulers that may start a job more than once.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if (($# < 2)); then
  echo "usage: launch/run_or_resume.sh RUN_DIR EXPERIMENT.yaml [options of ray-l4 run]" >&2
  exit 2
fi
run_dir=$1 experiment=$2
shift 2
# A caller on another machine does not know the home directory here, so the tilde arrives unexpanded.
run_dir=${run_dir/#\~\//$HOME/}

cd "$ROOT"
# The process that ray-l4 will have, for a caller that has signals to pass on (launch/slurm/common.sh).
[[ -z ${RAY_L4_PID_FILE:-} ]] || echo "$$" >"$RAY_L4_PID_FILE"
PATH="$VENV/bin:$PATH" # a container image has ray-l4 elsewhere, and no .venv
if [[ -f $run_dir/summary.json && -f $run_dir/report.md ]]; then
  say "$run_dir: this run has already finished"
elif [[ -f $run_dir/config.yaml ]]; then
  exec ray-l4 resume --supervise "$run_dir"
else
  exec ray-l4 run --supervise "$experiment" --run-dir "$run_dir" "$@"
fi
