#!/usr/bin/env bash
# Packages:  Debian forky: qemu-system-x86 1:11.1.2+ds-3, busybox-static 1:1.38.0-3+b1,
#            linux-{binary,modules}-7.2.12+deb14-cloud-amd64 7.2.12-1
# Guess:     query-balloon says how much memory the guest has: after a reset all of it, until its
#            new kernel's driver has inflated the balloon again.
# Behaviour: a reset leaves the figure where it was, though it gives the guest every page back. It
#            stays for as long as no driver loads: through firmware, boot loader and boot, or for
#            ever under a kernel without the driver.
# Output:    driver loaded, asked for 128 of 256 MiB: query-balloon says 128 MiB
#            after a reset, no driver yet: query-balloon says 128 MiB, and more than that is free
set -eu
box=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$box"' EXIT
kernel=7.2.12+deb14-cloud-amd64
"$(dirname "$0")/fetch" "$box" forky qemu-system-x86=1:11.1.2+ds-3 busybox-static=1:1.38.0-3+b1 \
    linux-{binary,modules}-$kernel=7.2.12-1

mkdir -p "$box/guest/bin" "$box/guest/proc"
cp "$box/usr/bin/busybox" "$box/guest/bin"
modules=$box/usr/lib/modules/$kernel
xz -dc "$modules/kernel/drivers/virtio/virtio_balloon.ko.xz" >"$box/guest/balloon.ko"
cat >"$box/guest/init" <<'EOF'
#!/bin/busybox sh
busybox mount -t proc none /proc
busybox awk '/MemFree/ { print "free " int($2 / 1024) " MiB" }' /proc/meminfo >/dev/console
read -r _ </dev/console
busybox insmod /balloon.ko
exec busybox sleep 1000
EOF
chmod +x "$box/guest/init"
(cd "$box/guest" && find . | "$box/run" busybox cpio -o -H newc 2>/dev/null) >"$box/initrd"
mkfifo "$box/serial.in" "$box/serial.out"
coproc qmp {
    exec "$box/run" qemu-system-x86_64 -L "$box/usr/share/qemu" -L "$box/usr/share/seabios" \
        -accel tcg -cpu max -m 256M -nodefaults -display none -kernel "$modules/vmlinuz" \
        -initrd "$box/initrd" -append "console=ttyS0 quiet" -device virtio-balloon-pci \
        -serial "pipe:$box/serial" -qmp stdio
}
exec 3<"$box/serial.out" 4>"$box/serial.in" 5>&"${qmp[1]}" 6<&"${qmp[0]}"
ask() { # ask COMMAND: sends it, waits for its answer
    echo "{\"execute\": $1}" >&5
    while read -rt 120 answer <&6; do [[ $answer != '{"return"'* ]] || return 0; done
    return 1
}
mib() { ask '"query-balloon"' && echo $(($(tr -dc 0-9 <<<"$answer") >> 20)); }
free() { sed -un '/^free/ { s/[^0-9]//gp; q }' <&3; } # What the guest says once it has booted.
ask '"qmp_capabilities"'
free >/dev/null
echo >&4
ask '"balloon", "arguments": {"value": 134217728}'
until [ "$(mib)" = 128 ]; do sleep 0.2; done
{
    echo "driver loaded, asked for 128 of 256 MiB: query-balloon says $(mib) MiB"
    ask '"system_reset"'
    free=$(free) mib=$(mib)
    echo "after a reset, no driver yet: query-balloon says $mib MiB," \
        "and $( ((free > mib)) && echo more than that is free)"
    ask '"quit"'
} | "$(dirname "$0")/as-stated" "$0"
