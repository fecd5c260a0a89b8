#!/usr/bin/env bash
# Packages:  Debian forky: qemu-system-x86 1:11.1.2+ds-3, busybox-static 1:1.38.0-3+b1,
#            linux-{binary,modules}-7.2.12+deb14-cloud-amd64 7.2.12-1
# Guess:     a guest whose balloon offers free page reporting takes it, whatever its kernel does
#            with free pages itself.
# Behaviour: with init_on_free=1, a common hardening, Linux takes the feature back without a word
#            unless page poisoning is offered too: a freed page has to be zero then, and a page that
#            was reported is only what the device makes of it. Few devices offer page poisoning.
# Output:    page-poison=off init_on_free=0: REPORTING 1, PAGE_POISON 0
#            page-poison=off init_on_free=1: REPORTING 0, PAGE_POISON 0
#            page-poison=on init_on_free=1: REPORTING 1, PAGE_POISON 1
set -eu
box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
kernel=7.2.12+deb14-cloud-amd64
"$(dirname "$0")/fetch" "$box" forky qemu-system-x86=1:11.1.2+ds-3 busybox-static=1:1.38.0-3+b1 \
    linux-{binary,modules}-$kernel=7.2.12-1

mkdir -p "$box/guest/bin" "$box/guest/sys"
cp "$box/usr/bin/busybox" "$box/guest/bin"
modules=$box/usr/lib/modules/$kernel
xz -dc "$modules/kernel/drivers/virtio/virtio_balloon.ko.xz" >"$box/guest/balloon.ko"
cat >"$box/guest/init" <<'EOF'
#!/bin/busybox sh
busybox mount -t sysfs none /sys
busybox insmod /balloon.ko
features=$(busybox cat /sys/bus/virtio/drivers/virtio_balloon/virtio*/features)
echo "taken:$features:" >/dev/console
busybox poweroff -f
EOF
chmod +x "$box/guest/init"
(cd "$box/guest" && find . | "$box/run" busybox cpio -o -H newc 2>/dev/null) >"$box/initrd"

boot() { # boot PAGE_POISON INIT_ON_FREE: says what the guest takes of its balloon's features
    bits=$("$box/run" qemu-system-x86_64 -L "$box/usr/share/qemu" -L "$box/usr/share/seabios" \
        -accel tcg -cpu max -m 256M -nodefaults -display none -no-reboot -serial stdio \
        -kernel "$modules/vmlinuz" -initrd "$box/initrd" \
        -append "console=ttyS0 quiet panic=-1 init_on_free=$2" \
        -device "virtio-balloon-pci,free-page-reporting=on,page-poison=$1" |
        sed -n 's/.*taken:\([01]*\):.*/\1/p')
    echo "page-poison=$1 init_on_free=$2: REPORTING ${bits:5:1}, PAGE_POISON ${bits:4:1}"
}
{ boot off 0 && boot off 1 && boot on 1; } | "$(dirname "$0")/as-stated" "$0"
