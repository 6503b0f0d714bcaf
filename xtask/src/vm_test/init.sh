#!/bin/sh
# The first process of a virtual machine: mounts, loads modules, runs what the file `runs` lists, leaves the results on the disk.
# Lines that begin with `vm:` are for the one who reads the console.
export PATH=/bin HOME=/ TMPDIR=/tmp
# The tests' deadlines are those of a machine that is not emulated.
export TEST_PATIENCE=4
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t tracefs trace /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs security /sys/kernel/security
mount -t cgroup2 cgroup /sys/fs/cgroup
echo "vm: up $(uname -r)"
# A stop of the whole machine, rather than results from a kernel that is no longer sound.
sysctl -q -w kernel.panic_on_oops=1
for module in $(cat /modules); do
    modprobe "$module" || echo "vm: no module $module"
done
ip link set lo up
echo "vm: ready $(cut -d' ' -f1 /proc/uptime)"
while read -r limit name arguments; do
    echo "vm: begin $name"
    {
        # Split into words, as written in the list.
        timeout -s KILL "$limit" "/product/deps/$name" $arguments </dev/null 2>&1
        status=$?
        echo "vm: status $status"
        # What it left running would keep the pipe open.
        if [ $status = 137 ]; then
            sleep 1
            kill -9 -1
        fi
    } | tee -a "/results/$name.log"
    echo "vm: end $name"
done </runs
dmesg >/results/dmesg.log
tar -cf /dev/vda -C /results .
echo "vm: done"
poweroff -f
