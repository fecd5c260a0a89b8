#!/usr/bin/env bash
# Packages:  the kernel that runs, 6.7 or newer; seen on Linux 6.18.44 with 2 CPUs
# Guess:     what a process frees is in MemAvailable a moment later: that is what the figure is for.
# Behaviour: freed pages go to a list of the CPU that freed them, and MemAvailable does not count
#            those lists. Since 6.7 they size themselves: after much allocating and freeing on one CPU
#            up to an eighth of a zone, divided by the CPUs, stays there (high_max in /proc/zoneinfo)
#            until that CPU needs it or the kernel sees it idle. Of some 230 MiB freed here, beside other
#            work, MemAvailable rose by -12 to 16. Whoever frees until it has risen frees too much.
# Output:    freed on one CPU: MemAvailable rose by less than half of it
#            freed on one CPU: the per-CPU lists rose by more than half of it
set -eu
python3 - <<'EOF' | "$(dirname "$0")/as-stated" "$0"
import mmap, os, re, sys


def available_kib():
    with open("/proc/meminfo") as file:
        return int(re.search(r"MemAvailable: +(\d+)", file.read())[1])


def in_lists(name):
    with open("/proc/zoneinfo") as file:
        return [int(pages) * 4 for pages in re.findall(rf"^ +{name}: +(\d+)", file.read(), re.M)]


limits_kib = in_lists("high_max")
if not limits_kib or max(limits_kib) < 32 << 10 or available_kib() < 2 * max(limits_kib):
    print("cannot be tried here: Linux before 6.7, or too little memory", file=sys.stderr)
    sys.exit(2)
kib = max(limits_kib) // 2
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
memory = mmap.mmap(-1, kib << 10)
for page in range(0, len(memory), 4096):
    memory[page] = 1
available, listed = available_kib(), sum(in_lists("count"))
memory.madvise(9)  # MADV_REMOVE
available, listed = available_kib() - available, sum(in_lists("count")) - listed
print(f"{kib} KiB freed: MemAvailable {available:+}, per-CPU lists {listed:+}", file=sys.stderr)
half = "less" if available < kib / 2 else "more"
print(f"freed on one CPU: MemAvailable rose by {half} than half of it")
half = "less" if listed < kib / 2 else "more"
print(f"freed on one CPU: the per-CPU lists rose by {half} than half of it")
EOF
