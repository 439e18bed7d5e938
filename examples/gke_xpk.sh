#!/usr/bin/env bash
# Records on a GKE cluster's CPU nodes, and training on its TPUs through xpk.
#
#   export PROJECT=... ZONE=... CLUSTER=... IMAGE=REGION-docker.pkg.dev/.../stemjax:TAG
#   export STORAGE=stemjax-files CLAIM=stemjax-files-claim MOUNT=/files
#   examples/gke_xpk.sh prepare     # the panel, then an indexed Job of SHARDS pods
#   examples/gke_xpk.sh train       # one xpk workload
#
# IMAGE has stemjax with the extra "tpu" (`pip install 'stemjax[tpu]'` on python:3.12-slim does).
# The cluster comes from `xpk cluster create`. STORAGE is a Filestore that was attached with
# `xpk storage create ... --type=gcpfilestore --mount-point=$MOUNT --access-mode=ReadWriteMany`,
# CLAIM its PersistentVolumeClaim (`kubectl get pvc`). Slides lie in $MOUNT/slides. A bucket through
# gcsfuse will do for reading; for writing it lacks the hard links with which the first of several
# panels wins, so run "prepare" as here, the panel first.
#
# What was run of this, and what was not: bash -n; and both parts with stand-ins for kubectl and xpk
# that printed what they were given, the Jobs then read by a YAML parser. Nothing was run on GKE:
# xpk's flags are from its documentation (docs/usage/workloads.md, docker.md and storage.md there).
set -euo pipefail
: "${CLAIM:=stemjax-files-claim}" "${MOUNT:=/files}" "${SHARDS:=100}" "${AT_ONCE:=50}"
: "${LAYOUT:=hest}" "${OPTIONS:=}" "${TPU_TYPE:=v5litepod-16}" "${NUM_SLICES:=1}"
: "${CONFIG:=configs/stem_her2st.py}" "${TRAIN_OPTIONS:=}"

# A Job: name, shards, what is done by each (seen by its shell, where JOB_COMPLETION_INDEX is set).
job() {
  cat <<YAML
apiVersion: batch/v1
kind: Job
metadata:
  name: $1
spec:
  completionMode: Indexed
  completions: $2
  parallelism: $AT_ONCE
  backoffLimitPerIndex: 2   # from Kubernetes 1.33 on; a bad slide fails its shard, not the others
  maxFailedIndexes: $2
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: stemjax
        image: $IMAGE
        command: ["/bin/sh", "-c"]
        args:
        - >-
          exec stemjax prepare --layout $LAYOUT --data $MOUNT/slides --out $MOUNT/records
          --workers 8 $OPTIONS $3
        resources:
          requests: {cpu: "8", memory: 32Gi}
        volumeMounts:
        - {name: files, mountPath: $MOUNT}
      volumes:
      - name: files
        persistentVolumeClaim: {claimName: $CLAIM}
YAML
}

prepare() {
  : "${IMAGE:?image with stemjax}"
  job stemjax-panel 1 --panel-only | kubectl apply -f -
  kubectl wait --for=condition=complete --timeout=4h job/stemjax-panel
  # The pod's shell puts the index in, not this one.
  # shellcheck disable=SC2016
  job stemjax-prepare "$SHARDS" '--shard $JOB_COMPLETION_INDEX/'"$SHARDS" | kubectl apply -f -
  echo "kubectl get job stemjax-prepare; slides that fail are listed in $MOUNT/records/failed"
}

train() {
  : "${PROJECT:?}" "${ZONE:?}" "${CLUSTER:?}" "${IMAGE:?image with stemjax}" "${STORAGE:?}"
  # A restarted workload goes on from its last checkpoint.
  xpk workload create --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" \
    --workload="${WORKLOAD:-stemjax-train}" --tpu-type="$TPU_TYPE" --num-slices="$NUM_SLICES" \
    --docker-image="$IMAGE" --storage="$STORAGE" --max-restarts=50 \
    --command="stemjax train --config=$CONFIG --workdir=$MOUNT/run \
--config.data.records=$MOUNT/records $TRAIN_OPTIONS"
}

case "${1:-}" in
  prepare | train) "$1" ;;
  *) echo "usage: $0 prepare|train" >&2; exit 2 ;;
esac
