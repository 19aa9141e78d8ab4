#!/usr/bin/env bash
# Submits a run to a running Ray cluster, waits for it, prints its output and exits with the exit code of ray-l4 there.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
usage: launch/job.sh EXPERIMENT.yaml PROFILE.yaml [options of ray-l4 run]

Both files must be in the repository, which is uploaded with the job (except what .gitignore names).

RAY_API_SERVER_ADDRESS  address of the dashboard (default http://127.0.0.1:8265, the local end of a tunnel)
RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token: the cluster's token, in this order
RAY_L4_RUN_DIR          run directory on the head node (default ~/ray-l4-runs/JOB); a run in it is resumed
RAY_L4_CLUSTER_VENV     virtual environment on the head node, if ray-l4 is not on the PATH of Ray's processes
RAY_L4_CLUSTER_DATA     value of RAY_L4_DATA on the head node, if the experiment needs it
TEXT
}

# inside FILE: print its path relative to the repository; exit with an error if it is not in the repository.
inside() {
  local path
  [[ -f $1 ]] || refuse "$1: no such file"
  path=$(realpath --relative-to="$ROOT" "$1")
  [[ $path != ../* ]] || refuse "$1 is not in $ROOT, and nothing else is uploaded. Copy it there."
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
profile=$(inside "$(profile_file "$2")")
shift 2

export RAY_AUTH_MODE=token
[[ -n ${RAY_AUTH_TOKEN:-} || -f ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]] ||
  fail "no token. Save the cluster's token (ray get-auth-token, on its head node) in a file that only you can read," \
    "and set RAY_AUTH_TOKEN_PATH to that file."

address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
job=ray-l4-$(date +%Y%m%d-%H%M%S)-$$
# shellcheck disable=SC2088 # the head node expands the tilde
run_dir=${RAY_L4_RUN_DIR:-"~/ray-l4-runs/$job"}
settings=()
[[ -z ${RAY_L4_CLUSTER_VENV:-} ]] || settings+=("RAY_L4_VENV=$RAY_L4_CLUSTER_VENV")
[[ -z ${RAY_L4_CLUSTER_DATA:-} ]] || settings+=("RAY_L4_DATA=$RAY_L4_CLUSTER_DATA")

PATH="$VENV/bin:$PATH"
python "$ROOT/launch/job_client.py" check "$address"
say "job $job at $address"
say "run directory on the head node: $run_dir"
code=0
ray job submit --address "$address" --submission-id "$job" --working-dir "$ROOT" -- \
  env "${settings[@]}" bash launch/run_or_resume.sh "$run_dir" "$experiment" --cluster "$profile" \
  --set cluster.ray.address=auto "$@" || code=$?
if ((code)); then
  # Ray's command returns 1 whatever the job's command returned, and a job that was stopped has no exit code.
  own=$(python "$ROOT/launch/job_client.py" exit-code "$address" "$job") || own=
  [[ ! $own =~ ^-?[0-9]+$ ]] || code=$((own < 0 ? 128 - own : own)) # ended by a signal: as shells report it
  printf 'error: the run failed with exit code %s: %s on the head node of %s\n' "$code" "$run_dir" "$address" >&2
  exit "$code"
fi
say "done: $run_dir on the head node of $address"
