#!/bin/bash
# One experiment on a Cloud TPU: a single host (v5litepod-8) or a pod of several (v5litepod-64). From the project's folder:
#
#   launch/recipes/tpu_vm.sh create NAME ZONE TYPE     # e.g. rcnn us-west4-a v5litepod-16, as a spot machine
#   launch/recipes/tpu_vm.sh train NAME ZONE EXPERIMENT gs://BUCKET/RUN [--set=path=value ...]
#   launch/recipes/tpu_vm.sh delete NAME ZONE
#
# `train` may be called again at any time: it goes on from the last checkpoint, also on a machine that replaces one that was
# taken away. It needs gcloud, with a project set; the bucket is mounted on every host.
set -euo pipefail

on_all_hosts() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

create() {
  gcloud compute tpus tpu-vm create "$name" --zone="$zone" --accelerator-type="$1" \
    --version="${VERSION:-v2-alpha-tpuv5-lite}" --spot --scopes=cloud-platform
  # shellcheck disable=SC2016  # expanded there
  on_all_hosts 'curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg \
    | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
    echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" \
      | sudo tee /etc/apt/sources.list.d/gcsfuse.list
    sudo apt-get update && sudo apt-get install --yes gcsfuse python3-venv libgl1'
}

train() {
  local experiment=$1 bucket run
  bucket=$(cut -d/ -f3 <<< "$2") run=$(cut -d/ -f4- <<< "$2")
  tar --create --gzip --file=/tmp/rcnn-jax.tar.gz pyproject.toml constraints.txt README.md rcnn_jax launch experiments
  gcloud compute tpus tpu-vm scp /tmp/rcnn-jax.tar.gz "$name:" --zone="$zone" --worker=all
  # --distributed finds the hosts of a pod by itself; a single host is a pod of one.
  on_all_hosts "set -e; mkdir -p rcnn-jax runs && tar -xzf rcnn-jax.tar.gz -C rcnn-jax
    mountpoint -q runs || gcsfuse --implicit-dirs $bucket runs
    cd rcnn-jax && python3 -m venv .venv
    .venv/bin/pip install --quiet --constraint constraints.txt --editable . 'jax[tpu]'
    .venv/bin/python -m launch.train --distributed --experiment=$experiment --workdir=../runs/$run $(printf '%q ' "${@:3}")"
}

delete() { gcloud compute tpus tpu-vm delete "$name" --zone="$zone" --quiet; }

case "${1:-}" in
  create | train | delete)
    what=$1 name=$2 zone=$3
    "$what" "${@:4}"
    ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
