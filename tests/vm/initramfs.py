"""Packs an initramfs: busybox, an init script and kernel modules in loading order.

The archive is written here, not by cpio, so that it needs no tool, no root (for the console's
device node) and comes out the same byte for byte every time.
"""

import gzip
import lzma
import re
import stat
from pathlib import Path

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")

_CONSOLE = (5, 1)
"""/dev/console's numbers (Linux, admin-guide/devices.txt): the kernel opens it before init."""


def module_order(modules_dir: Path, wanted: list[str]) -> list[Path]:
    """Finds modules with their dependencies, in the order in which insmod can load them.

    Args:
        modules_dir: the kernel's `lib/modules/VERSION`.
        wanted: names with underscores. One without a file is taken to be built in: what the
            guest lacks then shows when it is used.
    """
    files = {
        path.name.split(".ko")[0].replace("-", "_"): path
        for path in sorted(modules_dir.rglob("*.ko*"))
    }
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in order or name not in files:
            return
        depends = _DEPENDS.search(b"\0" + _module_bytes(files[name]))
        for needed in depends[1].decode().split(",") if depends else []:
            add(needed.replace("-", "_"))
        order[name] = files[name]

    for name in wanted:
        add(name)
    return list(order.values())


def pack(busybox: Path, init: str, modules: list[Path]) -> bytes:
    """Packs the initramfs.

    Args:
        busybox: a static busybox; init makes the links to its applets.
        init: the text of `/init`, which finds the modules as `/modules/NN-name.ko`.
        modules: in loading order.
    """
    archive = _Newc()
    for directory in ("bin", "dev", "modules", "proc", "sys", "tmp", "mnt"):
        archive.add(directory, mode=stat.S_IFDIR | 0o755)
    archive.add("dev/console", mode=stat.S_IFCHR | 0o600, device=_CONSOLE)
    archive.add("bin/busybox", busybox.read_bytes(), mode=stat.S_IFREG | 0o755)
    archive.add("init", init.encode(), mode=stat.S_IFREG | 0o755)
    for number, path in enumerate(modules):
        name = f"modules/{number:02}-{path.name.split('.ko')[0]}.ko"
        archive.add(name, _module_bytes(path), mode=stat.S_IFREG | 0o644)
    return gzip.compress(archive.finish(), compresslevel=1, mtime=0)


def _module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


class _Newc:
    """A cpio archive in the form "newc" (Linux, driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def add(
        self, name: str, content: bytes = b"", *, mode: int, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        name_bytes = name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2), namesize, check
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name_bytes), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (name_bytes, content):
            self._data += part
            self._data += bytes(-len(self._data) % 4)

    def finish(self) -> bytes:
        self.add("TRAILER!!!", mode=0)
        return bytes(self._data)
