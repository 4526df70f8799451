#!/bin/bash
# A command of dpr whose shared stages are done by all nodes of the job (launch.engine=ray), on a Ray cluster that lasts
# as long as it does. With `dpr` and `ray` in the PATH (pip install 'dense-path[cluster]'), from anywhere:
#   sbatch --nodes=2 deployments/slurm/ray.sh dpr run llama-3.1-8b-2nodes
# Two minutes before the limit the stage keeps its state, and the job is queued again and goes on from there. DPR_HOME is
# the first node's: where it is on a file system that all share, that may be another one the next time. Or all nodes
# reach MLFLOW_TRACKING_URI and DPR_STATES.
#SBATCH --job-name=dense-path-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

[ $# -gt 0 ] || { echo "say what to do: sbatch $0 dpr run llama-3.1-8b-2nodes" >&2; exit 2; }
: "${DPR_HOME:?set it to a folder, best on a file system that all nodes share}"

export RAY_ADDRESS="$(hostname --ip-address | cut -d' ' -f1):$((20000 + SLURM_JOB_ID % 10000))"
export RAY_USAGE_STATS_ENABLED=0

# `ray symmetric-run` would end its command within the second: the job tells it by itself.
command=$(mktemp)
trap 'again=yes; kill -TERM "$(cat "$command")"' USR1
# Of scancel, or of a job that gives way to another: Slurm tells the command too.
trap : TERM

srun --ntasks-per-node=1 ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    bash -c 'echo $$ >"$0"; exec "$@"' "$command" "$@" &
child=$!
while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done
[ -s "$command" ] || code=${code/#0/1} # a cluster that did not come up ends with 0
rm -f "$command"
[ "${again:-}" != yes ] || [ "$code" = 0 ] || exec scontrol requeue "$SLURM_JOB_ID"
exit "$code"
