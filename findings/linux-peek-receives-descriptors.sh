#!/usr/bin/env bash
# Packages:  the kernel that runs; seen on Linux 6.18.44
# Guess:     MSG_PEEK changes nothing, and MSG_CTRUNC says that descriptors are lost.
# Behaviour: each look with room for descriptors makes new ones, for whoever looks to close: they pile
#            up in a program that looks until a message is whole. A look without room says MSG_CTRUNC,
#            as if they were lost, and loses nothing. Either ends behind the message with descriptors,
#            however many bytes wait behind it and fit.
# Output:    two looks with room: firstsecond, 1 + 1 new descriptors
#            a look without room: firstsecond, MSG_CTRUNC
#            received then: firstsecond, 1 descriptor
#            received last: third
set -eu
python3 - <<'EOF' | "$(dirname "$0")/as-stated" "$0"
import array, os, socket

there, here = socket.socketpair()
sent = array.array("i", [os.open("/dev/null", os.O_RDONLY)])
there.send(b"first")
there.sendmsg([b"second"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sent)])
there.send(b"third")
room = socket.CMSG_SPACE(8 * sent.itemsize)


def opened():
    return len(os.listdir("/proc/self/fd"))


before = opened()
seen = here.recvmsg(100, room, socket.MSG_PEEK)[0].decode()
first = opened() - before
here.recvmsg(100, room, socket.MSG_PEEK)
print(f"two looks with room: {seen}, {first} + {opened() - before - first} new descriptors")
seen, _, flags, _ = here.recvmsg(100, 0, socket.MSG_PEEK)
lost = "MSG_CTRUNC" if flags & socket.MSG_CTRUNC else "no flag"
print(f"a look without room: {seen.decode()}, {lost}")
before = opened()
seen = here.recvmsg(100, room)[0].decode()
print(f"received then: {seen}, {opened() - before} descriptor")
print(f"received last: {here.recv(100).decode()}")
EOF
