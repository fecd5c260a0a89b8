#!/usr/bin/env python3
"""Makes the tables of system calls and constants, ``tables/ARCH.txt``, from C headers.

x86-64's goes to balloon_daemon/seccomp/, the others to balloon_daemon/ctl/seccomp/.

A policy file must compile to the same filter on every machine, and for another architecture
than this one: so names are looked up in tables that are part of the source tree, never on the
machine that compiles. To make them anew, for example from a newer kernel's headers::

    apt-get install gcc gcc-{aarch64,riscv64}-linux-gnu libc6-dev-{arm64,riscv64}-cross
    policies/make_constants.py --linux DIR   # DIR/usr/include of an unpacked linux-libc-dev

Every header is compiled by itself, because libc's and the kernel's contradict each other when
they meet. What a name is worth is asked of the compiler, which lays a table of them out
in assembly; a name that is no integer constant makes an error on its own line and is dropped.
Where two headers disagree the first one in HEADERS counts, so the kernel's come first.
"""

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "balloon_daemon"

ARCHES = {
    # our name: (AUDIT_ARCH_*, compiler, the directory of its own headers, its system call list)
    "x86_64": (0xC000003E, "gcc", "x86_64-linux-gnu", "asm/unistd_64.h"),
    "aarch64": (0xC00000B7, "aarch64-linux-gnu-gcc", "aarch64-linux-gnu", "asm/unistd.h"),
    "riscv64": (0xC00000F3, "riscv64-linux-gnu-gcc", "riscv64-linux-gnu", "asm/unistd.h"),
}

HEADER_LIST = """
linux/errno.h linux/fcntl.h linux/mman.h linux/prctl.h linux/sched.h linux/sched/types.h
linux/futex.h linux/fs.h linux/stat.h linux/mount.h linux/openat2.h linux/close_range.h
linux/eventpoll.h linux/memfd.h linux/membarrier.h linux/kcmp.h linux/rseq.h linux/seccomp.h
linux/landlock.h linux/pidfd.h linux/ptrace.h linux/random.h linux/reboot.h linux/resource.h
linux/capability.h linux/securebits.h linux/keyctl.h linux/io_uring.h linux/aio_abi.h
linux/bpf.h linux/perf_event.h linux/userfaultfd.h linux/fanotify.h linux/inotify.h
linux/mempolicy.h linux/quota.h linux/time.h linux/timex.h linux/wait.h linux/xattr.h
linux/ipc.h linux/msg.h linux/sem.h linux/shm.h linux/mqueue.h linux/personality.h
linux/ioprio.h linux/utsname.h linux/uio.h linux/nsfs.h linux/dm-ioctl.h linux/loop.h
linux/blkzoned.h linux/blkpg.h linux/fscrypt.h linux/fsverity.h linux/fiemap.h linux/falloc.h
linux/msdos_fs.h linux/btrfs.h linux/fuse.h linux/dma-buf.h linux/dma-heap.h linux/udmabuf.h
linux/sync_file.h linux/fd.h linux/hdreg.h linux/cdrom.h linux/nvme_ioctl.h linux/mmc/ioctl.h
linux/major.h linux/bsg.h linux/serial.h linux/termios.h linux/tty.h linux/tty_flags.h
linux/kd.h linux/vt.h linux/fb.h linux/input.h linux/uinput.h linux/hidraw.h linux/hiddev.h
linux/uhid.h linux/joystick.h linux/i2c.h linux/i2c-dev.h linux/spi/spidev.h linux/gpio.h
linux/rtc.h linux/watchdog.h linux/ppdev.h linux/usbdevice_fs.h linux/usb/functionfs.h
linux/usb/g_printer.h linux/videodev2.h linux/media.h linux/v4l2-subdev.h linux/uvcvideo.h
linux/cec.h linux/lirc.h linux/tee.h linux/vtpm_proxy.h linux/kvm.h linux/vhost.h
linux/vfio.h linux/iommufd.h linux/vm_sockets.h linux/virtio_ring.h linux/userio.h
linux/socket.h linux/net.h linux/in.h linux/in6.h linux/tcp.h linux/udp.h linux/un.h
linux/if.h linux/if_tun.h linux/if_ether.h linux/if_packet.h linux/if_arp.h linux/if_alg.h
linux/if_bridge.h linux/if_vlan.h linux/sockios.h linux/wireless.h linux/ethtool.h
linux/net_tstamp.h linux/errqueue.h linux/netlink.h linux/rtnetlink.h linux/ppp-ioctl.h
linux/can.h linux/can/raw.h linux/mroute.h linux/mroute6.h linux/netfilter_ipv4.h
linux/netfilter_ipv6.h linux/netfilter_ipv4/ip_tables.h linux/netfilter_ipv6/ip6_tables.h
linux/audit.h linux/auxvec.h linux/elf.h linux/limits.h linux/magic.h linux/posix_types.h
linux/stddef.h linux/types.h linux/const.h linux/ioctl.h linux/kernel.h linux/cn_proc.h
linux/dlm_device.h linux/psp-sev.h linux/sev-guest.h linux/tdx-guest.h linux/android/binder.h
linux/mei.h linux/nitro_enclaves.h linux/ntsync.h linux/lsm.h linux/mshv.h linux/pps.h
linux/ptp_clock.h linux/raid/md_u.h linux/cciss_ioctl.h linux/phantom.h
drm/drm.h drm/drm_mode.h drm/drm_fourcc.h drm/i915_drm.h drm/amdgpu_drm.h drm/virtgpu_drm.h
drm/msm_drm.h drm/panfrost_drm.h drm/xe_drm.h drm/panthor_drm.h linux/kfd_ioctl.h
sound/asound.h sound/compress_offload.h scsi/scsi.h scsi/sg.h scsi/scsi_ioctl.h
asm/prctl.h asm/unistd.h asm/ioctls.h asm/mman.h asm/signal.h asm/termbits.h asm/socket.h
asm/hwcap.h asm/hwcap2.h asm/ptrace-abi.h asm/processor-flags.h asm/statfs.h
errno.h fcntl.h signal.h stddef.h stdio.h stdlib.h limits.h unistd.h poll.h sched.h time.h
termios.h semaphore.h mqueue.h dirent.h netdb.h net/if.h net/if_arp.h net/route.h
netinet/in.h netinet/ip.h netinet/tcp.h netinet/udp.h netpacket/packet.h sys/epoll.h
sys/eventfd.h sys/fanotify.h sys/file.h sys/fsuid.h sys/inotify.h sys/ioctl.h sys/ipc.h
sys/mman.h sys/mount.h sys/msg.h sys/personality.h sys/poll.h sys/prctl.h sys/ptrace.h
sys/quota.h sys/random.h sys/reboot.h sys/resource.h sys/sem.h sys/shm.h sys/signalfd.h
sys/socket.h sys/stat.h sys/statvfs.h sys/swap.h sys/syscall.h sys/syslog.h sys/time.h
sys/timerfd.h sys/timex.h sys/types.h sys/uio.h sys/un.h sys/vfs.h sys/wait.h sys/xattr.h
"""
HEADERS = HEADER_LIST.split()

# What some headers forget to include for the structures that their ioctl numbers measure.
PRELUDE = """\
#define _GNU_SOURCE
#include <{first}>
#include <stddef.h>
#include <stdint.h>
#include <linux/types.h>
"""
KERNEL_PRELUDE = "".join(
    f"#include <{header}>\n"
    for header in ("stddef.h", "linux/types.h", "linux/const.h", "linux/ioctl.h")
)
NEEDS = {
    "linux/fs.h": "linux/blktrace_api.h linux/fiemap.h",
    "linux/if_packet.h": "linux/filter.h",
    "linux/if_tun.h": "linux/filter.h",
    "linux/ppp-ioctl.h": "linux/ppp_defs.h linux/filter.h",
    "linux/raid/md_u.h": "linux/major.h",
    "linux/termios.h": "linux/serial.h",
    "asm/ioctls.h": "linux/termios.h linux/serial.h",
    "sys/ioctl.h": "linux/serial.h",
    "scsi/sg.h": "stdio.h",
    "linux/sockios.h": "asm/posix_types.h asm/ioctls.h",
    "linux/errqueue.h": "time.h",
    "linux/shm.h": "limits.h",
    "linux/un.h": "linux/sockios.h",
    "linux/uvcvideo.h": "linux/v4l2-controls.h",
}

# Names that only say which compiler, libc or include guard is at work, or change with it.
NOISE = re.compile(
    r"_.*|.*_H_?|.*_H__|NULL|EOF|SIGRTMIN|SIGRTMAX|SIG_(DFL|IGN|ERR|HOLD)|u?int.*|WCHAR_.*"
    r"|U?INT(8|16|32|64|PTR|MAX|_LEAST|_FAST).*|PTRDIFF_.*|SIZE_MAX|SSIZE_MAX|EXIT_.*"
    r"|linux|unix|errno|CUnix|__.*|LLONG_.*|LONG_BIT|.*_WIDTH|MB_.*|RAND_MAX|L_.*|TMP_MAX"
    r"|(U?(CHAR|SHRT|LLONG)|SCHAR|SIG_ATOMIC|WINT)_(MIN|MAX)|BUFSIZ|FOPEN_MAX|FILENAME_MAX"
    r"|CLOCKS_PER_SEC|SYS_[a-z].*|_POSIX.*|_XOPEN.*|_SC_.*|_PC_.*"
)
# Numbers that travel inside messages and structures and never are an argument of a call.
NOISE_FAMILY = re.compile(
    r"(V4L2|KEY|BTN|ABS|REL|IFLA|ETHTOOL|IW|MEDIA_(BUS|ENT|PAD|LNK)|WIN|NT|X86|RTM|RTAX|RTA"
    r"|ARPHRD|SHT|STT|STB|R_(X86_64|AARCH64|386|ARM)|BPF_FUNC|DRM_(FORMAT|MODE)|KVM_REG)_.*"
)
# Errors are wanted on the line that uses a macro, not where it was defined.
QUIET = ["-O1", "-w", "-fmax-errors=0", "-ftrack-macro-expansion=0"]
NAME = re.compile(r"[A-Z][A-Za-z0-9_]*")
ENUM = re.compile(r"\benum\b[^{};()]*\{([^{}]*)\}")


def run(command: list[str], source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=source, capture_output=True, text=True)


def macros(text: str) -> list[str]:
    return re.findall(r"^#define (\w+) \S", text, re.M)


def listing(assembly: str) -> list[int]:
    """The 64-bit values of the only table in a listing; runs of zeros are written as one."""
    values: list[int] = []
    for directive, number in re.findall(
        r"^\s+\.(quad|xword|dword|zero)\s+(-?\d+)", assembly, re.M
    ):
        values += [0] * (int(number) // 8) if directive == "zero" else [int(number) % 2**64]
    return values


def evaluate(compiler: list[str], includes: str, names: list[str]) -> dict[str, int]:
    """What each name is worth as an unsigned long; names of no constant are left out."""
    while names:
        head = includes + "const unsigned long long table[] = {\n"
        first = head.count("\n") + 1
        # The | turns pointers and fractions into errors, and widens a negative int by its sign.
        body = "".join(f"0ull | ({name}),\n" for name in names)
        done = run([*compiler, *QUIET, "-S", "-o", "-", "-xc", "-"], head + body + "};\n")
        if done.returncode == 0:
            return dict(zip(names, listing(done.stdout), strict=True))
        bad = {int(n) - first for n in re.findall(r"^<stdin>:(\d+):\d+: (?:fatal )?error",
                                                  done.stderr, re.M)}  # fmt: skip
        bad = {n for n in bad if 0 <= n < len(names)}
        if not bad:
            print(f"  gave up: {done.stderr.splitlines()[:3]}", file=sys.stderr)
            return {}
        names = [name for n, name in enumerate(names) if n not in bad]
    return {}


def constants(compiler: list[str]) -> dict[str, int]:
    built_in = set(macros(run([*compiler, "-dM", "-E", "-xc", "-"], "").stdout))
    table: dict[str, int] = {}
    for header in HEADERS:
        includes = "".join(f"#include <{need}>\n" for need in NEEDS.get(header, "").split())
        source = PRELUDE.format(first=header) + includes
        if header.startswith(("linux/", "asm/", "drm/", "sound/")):
            # The kernel's headers alone, where they are complete in themselves.
            source = f"{KERNEL_PRELUDE}{includes}#include <{header}>\n"
        defined = run([*compiler, "-dM", "-E", "-xc", "-"], source)
        if defined.returncode:
            continue  # this architecture, or these headers, have none of that name
        plain = run([*compiler, "-P", "-E", "-xc", "-"], source).stdout
        names = {*macros(defined.stdout)} - built_in
        for block in ENUM.findall(plain):
            names |= set(re.findall(r"(?:^|,)\s*(\w+)", block))
        wanted = sorted(
            n
            for n in names
            if NAME.fullmatch(n) and not NOISE.fullmatch(n) and not NOISE_FAMILY.fullmatch(n)
        )
        for name, value in evaluate(compiler, source, wanted).items():
            if table.setdefault(name, value) != value:
                print(f"  {header}: {name} {value:#x}, kept {table[name]:#x}", file=sys.stderr)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the tables of calls and constants.")
    parser.add_argument("--linux", type=Path, help="an unpacked linux-libc-dev")
    options = parser.parse_args()
    for arch, (audit, gcc, triplet, unistd) in ARCHES.items():
        compiler = [gcc]
        if options.linux is not None:
            root = options.linux / "usr" / "include"
            compiler += [f"-I{root / triplet}", f"-I{root}"]
        numbers = run([*compiler, "-dM", "-E", "-xc", "-"], f"#include <{unistd}>\n").stdout
        calls = {name.removeprefix("__NR_"): name for name in macros(numbers)
                 if name.startswith("__NR_")}  # fmt: skip
        values = evaluate(compiler, f"#include <{unistd}>\n", list(calls.values()))
        # Markers of ranges, not calls.
        for marker in ("syscalls", "arch_specific_syscall", "syscall_mask"):
            calls.pop(marker, None)
        table = constants(compiler)
        version = run([*compiler, "-dM", "-E", "-xc", "-"], "#include <linux/version.h>").stdout
        release = ".".join(
            re.search(rf"LINUX_VERSION_{part} (\d+)", version)[1]  # type: ignore[index]
            for part in ("MAJOR", "PATCHLEVEL", "SUBLEVEL")
        )
        today = datetime.datetime.now(datetime.UTC).date()
        lines = [
            f"# Made by policies/make_constants.py on {today} from Linux {release} headers.",
            "# Do not edit: what is missing belongs into the script's list of headers.",
            f"arch {arch} {audit:#x}",
            f"calls {len(calls)}",
            *(f"{name} {values[macro]}" for name, macro in
              sorted(calls.items(), key=lambda item: values[item[1]])),
            f"constants {len(table)}",
            *(f"{name} {table[name]}" for name in sorted(table)),
        ]  # fmt: skip
        room = PACKAGE / ("seccomp" if arch == "x86_64" else "ctl/seccomp")
        (room / "tables" / f"{arch}.txt").write_text("\n".join(lines) + "\n")
        print(f"{arch}: {len(calls)} calls, {len(table)} constants")
    return 0


if __name__ == "__main__":
    sys.exit(main())
