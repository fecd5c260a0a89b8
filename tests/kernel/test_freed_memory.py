"""What the start of a process has freed goes back to the kernel."""

import subprocess
import sys

PROGRAM = """\
import re
from pathlib import Path
from balloon_daemon.linux.libc import return_freed_memory

def anonymous_kib():
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"^Anonymous: +(\\d+)", text, re.M)[1])

before = anonymous_kib()
blocks = [bytes(2000) for _ in range(10000)]  # Longer than 512 bytes: malloc's, not Python's own.
last = bytes(2000)  # Behind all of them: free(3) alone cannot lower the end of the heap.
taken = anonymous_kib()
del blocks
kept = anonymous_kib()
return_freed_memory()
print(taken - before, taken - kept, kept - anonymous_kib())
"""

KIB = 20000000 // 1024


def test_memory_freed_amid_the_heap_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    took, freed_alone, given_back = map(int, done.stdout.split())
    assert took > KIB * 0.9
    assert freed_alone < KIB * 0.1
    assert given_back > KIB * 0.9
