#!/bin/bash
# A real SLURM on this machine alone, from Debian's packages (apt-get install slurm-wlm munge), for tests.
#
#   tests/slurm.sh start DIR [CPUS]   starts it; everything that it writes lies in DIR. Then: export SLURM_CONF=DIR/slurm.conf
#   tests/slurm.sh stop DIR
#
# It is a cluster of one node with two partitions: `main`, whose jobs are queued again when one of `urgent` needs their cores.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

start() {
  local dir=$1 cpus=${2:-2} host user
  host=$(hostname -s) user=$(id -un)
  mkdir -p "$dir"/{state,spool}
  chmod 755 "$dir"
  ( umask 077; head -c 128 /dev/urandom > "$dir/munge.key" )
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
  cat > "$dir/slurm.conf" <<CONF
ClusterName=onemachine
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
AuthType=auth/munge
# A job that is queued again waits until its credential has expired: 120 s unless told otherwise.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=60
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=$host MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
CONF
  export SLURM_CONF=$dir/slurm.conf
  slurmctld
  slurmd
  for _ in $(seq 60); do
    [ "$(sinfo --noheader --partition=main --format=%T 2> /dev/null)" = idle ] && return
    sleep 0.5
  done
  echo "SLURM did not come up: see $dir/slurmctld.log and $dir/slurmd.log" >&2
  exit 1
}

stop() {
  local dir=$1 name
  SLURM_CONF=$dir/slurm.conf scancel --user="$(id -un)" 2> /dev/null || true
  for name in slurmd slurmctld munged; do
    if [ -f "$dir/$name.pid" ]; then kill "$(cat "$dir/$name.pid")" 2> /dev/null || true; fi
  done
}

case "${1:-}" in
  start | stop) "$1" "$(realpath -m "$2")" "${3:-2}" ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
