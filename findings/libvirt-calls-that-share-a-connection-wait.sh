#!/usr/bin/env bash
# Packages:  Debian bookworm: libvirt-daemon 9.0.0-4+deb12u2, python3-libvirt 9.0.0-1
# Guess:     threads may share a connection, and a call that hangs, as one does whose QEMU does not
#            answer, holds up its own thread alone.
# Behaviour: calls of other threads on that connection stop with it. The hanging thread polls the
#            socket for all, and another has to wake it to have its call sent; with calls in close
#            succession that is lost, most likely as it comes just before the polling begins. With
#            an event loop, the keepalive's timer ends the wait (5 s). 12.8's client is cured.
# Output:    one connection: 1000 calls beside one that hangs: not done in 10 s
#            a connection for each thread: 1000 calls beside one that hangs: done
set -eu
# Root's daemon would be the machine's own one.
[ "$(id -u)" != 0 ] || exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0"
box=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$box"' EXIT
"$(dirname "$0")/fetch" "$box" bookworm libvirt-daemon=9.0.0-4+deb12u2 python3-libvirt=9.0.0-1
export HOME=$box XDG_RUNTIME_DIR=$box/r XDG_CACHE_HOME=$box/c XDG_CONFIG_HOME=$box/k
mkdir "$XDG_RUNTIME_DIR"
LIBVIRT_DRIVER_DIR=$box/none "$box/run" ../sbin/libvirtd 2>/dev/null &
timeout 60 sh -c "until [ -S '$box/r/libvirt/libvirt-sock' ]; do sleep 0.2; done"
cat >"$box/play.py" <<'EOF'
import os, socket, struct, sys, threading

sys.path.append(sys.argv[1] + "/usr/lib/python3/dist-packages")
import libvirt
path, proxy = sys.argv[1] + "/r/libvirt/libvirt-sock", sys.argv[1] + "/proxy"
GET_INFO, REPLY = 16, 1  # REMOTE_PROC_DOMAIN_GET_INFO, VIR_NET_REPLY

def start(function, *arguments):
    threading.Thread(target=function, args=arguments, daemon=True).start()

def relay(source, sink):  # All but the answers to virDomainGetInfo, which so hangs.
    while head := source.recv(4, socket.MSG_WAITALL):
        body = source.recv(struct.unpack(">I", head)[0] - 4, socket.MSG_WAITALL)
        if struct.unpack(">2i", body[8:16]) != (GET_INFO, REPLY):
            sink.sendall(head + body)

def serve(listener):
    while True:
        ours, theirs = listener.accept()[0], socket.socket(socket.AF_UNIX)
        theirs.connect(path)
        start(relay, ours, theirs)
        start(relay, theirs, ours)

listener = socket.socket(socket.AF_UNIX)
listener.bind(proxy)
listener.listen()
start(serve, listener)
for how, connections in ("one connection", 1), ("a connection for each thread", 2):
    opened = [libvirt.open(f"test+unix:/default?socket={proxy}") for _ in range(connections)]
    first, last = (opened[i].lookupByName("test") for i in (0, -1))
    start(first.info)
    calls = threading.Thread(target=lambda: [last.state() for _ in range(1000)], daemon=True)
    calls.start()
    calls.join(10)
    end = "not done in 10 s" if calls.is_alive() else "done"
    print(f"{how}: 1000 calls beside one that hangs: {end}", flush=True)
os._exit(0)
EOF
PYTHONHOME=$box/usr "$box/run" python3.11 "$box/play.py" "$box" | "$(dirname "$0")/as-stated" "$0"
