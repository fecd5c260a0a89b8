#!/usr/bin/env bash
# Packages:  Debian bookworm: libvirt-daemon 9.0.0-4+deb12u2, libvirt-daemon-driver-qemu
#            9.0.0-4+deb12u2, python3-libvirt 9.0.0-1, qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3
# Guess:     VIR_DOMAIN_CONTROL_ERROR of a running domain means that its monitor is lost for good.
# Behaviour: it is told of any domain for some milliseconds while virDomainDestroy() ends it, whose
#            monitor is closed before its state changes. Who polls has to ask again. So does 12.8.
# Output:    running: control state ok
#            being destroyed: control state error, domain state running
#            then: no such domain
set -eu
# Root's daemon would be the machine's own one.
[ "$(id -u)" != 0 ] || exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0"
box=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$box"' EXIT
"$(dirname "$0")/fetch" "$box" bookworm libvirt-daemon=9.0.0-4+deb12u2 \
    libvirt-daemon-driver-qemu=9.0.0-4+deb12u2 python3-libvirt=9.0.0-1 \
    qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3
export HOME=$box XDG_RUNTIME_DIR=$box/r XDG_CACHE_HOME=$box/c XDG_CONFIG_HOME=$box/k
mkdir -p "$box/r" "$box/k/libvirt"
echo 'stdio_handler = "file"' >"$box/k/libvirt/qemu.conf"
cat >"$box/qemu" <<EOF
#!/bin/sh
export QEMU_MODULE_DIR=$box/usr/lib/x86_64-linux-gnu/qemu
exec "$box/run" qemu-system-x86_64 -L "$box/usr/share/qemu" -L "$box/usr/share/seabios" "\$@"
EOF
chmod +x "$box/qemu"
LIBVIRT_DRIVER_DIR=$box/usr/lib/x86_64-linux-gnu/libvirt/connection-driver \
    "$box/run" ../sbin/libvirtd 2>/dev/null &
timeout 60 sh -c "until [ -S '$box/r/libvirt/libvirt-sock' ]; do sleep 0.2; done"
cat >"$box/play.py" <<'EOF'
import sys, threading

box = sys.argv[1]
sys.path.append(box + "/usr/lib/python3/dist-packages")
import libvirt

libvirt.registerErrorHandler(lambda *_: None, None)
uri = f"qemu+unix:/session?socket={box}/r/libvirt/libvirt-sock"
theirs, ours = libvirt.open(uri), libvirt.open(uri)
XML = f"""<domain type='qemu'><name>guest</name><memory unit='MiB'>64</memory>
<os><type machine='pc'>hvm</type></os><devices><emulator>{box}/qemu</emulator></devices></domain>"""
OK, ERROR = libvirt.VIR_DOMAIN_CONTROL_OK, libvirt.VIR_DOMAIN_CONTROL_ERROR
seen = {}
while len(seen) < 3:  # A look takes about as long as the error lasts, and may miss it.
    guest = theirs.createXML(XML)
    domain = ours.lookupByName("guest")
    seen["running: control state ok"] = domain.controlInfo()[0] == OK
    threading.Thread(target=guest.destroy).start()
    try:
        while True:
            if domain.controlInfo()[0] == ERROR and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
                seen["being destroyed: control state error, domain state running"] = True
    except libvirt.libvirtError as err:
        if len(seen) == 2:
            seen["then: no such domain"] = err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
print(*(line for line in seen if seen[line]), sep="\n")
EOF
PYTHONHOME=$box/usr timeout 240 "$box/run" python3.11 "$box/play.py" "$box" |
    "$(dirname "$0")/as-stated" "$0"
