#!/bin/bash
# A job that outlives its time limit: a command of dpr, or a Prefect worker. With `dpr` in the PATH, from anywhere:
#   sbatch deployments/slurm/job.sh dpr run llama-3.1-8b
#   sbatch deployments/slurm/job.sh dpr rerun 3f2a91c0 --set algorithm.gamma=0.95
#   sbatch deployments/slurm/job.sh deployments/worker.sh --pool gpu --limit 1
# (`--run-once` more: a worker that does what is waiting and ends, so that no GPU is held for nothing.)
# Two minutes before the limit the stage keeps its state, and the job is queued again and goes on from there, on
# whichever node, as long as DPR_HOME lies on a file system that all nodes share and that can lock files. Other clusters
# go on from its states if DPR_STATES names a bucket, and MLFLOW_TRACKING_URI a server, for all of them.
#SBATCH --job-name=dense-path
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

[ $# -gt 0 ] || { echo "say what to do: sbatch $0 dpr run demo" >&2; exit 2; }
: "${DPR_HOME:?set it to a folder on a file system that all nodes share}"

trap 'again=yes; kill -TERM "$child"' USR1
# Of scancel, or of a job that gives way to another: Slurm tells the child too.
trap : TERM

"$@" &
child=$!
while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done
[ "${again:-}" != yes ] || [ "$code" = 0 ] || exec scontrol requeue "$SLURM_JOB_ID"
exit "$code"
