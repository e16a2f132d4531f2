#!/bin/bash
# One run on all workers of a Cloud TPU slice, from your own machine:
#   TPU=my-slice ZONE=us-east5-b launch/tpu_vm.sh --config=configs/lora.py --workdir=/shared/runs/lora
#   TPU=my-slice ZONE=us-east5-b launch/tpu_vm.sh stop      # all save, and leave
# Each worker has this repository and its packages (pip install -e . 'jax[tpu]') in
# ~/jaxpeft, and /shared is a file system that all of them mount. JAX finds the workers
# itself. After a failure all are started again and go on from the last checkpoint; a
# slice that was taken away has to be created again first.
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
  # What an attempt before left behind would hold the TPU.
  everywhere 'kill -KILL $(cat run.pid) 2>/dev/null; rm -f run.pid run.status'
  everywhere "python train.py$args & echo \$! > run.pid; wait \$!; echo \$? > run.status"
  # Of every worker; none, if the connection broke.
  statuses=$(everywhere 'cat run.status' | grep -xE '[0-9]+' | sort -nu | xargs)
  case " $statuses " in
    " 0 ") exit 0 ;;        # finished
    *" 2 "*) exit 2 ;;      # bad input: it would end the same
    *" 143 "*) exit 143 ;;  # stopped, and saved
  esac
  echo "ended with status ${statuses:-unknown}" >&2
done
exit 1
