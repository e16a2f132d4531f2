#!/bin/bash
# One run on all workers of a Cloud TPU slice, from your own machine:
#   TPU=my-slice ZONE=us-east5-b launch/tpu_vm.sh --config=configs/lora.py --workdir=/shared/runs/lora
#   TPU=my-slice ZONE=us-east5-b launch/tpu_vm.sh stop      # save and stop
# Each worker needs this repository in ~/jaxpeft, with its packages (pip install -e .
# 'jax[tpu]'), and /shared must be a file system that all workers mount. JAX finds the
# workers itself. After a failure, all workers start again and resume from the last
# checkpoint. If the slice was preempted, create it again first.
set -u
tries=10

everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="cd jaxpeft; $1"
}

if [[ "${1:-}" == stop ]]; then
  everywhere 'kill -TERM $(cat run.pid)'
  exit
fi

printf -v args ' %q' "$@"
for ((try = 0; try <= tries; try++)); do
  # A process that is left from an earlier attempt would block the TPU.
  everywhere 'kill -KILL $(cat run.pid) 2>/dev/null; rm -f run.pid run.status'
  everywhere "python train.py$args & echo \$! > run.pid; wait \$!; echo \$? > run.status"
  # The exit statuses of all workers; empty if the connection broke.
  statuses=$(everywhere 'cat run.status' | grep -xE '[0-9]+' | sort -nu | xargs)
  case " $statuses " in
    " 0 ") exit 0 ;;        # finished
    *" 2 "*) exit 2 ;;      # bad input, which no restart changes
    *" 143 "*) exit 143 ;;  # saved and stopped by a signal
  esac
  echo "ended with status ${statuses:-unknown}" >&2
done
exit 1
