#!/usr/bin/env bash
# Packages:  the kernel that runs, its tmpfs with huge=always; seen on Linux 6.18.44
# Guess:     MADV_REMOVE that returns 0 has freed the range, but for a page that somebody has pinned.
# Behaviour: one pinned 4 KiB page keeps all 2 MiB: to free a part of a huge page the kernel has to
#            split it, which a reference (of vmsplice, io_uring, VFIO) prevents; then the part is only
#            zeroed, and no error is returned. So a balloon of small pages takes the whole huge page
#            and frees none of it, and the end of the pin changes nothing: only a new call does.
# Output:    not pinned: 512 pages of 4 KiB removed one by one: 2048 KiB freed
#            one page pinned: 512 pages of 4 KiB removed one by one: 0 KiB freed
#            when it is pinned no more: 0 KiB freed
#            and one page is removed again: 4 KiB freed
#            and the whole in one call: 2048 KiB freed
set -eu
box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
cat >"$box/play.py" <<'EOF'
import ctypes, mmap, os, sys

KIB, PAGE, HUGE = 1024, 4096, 2 << 20
libc = ctypes.CDLL(None, use_errno=True)

class Range(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def filled(name):
    file = os.open(f"{sys.argv[1]}/{name}", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, HUGE)
    memory = mmap.mmap(file, HUGE)
    memory[:] = b"x" * HUGE
    return file, memory

def remove_one_by_one(memory):
    for offset in range(0, HUGE, PAGE):
        memory.madvise(mmap.MADV_REMOVE, offset, PAGE)

def freed(file):
    return f"{HUGE // KIB - os.fstat(file).st_blocks * 512 // KIB} KiB freed"

file, memory = filled("free")
remove_one_by_one(memory)
print("not pinned: 512 pages of 4 KiB removed one by one:", freed(file))
file, memory = filled("pinned")
reader, writer = os.pipe()
page = Range(ctypes.addressof(ctypes.c_char.from_buffer(memory)), PAGE)
if libc.vmsplice(writer, ctypes.byref(page), ctypes.c_ulong(1), 0) != PAGE:
    sys.exit("cannot be tried here: vmsplice")
remove_one_by_one(memory)
print("one page pinned: 512 pages of 4 KiB removed one by one:", freed(file))
os.close(reader)
os.close(writer)
print("when it is pinned no more:", freed(file))
memory.madvise(mmap.MADV_REMOVE, PAGE, PAGE)
print("and one page is removed again:", freed(file))
memory.madvise(mmap.MADV_REMOVE, 0, HUGE)
print("and the whole in one call:", freed(file))
EOF
mkdir "$box/ram"
# Without a user namespace, or huge pages of tmpfs, it cannot be tried here: exit status 2.
unshare -rm sh -c "mount -t tmpfs -o huge=always none '$box/ram' &&
    exec python3 '$box/play.py' '$box/ram'" | "$(dirname "$0")/as-stated" "$0"
