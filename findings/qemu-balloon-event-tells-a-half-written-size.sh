#!/usr/bin/env bash
# Packages:  Debian forky: qemu-system-x86 1:11.1.2+ds-3, busybox-static 1:1.38.0-3+b1,
#            linux-{binary,modules}-7.2.12+deb14-cloud-amd64 7.2.12-1
# Guess:     BALLOON_CHANGE tells sizes that the guest has had. It may be late, but it is one of them.
# Behaviour: with legacy virtio (disable-modern=on, virtio-mmio of microvm) the driver writes its four
#            bytes one by one, and QEMU makes an event of each byte that changes the size. It sends
#            one event a second, the first at once: of a balloon that begins to shrink from 256 MiB,
#            0x10000 pages, to 0xff00, that is the one of 0x1ff00. Whoever takes events for facts
#            sees a guest that gives nearly all of its memory away at the moment in which it was to
#            get it back. query-balloon can fall between two bytes, too, but hardly ever does.
# Output:    modern: at 256 of 512 MiB, told to take all back: the first event says 257 MiB
#            legacy: at 256 of 512 MiB, told to take all back: the first event says 1 MiB
set -eu
box=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$box"' EXIT
kernel=7.2.12+deb14-cloud-amd64
"$(dirname "$0")/fetch" "$box" forky qemu-system-x86=1:11.1.2+ds-3 busybox-static=1:1.38.0-3+b1 \
    linux-{binary,modules}-$kernel=7.2.12-1

mkdir -p "$box/guest/bin"
cp "$box/usr/bin/busybox" "$box/guest/bin"
modules=$box/usr/lib/modules/$kernel
xz -dc "$modules/kernel/drivers/virtio/virtio_balloon.ko.xz" >"$box/guest/balloon.ko"
printf '#!/bin/busybox sh\nbusybox insmod /balloon.ko\nexec busybox sleep 1000\n' >"$box/guest/init"
chmod +x "$box/guest/init"
(cd "$box/guest" && find . | "$box/run" busybox cpio -o -H newc 2>/dev/null) >"$box/initrd"

first_event() { # first_event DEVICE: the size in the first event of a balloon that shrinks, in MiB
    mkfifo "$box/in" "$box/out"
    "$box/run" qemu-system-x86_64 -L "$box/usr/share/qemu" -L "$box/usr/share/seabios" \
        -accel tcg -cpu max -m 512M -nodefaults -display none -kernel "$modules/vmlinuz" \
        -initrd "$box/initrd" -append quiet -device "$1" -qmp stdio <"$box/in" >"$box/out" &
    exec 3>"$box/in" 4<"$box/out"
    ask '"qmp_capabilities"'
    ask '"balloon", "arguments": {"value": 268435456}'
    until [ "${answer-}" = 268435456 ]; do
        sleep 0.2
        ask '"query-balloon"'
        answer=$(tr -dc 0-9 <<<"$answer")
    done
    # Longer than the second in which QEMU sends no further event.
    while read -rt 3 answer <&4; do :; done
    ask '"balloon", "arguments": {"value": 536870912}'
    until [[ $answer == *BALLOON_CHANGE* ]]; do read -rt 60 answer <&4; done
    size=${answer##*\"actual\": }
    echo $((${size%%\}*} >> 20))
    ask '"quit"'
    wait $!
    rm "$box/in" "$box/out"
}
ask() { # ask COMMAND: sends it, waits for its answer
    echo "{\"execute\": $1}" >&3
    while read -rt 120 answer <&4; do [[ $answer != '{"return"'* ]] || return 0; done
    return 1
}
for how in modern legacy; do
    device=virtio-balloon-pci,disable-modern=$([ $how = legacy ] && echo on || echo off)
    size=$(first_event "$device")
    echo "$how: at 256 of 512 MiB, told to take all back: the first event says $size MiB"
done | "$(dirname "$0")/as-stated" "$0"
