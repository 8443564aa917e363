#!/bin/bash
# Starts a systemd user instance in namespaces of its own, without a pid namespace: its units are ordinary processes here.
#
#     user-systemd.sh DIRECTORY UID
#
# DIRECTORY becomes its runtime directory; units go into DIRECTORY/systemd/user. The bus is DIRECTORY/bus. Needs root.
# Ends with its standard input: whoever holds that pipe holds the instance.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
directory=$1
uid=$2
if [ "${3:-}" != inside ]; then
    hierarchy=/sys/fs/cgroup
    [ -e "$hierarchy/cgroup.procs" ] && [ -e "$hierarchy/cgroup.controllers" ] || hierarchy=/sys/fs/cgroup/unified
    if [ ! -e "$hierarchy/cgroup.procs" ]; then
        echo "no cgroup version 2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified" >&2
        exit 1
    fi
    own=$hierarchy/unstale-test-$$
    mkdir "$own"
    [ "$uid" = 0 ] || chown -R "$uid" "$own"
    finish() {
        # The manager first, with all of its units; then the empty groups, innermost first.
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            [ -e "$own" ] || break
            if [ -e "$own/cgroup.kill" ]; then echo 1 >"$own/cgroup.kill" || true; fi
            find "$own" -depth -type d -exec rmdir {} + 2>/dev/null || true
            sleep 0.1
        done
    }
    trap finish EXIT
    unshare -m --propagation private -- /bin/bash -c 'echo $$ >"$0/cgroup.procs"; exec unshare -C -- "$@"' \
        "$own" /bin/bash "$0" "$directory" "$uid" inside </dev/null &
    cat >/dev/null || true
    exit 0
fi
umount -l /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
mkdir -p /run/systemd/system
export XDG_RUNTIME_DIR=$directory DBUS_SESSION_BUS_ADDRESS=unix:path=$directory/bus HOME=$directory
export XDG_CONFIG_HOME=$directory
become=(env)
[ "$uid" = 0 ] || become=(setpriv --reuid "$uid" --regid "$uid" --clear-groups env)
"${become[@]}" dbus-daemon --session --address="unix:path=$directory/bus" --nofork --nopidfile &
exec "${become[@]}" /lib/systemd/systemd --user --unit=basic.target
