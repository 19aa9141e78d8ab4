#!/usr/bin/env bash
# Sends a run to a Ray cluster that is running, waits for it, and passes its output and its exit code on.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
usage: launch/job.sh EXPERIMENT.yaml PROFILE.yaml [options of ray-l4 run]

Both files lie in the repository, which goes to the cluster with the job (what .gitignore names stays here).

RAY_API_SERVER_ADDRESS  the dashboard (default http://127.0.0.1:8265, the near end of a tunnel)
RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token: the cluster's token, in this order
RAY_L4_RUN_DIR          run directory on the head node; a run that is there goes on (default ~/ray-l4-runs/JOB)
RAY_L4_CLUSTER_VENV     virtual environment on the head node, if ray-l4 is not in the PATH with which Ray was started
RAY_L4_CLUSTER_DATA     what RAY_L4_DATA is on the head node, if the experiment needs it
TEXT
}

# The path of a file as the copy on the cluster has it.
inside() {
  local path
  [[ -f $1 ]] || fail "$1: no such file"
  path=$(realpath --relative-to="$ROOT" "$1")
  [[ $path != ../* ]] || fail "$1 is not in $ROOT, which is all that goes to the cluster. Copy it there."
  printf '%s\n' "$path"
}

case ${1:-} in
  --help | -h)
    usage
    exit
    ;;
esac
if (($# < 2)); then
  usage >&2
  exit 2
fi
experiment=$(inside "$1")
profile=$(inside "$2")
shift 2

export RAY_AUTH_MODE=token
[[ -n ${RAY_AUTH_TOKEN:-} || -f ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]] ||
  fail "no token. Put that of the cluster (ray get-auth-token, on its head node) into a file that only you can read," \
    "and name the file in RAY_AUTH_TOKEN_PATH."

address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
job=ray-l4-$(date +%Y%m%d-%H%M%S)-$$
# shellcheck disable=SC2088 # the tilde is for the head node
run_dir=${RAY_L4_RUN_DIR:-"~/ray-l4-runs/$job"}
settings=()
[[ -z ${RAY_L4_CLUSTER_VENV:-} ]] || settings+=("RAY_L4_VENV=$RAY_L4_CLUSTER_VENV")
[[ -z ${RAY_L4_CLUSTER_DATA:-} ]] || settings+=("RAY_L4_DATA=$RAY_L4_CLUSTER_DATA")

say "job $job at $address"
say "run directory, on the head node: $run_dir"
PATH="$VENV/bin:$PATH"
ray job submit --address "$address" --submission-id "$job" --working-dir "$ROOT" -- \
  env "${settings[@]}" bash launch/run_or_resume.sh "$run_dir" "$experiment" --cluster "$profile" \
  --set cluster.ray.address=auto "$@"
say "done: $run_dir, on the head node of $address"
