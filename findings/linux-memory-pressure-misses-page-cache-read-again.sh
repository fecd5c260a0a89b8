#!/usr/bin/env bash
# Packages:  Debian forky: qemu-system-x86 1:11.1.2+ds-3, busybox-static 1:1.38.0-3+b1,
#            linux-{binary,modules}-7.2.12+deb14-cloud-amd64 7.2.12-1
# Guess:     a task that waits for page cache which was dropped and is read again waits for lack of
#            memory, and the kernel counts that time in /proc/pressure/memory.
# Behaviour: it counts the wait for a page only if the page was in active use when it was dropped
#            (PG_workingset). With the multi-generational LRU few of the pages are that are read now
#            and then. Here half of what is read had been in memory before, and pressure on memory
#            was counted for a tenth of that wait; in a VM of 512 MiB whose task did nothing but wait
#            for such reads, for 4 % of the time. Whoever sizes VMs or cgroups by it sees no need.
# Output:    of what was read more than a fifth was read again
#            tasks waited for I/O more than 5 times as long as for memory
set -eu
box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
kernel=7.2.12+deb14-cloud-amd64
"$(dirname "$0")/fetch" "$box" forky qemu-system-x86=1:11.1.2+ds-3 busybox-static=1:1.38.0-3+b1 \
    linux-{binary,modules}-$kernel=7.2.12-1

mkdir -p "$box/guest/bin" "$box/guest/proc" "$box/guest/dev"
cp "$box/usr/bin/busybox" "$box/guest/bin"
modules=$box/usr/lib/modules/$kernel
xz -dc "$modules/kernel/drivers/block/virtio_blk.ko.xz" >"$box/guest/blk.ko"
cat >"$box/guest/init" <<'EOF'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t devtmpfs none /dev
insmod /blk.ko
exec 9</dev/vda # Kept open: the last close of a disk drops its page cache.
look() { # look NAME: microseconds of pressure on memory and on I/O, pages read again
    set -- "$1" $(sed -n 's/^some.*total=//p' /proc/pressure/memory /proc/pressure/io)
    echo "$@" $(sed -n 's/^workingset_refault_file //p' /proc/vmstat) >/dev/console
}
read_pieces() { # read_pieces NUMBER: random ones of 256 KiB of the disk's first 100 MiB
    for _ in $(seq "$1"); do
        dd if=/dev/vda of=/dev/null bs=256k count=1 skip=$((RANDOM % 400)) 2>/dev/null
    done
}
read_pieces 500
look begin
read_pieces 300
look end
poweroff -f
EOF
chmod +x "$box/guest/init"
(cd "$box/guest" && find . | "$box/run" busybox cpio -o -H newc 2>/dev/null) >"$box/initrd"
"$box/run" qemu-system-x86_64 -L "$box/usr/share/qemu" -L "$box/usr/share/seabios" \
    -accel tcg -cpu max -m 128M -nodefaults -display none -no-reboot -serial stdio \
    -kernel "$modules/vmlinuz" -initrd "$box/initrd" -append "console=ttyS0 quiet panic=-1" \
    -drive driver=null-co,size=1G,read-zeroes=on,if=none,id=disk,throttling.bps-read=4194304 \
    -device virtio-blk-pci,drive=disk | tr -d '\r' | tee "$box/said" >&2
awk '{ memory[$1] = $2; io[$1] = $3; again[$1] = $4 } END {
    print "of what was read " (again["end"] - again["begin"] > 300 * 64 / 5 ? "more" : "less") \
        " than a fifth was read again"
    print "tasks waited for I/O " (io["end"] - io["begin"] > 5 * (memory["end"] - memory["begin"]) \
        ? "more" : "less") " than 5 times as long as for memory" }' "$box/said" |
    "$(dirname "$0")/as-stated" "$0"
