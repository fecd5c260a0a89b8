#!/usr/bin/env bash
# Packages:  the kernel that runs; seen on Linux 6.18.44
# Guess:     F_SEAL_FUTURE_WRITE leaves mappings that exist as they were: whoever could write through
#            one before still can do with that memory what he likes.
# Behaviour: he can write, but not give memory back. MADV_REMOVE is a hole in the file, which the seal
#            refuses to whomever; MADV_DONTNEED goes well and frees nothing, as the file holds the
#            pages. A virtual machine's memory that is sealed so, once all have mapped it, is not to be
#            had back by any balloon, and only MADV_REMOVE says so.
# Output:    before the seal: write ok, MADV_REMOVE ok: 28 of 32 KiB stay
#            after the seal: write ok, MADV_REMOVE EPERM: 32 of 32 KiB stay
#            after the seal: write ok, MADV_DONTNEED ok: 32 of 32 KiB stay
set -eu
python3 - <<'EOF' | "$(dirname "$0")/as-stated" "$0"
import errno, fcntl, mmap, os

F_ADD_SEALS, F_SEAL_FUTURE_WRITE, MADV_REMOVE = 1033, 0x10, 9
fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
os.ftruncate(fd, 32 << 10)
memory = mmap.mmap(fd, 32 << 10)


def tried(what):
    try:
        what()
    except OSError as err:
        return errno.errorcode[err.errno]
    return "ok"


def give_back(when, how, advice):
    written = tried(lambda: memory.__setitem__(slice(None), b"x" * len(memory)))
    freed = tried(lambda: memory.madvise(advice, 0, 4096))
    stay = os.fstat(fd).st_blocks // 2
    print(f"{when} the seal: write {written}, {how} {freed}: {stay} of 32 KiB stay")


give_back("before", "MADV_REMOVE", MADV_REMOVE)
fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
give_back("after", "MADV_REMOVE", MADV_REMOVE)
give_back("after", "MADV_DONTNEED", mmap.MADV_DONTNEED)
EOF
