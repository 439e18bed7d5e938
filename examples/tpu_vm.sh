#!/usr/bin/env bash
# Training on a Cloud TPU slice of one or many hosts, without Kubernetes.
#
#   export PROJECT=... ZONE=europe-west4-b TPU=stemjax FILES=10.0.0.2:/share
#   examples/tpu_vm.sh create       # the slice
#   examples/tpu_vm.sh setup        # this checkout onto every host, and FILES mounted at /files
#   examples/tpu_vm.sh train        # the same command on every host; they find each other
#   examples/tpu_vm.sh predict      # every host takes its share of the slides
#   examples/tpu_vm.sh delete
#
# FILES is an NFS share (Filestore) that holds the records; the run's folder lies there too, since
# checkpoints are written by all hosts. Make the records on machines without TPUs (docs/preparing.md):
# a TPU waits while a CPU embeds.
#
# The Cloud TPU API is said by its documentation to receive fixes only, and not to know TPU7x and
# later: for those, see examples/gke_xpk.sh. RUNTIME goes with TYPE: v2-alpha-tpuv5-lite for
# v5litepod, v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e.
#
# What was run of this, and what was not: bash -n; and every part with a stand-in for gcloud that
# printed what it was given. Nothing was run on a TPU: the flags are from gcloud's reference.
set -euo pipefail
: "${TPU:=stemjax}" "${TYPE:=v5litepod-16}" "${RUNTIME:=v2-alpha-tpuv5-lite}"
: "${CONFIG:=configs/stem_her2st.py}" "${OPTIONS:=}"
: "${PROJECT:?}" "${ZONE:?}"
here=(--project="$PROJECT" --zone="$ZONE")

everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU" "${here[@]}" --worker=all --command="$1"
}

stemjax="cd ~/stemjax && ~/.local/bin/uv run --extra tpu stemjax"

case "${1:-}" in
  create)
    gcloud compute tpus tpu-vm create "$TPU" "${here[@]}" \
      --accelerator-type="$TYPE" --version="$RUNTIME"
    ;;
  setup)
    : "${FILES:?HOST:/SHARE of the NFS share}"
    root=$(cd "$(dirname "$0")/.." && pwd)
    packed=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$packed"' EXIT
    tar -czf "$packed" -C "$root" --exclude=.git --exclude=.venv .
    gcloud compute tpus tpu-vm scp "$packed" "$TPU:stemjax.tar.gz" "${here[@]}" --worker=all
    everywhere "mkdir -p stemjax && tar -xzf stemjax.tar.gz -C stemjax && pip install --user uv \
&& cd stemjax && ~/.local/bin/uv sync --no-dev --extra tpu \
&& sudo mkdir -p /files && { mountpoint -q /files || sudo mount -t nfs $FILES /files; }"
    ;;
  train)
    everywhere "$stemjax train --config=$CONFIG --workdir=/files/run \
--config.data.records=/files/records $OPTIONS"
    ;;
  predict)
    everywhere "$stemjax predict --checkpoint /files/run --records /files/records --slides all \
-o /files/predictions"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$TPU" "${here[@]}"
    ;;
  *)
    echo "usage: $0 create|setup|train|predict|delete" >&2
    exit 2
    ;;
esac
