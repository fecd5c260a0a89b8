#!/usr/bin/env bash
# Packages:  Debian bookworm: python3.11-minimal and libpython3.11-stdlib 3.11.2-6+deb12u8; CPython
#            3.13.0 has the same lines
# Guess:     socket.send_fds(sock, buffers, fds, flags, address) passes flags and address on to
#            sendmsg(), as recv_fds() does with its flags.
# Behaviour: it takes both and uses neither. With MSG_DONTWAIT it waits like any other send: a server
#            that hands out descriptors stands still as soon as somebody does not take them. Only
#            where the queue is full, so it shows in no test.
# Output:    sendmsg with MSG_DONTWAIT: did not wait
#            send_fds with MSG_DONTWAIT: waited until the socket's own time was up
set -eu
box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
"$(dirname "$0")/fetch" "$box" bookworm {python3.11-minimal,libpython3.11-stdlib}=3.11.2-6+deb12u8

PYTHONHOME=$box/usr "$box/run" python3.11 -I - <<'EOF' | "$(dirname "$0")/as-stated" "$0"
import array
import socket
import struct
import time

TIME_S = 1
ours, theirs = socket.socketpair()
ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", TIME_S, 0))
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]


def waits(send):
    began = time.monotonic()
    try:
        while True:
            send()
    except BlockingIOError:
        waited = time.monotonic() - began > TIME_S / 2
        return "waited until the socket's own time was up" if waited else "did not wait"


dont_wait = socket.MSG_DONTWAIT
how = waits(lambda: ours.sendmsg([b"."], rights, dont_wait))
print(f"sendmsg with MSG_DONTWAIT: {how}")
how = waits(lambda: socket.send_fds(ours, [b"."], [theirs.fileno()], dont_wait))
print(f"send_fds with MSG_DONTWAIT: {how}")
EOF
