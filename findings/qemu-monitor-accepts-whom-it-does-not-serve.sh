#!/usr/bin/env bash
# Packages:  Debian forky: qemu-system-x86 1:11.1.2+ds-3
# Guess:     a QMP socket whose one client is there already refuses the next one, or serves both.
# Behaviour: it lets the next one connect and says nothing, not even its greeting, for as long as the
#            first one stays, which may be for ever (libvirt's does). What the second one sends is
#            kept, and run once the first has left: a command may take effect hours after it was sent.
#            Only a time limit on the greeting, not on connecting, tells that somebody else is there.
# Output:    second client: connected
#            second client within 2 s: no greeting
#            second client sends stop; first client sees: running
#            first client leaves; second client: greeting
#            second client sees: paused
set -eu
box=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$box"' EXIT
"$(dirname "$0")/fetch" "$box" forky qemu-system-x86=1:11.1.2+ds-3
"$box/run" qemu-system-x86_64 -L "$box/usr/share/qemu" -L "$box/usr/share/seabios" -accel tcg \
    -nodefaults -display none -m 64M -qmp "unix:$box/qmp,server=on,wait=off" &
timeout 60 sh -c "until [ -S '$box/qmp' ]; do sleep 0.2; done"
python3 - "$box/qmp" <<'EOF' | "$(dirname "$0")/as-stated" "$0"
import json, select, socket, sys


class Client:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(sys.argv[1])
        self.lines = self.socket.makefile()

    def ask(self, command):
        self.socket.sendall(json.dumps({"execute": command}).encode() + b"\n")

    def answer(self, key="return"):
        while key not in (answer := json.loads(self.lines.readline())):
            pass
        return answer[key]


first = Client()
first.answer("QMP")
first.ask("qmp_capabilities")
first.answer()
second = Client()
print("second client: connected")
heard = select.select([second.socket], [], [], 2)[0]
print("second client within 2 s:", "a greeting" if heard else "no greeting")
second.ask("qmp_capabilities")
second.ask("stop")
first.ask("query-status")
print("second client sends stop; first client sees:", first.answer()["status"])
first.lines.close()
first.socket.close()
print("first client leaves; second client:", "greeting" if second.answer("QMP") else "none")
second.answer(), second.answer()
second.ask("query-status")
print("second client sees:", second.answer()["status"])
second.ask("quit")
EOF
