#!/bin/busybox sh
# The guest's only process: loads the modules, then runs commands from the second serial port.
# The first port is the kernel's console, so that its messages never mix with a command's output.
#
# A command is one line, `NUMBER COMMAND`; the answer is
#   @@BEGIN NUMBER
#   output, both stdout and stderr
#   @@END NUMBER STATUS
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
# Room for a test to fill all of the guest's memory with files.
mount -t tmpfs -o size=100% none /tmp
for module in /modules/*.ko; do
    insmod "$module" || echo "init: $module does not load" >/dev/kmsg
done

balloon_device() { # prints the balloon's name on the virtio bus, such as virtio0
    for device in /sys/bus/virtio/devices/*; do
        [ "$(cat "$device/device")" = 0x0005 ] && basename "$device"
    done
}

exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
echo "@@READY $(uname -r)"
while read -r number command; do
    echo "@@BEGIN $number"
    # In this shell, not in a subshell: a test may set a variable or a trap for later commands.
    eval "$command" </dev/null
    echo "
@@END $number $?"
done
