#!/usr/bin/env bash
# Packages:  the kernel that runs; seen on Linux 6.18.44
# Guess:     a trigger is text like any other in /proc: a newline at its end or none is all the same.
# Behaviour: the kernel puts its terminating NUL in the place of the last byte. From a shell that is
#            the newline. A program that writes the bare text loses a digit: its window is a tenth of
#            what it asked for, mostly refused as too short, which looks as if triggers were not to be
#            had here; but a window ten times too long is taken.
# Output:    some 150000 2000000, newline: taken
#            some 150000 2000000, NUL: taken
#            some 150000 2000000, nothing: EINVAL
#            some 150000 20000000, NUL: EINVAL
#            some 150000 20000000, nothing: taken
set -eu
python3 - <<'EOF' | "$(dirname "$0")/as-stated" "$0"
import errno, os, sys


def ask(trigger, end):
    try:
        fd = os.open("/proc/pressure/memory", os.O_RDWR | os.O_NONBLOCK)
    except OSError as err:
        print(f"cannot be tried here: {err}", file=sys.stderr)
        sys.exit(2)
    try:
        os.write(fd, trigger.encode() + end)
        answer = "taken"
    except OSError as err:
        answer = errno.errorcode[err.errno]
    os.close(fd)
    name = {b"\n": "newline", b"\0": "NUL", b"": "nothing"}[end]
    print(f"{trigger}, {name}: {answer}")


ask("some 150000 2000000", b"\n")
ask("some 150000 2000000", b"\0")
ask("some 150000 2000000", b"")
ask("some 150000 20000000", b"\0")
ask("some 150000 20000000", b"")
EOF
