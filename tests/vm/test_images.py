"""The cache of guest images: what is damaged or half-made is never used, and failures say why."""

import json
from pathlib import Path

import pytest

from tests.vm import cache, images, initramfs

pytestmark = pytest.mark.vm


def _module(path: Path, depends: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF" + b"\0license=GPL\0depends=" + depends.encode() + b"\0")


def _made(root: Path) -> Path:
    (root / "forky").mkdir(parents=True)
    (root / "forky/vmlinuz").write_bytes(b"kernel")
    (root / "forky/link").symlink_to("vmlinuz")
    manifest = {"files": cache.hash_files(root)}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_images_as_they_were_made_have_no_fault(tmp_path: Path) -> None:
    assert cache.find_fault(_made(tmp_path / "images")) is None


def test_changed_image_is_named(tmp_path: Path) -> None:
    root = _made(tmp_path / "images")

    (root / "forky/vmlinuz").write_bytes(b"kernal")

    assert cache.find_fault(root) == "forky/vmlinuz is not what was made"


def test_redirected_link_is_named(tmp_path: Path) -> None:
    root = _made(tmp_path / "images")

    (root / "forky/link").unlink()
    (root / "forky/link").symlink_to("/etc/passwd")

    assert cache.find_fault(root) == "forky/link is not what was made"


def test_missing_and_added_images_are_named(tmp_path: Path) -> None:
    root = _made(tmp_path / "images")
    (root / "forky/vmlinuz").rename(root / "forky/added")

    assert cache.find_fault(root) == "forky/added is not what was made"
    (root / "forky/added").unlink()
    assert cache.find_fault(root) == "forky/vmlinuz is not what was made"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"packages": []}'])
def test_manifest_that_says_nothing_is_a_fault(tmp_path: Path, text: str) -> None:
    root = _made(tmp_path / "images")

    (root / "manifest.json").write_text(text)

    fault = cache.find_fault(root)
    assert fault is not None
    assert fault.startswith("no manifest that can be read")


def test_machine_without_apt_is_told_so_and_keeps_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALLOOND_VM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(cache.ImagesError, match=r"the program apt-get is missing$"):
        images.ready_images()

    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_cache_that_cannot_be_made_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BALLOOND_VM_CACHE", str(tmp_path / "file/cache"))

    with pytest.raises(cache.ImagesError, match="the cache for guest images cannot be made"):
        images.ready_images()


def test_modules_come_after_all_that_they_depend_on(tmp_path: Path) -> None:
    _module(tmp_path / "kernel/virtio-pci.ko", "virtio,virtio_ring")
    _module(tmp_path / "kernel/virtio_ring.ko", "virtio")
    _module(tmp_path / "kernel/virtio.ko", "")
    _module(tmp_path / "kernel/unwanted.ko", "")

    order = initramfs.module_order(tmp_path, ["virtio_pci", "built_in"])

    assert [path.name for path in order] == ["virtio.ko", "virtio_ring.ko", "virtio-pci.ko"]
