# shellcheck shell=bash
# Settings that the SLURM scripts share. To be sourced with the script's arguments; it only sets the variables below,
# and generates a token if there is none.

# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
  cat >&2 <<'TEXT'
usage, from the repository:
  sbatch [options of sbatch] launch/slurm/NAME.sbatch [--dry-run] EXPERIMENT.yaml PROFILE.yaml [options of ray-l4 run]

--dry-run           print the commands and start nothing
RAY_L4_RUN_DIR      run directory on a shared disk (default runs/slurm-JOB); a run in it is resumed
RAY_L4_HEAD_ADDRESS address of the first node on the network between the nodes (default: its first address)
RAY_AUTH_TOKEN_PATH file with the token, readable on all nodes (default ~/.ray/auth_token, generated if missing)
TEXT
  exit 2
}

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
  : "${SLURM_JOB_ID:=0}" # a dry run works on a login node too
fi
(($# >= 2)) || usage
for file in "$1" "$(cd "$ROOT" && profile_file "$2")"; do # relative to the repository, from which the run is started
  [[ -f $(cd "$ROOT" && realpath -m -- "$file") ]] || refuse "$file: no such file in $ROOT"
done
[[ -n ${SLURM_JOB_ID:-} ]] || fail "SLURM_JOB_ID is not set: start this script with sbatch"

# header OPTION: print what the #SBATCH line of the script asks for; nothing if it does not mention the option.
header() { sed -n "s/^#SBATCH --$1=\([^ ]*\).*/\1/p" "$script"; }

# In a job, SLURM says what it granted. A dry run on a login node shows what the header asks for; options of sbatch are
# unknown to it.
script=$0
if [[ -n ${SLURM_JOB_NUM_NODES:-} ]]; then
  nodes=$SLURM_JOB_NUM_NODES
  cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
  gpus=${SLURM_GPUS_ON_NODE:-0}
else
  nodes=$(header nodes) cpus=$(header cpus-per-task) gpus=$(header gpus-per-node)
  nodes=${nodes:-1} cpus=${cpus:-1} gpus=${gpus##*:} # without the type of the GPU
  gpus=${gpus:-0}
fi
# The batch script runs on the first node, which becomes the head. Not a host name: it may resolve to a loopback address
# on its own host.
head_ip=${RAY_L4_HEAD_ADDRESS:-$(hostname -I | cut -d ' ' -f 1)}
run_dir=${RAY_L4_RUN_DIR:-runs/slurm-$SLURM_JOB_ID}
# `auto` instead of this job's address: the run directory stores the profile, and another job may resume the run.
entrypoint=(
  bash "$ROOT/launch/run_or_resume.sh" "$run_dir" "$1" --cluster "$2" --set cluster.ray.address=auto "${@:3}"
)

# What Ray and the run write on the nodes is for this user alone. srun gives its commands the second value.
umask 077
export SLURM_UMASK=0077
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
# Specific to this job: /tmp/ray may belong to another user, and `auto` would find the wrong cluster there.
export RAY_TMPDIR=/tmp/ray-l4-$SLURM_JOB_ID
PATH="$VENV/bin:$PATH"
cd "$ROOT"

# go COMMAND...: run the command, or print it in a dry run.
go() {
  if $dry_run; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# go_heeding_warnings COMMAND...: like go; SIGUSR1 and SIGTERM of this shell are passed on to the run's ray-l4.
#
# sbatch --signal=B:USR1@SECONDS warns this shell alone, and srun would pass the signal on to Ray's own command, which
# dies of it. So run_or_resume.sh, which becomes ray-l4 on this node, writes its process number to a file. ray-l4
# finishes its step, keeps the state and ends with 130, which this function waits for and returns.
go_heeding_warnings() {
  local pid='' code status again=true
  if $dry_run; then
    go "$@"
    return
  fi
  RAY_L4_PID_FILE=$(mktemp)
  export RAY_L4_PID_FILE
  trap 'again=true; pass_on USR1' USR1
  trap 'again=true; pass_on TERM' TERM
  "$@" &
  pid=$!
  code=127
  while $again; do # a signal ends `wait`, not what it waits for
    again=false
    wait "$pid" && status=0 || status=$?
    ((status == 127)) || code=$status # 127: its end has been reported before
  done
  trap - USR1 TERM
  rm -f "$RAY_L4_PID_FILE"
  return "$code"
}

# pass_on SIGNAL: send it to the run's ray-l4, or to the command of go_heeding_warnings if that has not come so far.
# shellcheck disable=SC2317 # called by the traps
pass_on() {
  say "SIG$1: the run is asked to stop, and is waited for"
  kill -s "$1" "$(<"$RAY_L4_PID_FILE")" 2>/dev/null || kill -s "$1" "$pid" 2>/dev/null || true
}

# One process on each node. srun does not inherit the number of CPUs from sbatch.
each_node=(--ntasks-per-node=1 --cpus-per-task="$cpus")

if ! $dry_run && [[ -z ${RAY_AUTH_TOKEN:-} && ! -f ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]]; then
  [[ -z ${RAY_AUTH_TOKEN_PATH:-} ]] || fail "RAY_AUTH_TOKEN_PATH: no such file: $RAY_AUTH_TOKEN_PATH"
  ray get-auth-token --generate >/dev/null
fi
