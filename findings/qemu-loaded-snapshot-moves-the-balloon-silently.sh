#!/usr/bin/env bash
# Packages:  Debian forky: qemu-{system-x86,utils} 1:11.1.2+ds-3, busybox-static 1:1.38.0-3+b1,
#            linux-{binary,modules}-7.2.12+deb14-cloud-amd64 7.2.12-1
# Guess:     whoever hears every BALLOON_CHANGE knows the balloon's size, if a little late.
# Behaviour: a loaded snapshot brings its balloon along, but no event: QEMU sends one when the guest
#            writes another size, and this guest did that before it was saved. On a memfd all that
#            balloons had freed is allocated, as by saving. query-migrate goes on telling of the
#            save, and the migration capability "events" of nothing. Only STOP and RESUME come, as of
#            any pause (of snapshot-load also its job's): after a RESUME, ask query-balloon.
# Output:    saved at 256 MiB, now BALLOON_CHANGE says 128 MiB, the VM holds 128 MiB
#            loaded: query-balloon says 256 MiB, the VM holds 512 MiB, query-migrate as before
#            events: STOP RESUME
set -eu
box=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$box"' EXIT
kernel=7.2.12+deb14-cloud-amd64
"$(dirname "$0")/fetch" "$box" forky qemu-{system-x86,utils}=1:11.1.2+ds-3 \
    busybox-static=1:1.38.0-3+b1 linux-{binary,modules}-$kernel=7.2.12-1

modules=$box/usr/lib/modules/$kernel
install -D "$box/usr/bin/busybox" "$box/guest/bin/busybox"
xz -dc "$modules/kernel/drivers/virtio/virtio_balloon.ko.xz" >"$box/guest/balloon.ko"
install <(printf '#!/bin/busybox sh\nbusybox insmod balloon.ko\nbusybox sleep 1000\n') "$box/guest/init"
(cd "$box/guest" && find . | "$box/run" busybox cpio -o -H newc 2>/dev/null) >"$box/initrd"
"$box/run" qemu-img create -q -f qcow2 "$box/disk" 1M # No device's: it holds the snapshot.
coproc "$box/run" qemu-system-x86_64 -L "$box/usr/share/qemu" -L "$box/usr/share/seabios" \
    -accel tcg -cpu max -m 512M -machine pc,memory-backend=memory -nodefaults -display none \
    -object memory-backend-memfd,id=memory,size=512M,share=on -device virtio-balloon-pci \
    -blockdev "qcow2,node-name=disk,file.driver=file,file.filename=$box/disk" -qmp stdio \
    -kernel "$modules/vmlinuz" -initrd "$box/initrd" -append quiet
exec 3>&"${COPROC[1]}" 4<&"${COPROC[0]}"
ask() { # ask COMMAND [ARGUMENTS]: sends it, waits for its answer
    echo "{\"execute\": \"$1\", \"arguments\": {${2:-}}}" >&3
    while read -rt 99 answer <&4; do heard+=$answer; [[ $answer != '{"return"'* ]] || return 0; done
    return 1
}
balloon() { # balloon MIB: leaves the guest this much memory
    ask balloon "\"value\": $(($1 << 20))"
    until [[ $answer == *": $(($1 << 20))}"* ]]; do sleep 0.2 && ask query-balloon; done
    while read -rt 3 answer <&4; do heard+=$answer; done # An event may come a second late.
}
holds() { echo $(($(stat -Lc %b "$(find /proc/$!/fd -lname '/memfd:memory*')") >> 11)) MiB; }
ask qmp_capabilities
ask migrate-set-capabilities '"capabilities": [{"capability": "events", "state": true}]'
balloon 256
ask human-monitor-command '"command-line": "savevm then"'
balloon 512
balloon 128
{
    told=${heard##*'"data": {"actual": '}
    echo "saved at 256 MiB, now BALLOON_CHANGE says $((${told%%\}*} >> 20)) MiB, the VM holds $(holds)"
    ask query-migrate && before=$answer heard=
    ask human-monitor-command '"command-line": "loadvm then"'
    while read -rt 3 answer <&4; do heard+=$answer; done
    ask query-balloon && size=$(($(tr -dc 0-9 <<<"$answer") >> 20))
    ask query-migrate && same=$([ "$answer" = "$before" ] && echo as before)
    echo "loaded: query-balloon says $size MiB, the VM holds $(holds), query-migrate $same"
    grep -o '[A-Z_]\{4,\}' <<<"$heard" | xargs echo events:
    ask quit
} | "$(dirname "$0")/as-stated" "$0"
