#!/usr/bin/env bash
# Runs a command beside a Slurm of two pretended nodes on this machine, and ends that Slurm with it.
#
#   tools/slurm_here.sh COMMAND [ARGUMENT ...]
#
# slurmctld, two slurmd and munge are real, of Debian's packages (as root, once):
#
#   apt-get install slurmctld slurmd slurm-client munge
#
# Root only, as slurmd is. The nodes are named here1 and here2, the partition `gpu`. All files lie in
# a temporary folder. A job is signaled and killed as on a cluster; cores are not held apart, and the
# GPU of each node is one in name.
set -euo pipefail

[ $# -gt 0 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
for program in munged slurmctld slurmd sinfo; do
    command -v "$program" >/dev/null || PATH="$PATH:/usr/sbin:/sbin"
    command -v "$program" >/dev/null || {
        echo "error: $program is not there; apt-get install slurmctld slurmd slurm-client munge" >&2
        exit 1
    }
done
[ "$(id -u)" = 0 ] || { echo "error: slurmd runs as root; call this as root" >&2; exit 1; }

HERE=$(mktemp -d /tmp/slurm_here.XXXXXX)
pids=()
finish() {
    set +e
    scancel --user="$(id -un)" >/dev/null 2>&1 && sleep 1
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
    wait 2>/dev/null
    rm -rf "$HERE"
}
trap finish EXIT

mkdir -p "$HERE/state"
chmod 755 "$HERE"
head -c 1024 /dev/urandom >"$HERE/munge.key"
chmod 400 "$HERE/munge.key"
nodes=""
for n in 1 2; do
    nodes+="NodeName=here$n NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((17000 + n))"
    nodes+=" CPUs=8 Gres=gpu:1 State=UNKNOWN"$'\n'
done
cat >"$HERE/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$HERE/munge.socket
StateSaveLocation=$HERE/state
SlurmdSpoolDir=$HERE/spool.%n
SlurmctldPidFile=$HERE/slurmctld.pid
SlurmdPidFile=$HERE/slurmd.%n.pid
SlurmctldLogFile=$HERE/slurmctld.log
SlurmdLogFile=$HERE/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
MinJobAge=3600
SchedulerParameters=sched_interval=2,bf_interval=2
${nodes}PartitionName=gpu Nodes=here1,here2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
CONF
# Needs none; `disabled` came with 23.11, before which one of them has to be named.
plugin=disabled
[ "$(printf '%s\n' "$(slurmd -V | cut -d' ' -f2)" 23.11 | sort -V | head -n 1)" = 23.11 ] ||
    plugin=cgroup/v1
printf 'CgroupPlugin=%s\nCgroupMountpoint=%s\n' "$plugin" "$HERE/cgroup" >"$HERE/cgroup.conf"
printf 'NodeName=here1 Name=gpu File=/dev/null\nNodeName=here2 Name=gpu File=/dev/zero\n' \
    >"$HERE/gres.conf"
export SLURM_CONF=$HERE/slurm.conf
export MASTER_ADDR=127.0.0.1  # as no name service knows here1

munged --force --foreground --socket="$HERE/munge.socket" --key-file="$HERE/munge.key" \
    --pid-file="$HERE/munged.pid" --seed-file="$HERE/munge.seed" 2>"$HERE/munged.out" &
pids+=($!)
for _ in $(seq 50); do [ -S "$HERE/munge.socket" ] && break; sleep 0.1; done
slurmctld -D -i >"$HERE/slurmctld.out" 2>&1 &
pids+=($!)
for n in 1 2; do
    slurmd -D -N "here$n" >"$HERE/slurmd.$n.out" 2>&1 &
    pids+=($!)
done
for _ in $(seq 100); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ] && break
    sleep 0.3
done
if [ "$(sinfo -h -t idle -o %D)" != 2 ]; then
    echo "error: the two nodes have not come up:" >&2
    tail -n 5 "$HERE"/*.log "$HERE"/*.out >&2
    exit 1
fi
sinfo
code=0
"$@" || code=$?
exit $code
