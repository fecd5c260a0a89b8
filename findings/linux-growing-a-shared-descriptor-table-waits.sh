#!/usr/bin/env bash
# Packages:  the kernel that runs; seen on Linux 6.18.44
# Guess:     a descriptor with a higher number than any before costs what every other one does.
# Behaviour: the table of descriptors grows by doubling, and who shares it (a thread, or a child of
#            CLONE_FILES) makes that wait until every processor has left the old one
#            (synchronize_rcu() in fs/file.c, expand_fdtable()): 8 to 24 ms each, in the middle of an
#            accept(2) or of a recvmsg(2) that brings descriptors; alone it takes 10 to 30 us. A
#            server that is proud of its latency grows its table before it starts a thread.
# Output:    alone: 0 of 5 growths took longer than 1 ms
#            with a second thread: 5 of 5 growths took longer than 1 ms
#            with a second thread, in a table that has grown: 0 of 5 took longer than 1 ms
set -eu
[ "$(ulimit -Hn)" -gt 8192 ] || { echo "this needs 8,193 descriptors (ulimit -Hn)" >&2; exit 2; }
python3 - <<'PYTHON' | "$(dirname "$0")/as-stated" "$0"
import fcntl
import os
import resource
import threading
import time

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def slow():
    count = 0
    for number in (512, 1024, 2048, 4096, 8192):
        began = time.perf_counter()
        fd = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, number)
        count += time.perf_counter() - began > 0.001
        os.close(fd)
    return count


def in_a_child(look):
    # A child of fork(2) has a table of its own, as small as what is open.
    if os.fork() == 0:
        look()
        os._exit(0)
    os.wait()


def with_a_thread():
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    print(f"with a second thread: {slow()} of 5 growths took longer than 1 ms", flush=True)
    again = slow()
    print(f"with a second thread, in a table that has grown: {again} of 5 took longer than 1 ms", flush=True)
    end.set()
    thread.join()


in_a_child(lambda: print(f"alone: {slow()} of 5 growths took longer than 1 ms", flush=True))
in_a_child(with_a_thread)
PYTHON
