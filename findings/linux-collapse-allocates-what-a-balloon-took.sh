#!/usr/bin/env bash
# Packages:  the kernel that runs, its tmpfs with huge=advise; seen on Linux 6.18.44
# Guess:     MADV_COLLAPSE puts the pages that a range has into huge pages, and leaves holes alone.
# Behaviour: it fills the holes: a range of which one page of 4 KiB is left has all 2 MiB again. So
#            giving a VMM back the huge pages that a balloon took apart, while the balloon still
#            holds pages, allocates what the guest has given; the guest and its VMM hear nothing.
#            Only where nothing at all is left does the call change nothing.
# Output:    touched: 16384 KiB
#            511 of each 512 pages removed: 32 KiB
#            collapsed 8 of 8: 16384 KiB
#            all removed: 0 KiB
#            collapsed 0 of 8: 0 KiB
set -eu
box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
cat >"$box/play.py" <<'EOP'
import ctypes, mmap, os, sys

PAGE, HUGE, COUNT, MADV_COLLAPSE = 4096, 2 << 20, 8, 25
libc = ctypes.CDLL(None, use_errno=True)
file = os.open(f"{sys.argv[1]}/memory", os.O_RDWR | os.O_CREAT)
os.ftruncate(file, COUNT * HUGE)
memory = mmap.mmap(file, COUNT * HUGE)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
if start % HUGE:
    sys.exit("cannot be tried here: the mapping is not aligned to 2 MiB")

def say(what):
    print(f"{what}: {os.fstat(file).st_blocks // 2} KiB")

def collapse():
    ranges = [ctypes.c_void_p(start + n * HUGE) for n in range(COUNT)]
    done = [libc.madvise(at, ctypes.c_size_t(HUGE), MADV_COLLAPSE) == 0 for at in ranges]
    say(f"collapsed {sum(done)} of {COUNT}")

memory.madvise(mmap.MADV_HUGEPAGE)
for offset in range(0, COUNT * HUGE, PAGE):
    memory[offset] = 1
say("touched")
for offset in range(0, COUNT * HUGE, PAGE):
    if offset % HUGE:
        memory.madvise(mmap.MADV_REMOVE, offset, PAGE)
say("511 of each 512 pages removed")
collapse()
memory.madvise(mmap.MADV_REMOVE)
say("all removed")
collapse()
EOP
mkdir "$box/ram"
# Without a user namespace, or huge pages of tmpfs, it cannot be tried here: exit status 2.
unshare -rm sh -c "mount -t tmpfs -o huge=advise none '$box/ram' &&
    exec python3 '$box/play.py' '$box/ram'" | "$(dirname "$0")/as-stated" "$0"
