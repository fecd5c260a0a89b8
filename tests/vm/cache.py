"""A cache of things that take long to make: made once, kept outside the tree, never half-made.

Each thing is a directory named by the SHA-256 of the files that decide what it is, with a manifest
of all that was made. Each use checks every file against the manifest.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm import apt


class ImagesError(Exception):
    """Images cannot be made here; one line says what is missing."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is made, and how.

    Attributes:
        what: in words, for messages.
        files: whose content decides the outcome.
        make: makes it; takes a work directory and the directory to fill, and returns the packages
            that it was made from.
    """

    what: str
    files: list[Path]
    make: Callable[[Path, Path], dict[str, list[str]]]

    def digest(self) -> str:
        """SHA-256 of all that decides the outcome."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(path.read_bytes())
        return digest.hexdigest()


def ready(recipe: Recipe) -> Path:
    """Gives what the recipe makes, made first if it is not there or not as its manifest says.

    Raises:
        ImagesError: it cannot be made on this machine.
    """
    cache = _cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ImagesError(f"the cache for {recipe.what} cannot be made: {err}") from err
    root = cache / recipe.digest()
    with _only_maker(cache):
        if (fault := find_fault(root)) is not None:
            if root.exists():
                print(f"{recipe.what}: {fault}; making them anew", file=sys.stderr)
                shutil.rmtree(root)
            _make(recipe, cache, root)
    return root


def find_fault(root: Path) -> str | None:
    """Compares a directory of images with its manifest, whole.

    Returns:
        What is wrong, in words; None if all is as it was made.
    """
    try:
        wanted = dict(json.loads((root / "manifest.json").read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        return f"no manifest that can be read ({err})"
    found = hash_files(root)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            return f"{name} is not what was made"
    return None


def hash_files(root: Path) -> dict[str, str]:
    """Gives every file below a directory with its SHA-256, every link with its target."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file() and name != "manifest.json":
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _cache_dir() -> Path:
    if own := os.environ.get("BALLOOND_VM_CACHE"):
        return Path(own).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "balloond-vm"


@contextmanager
def _only_maker(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(recipe: Recipe, cache: Path, root: Path) -> None:
    # Made beside its final place and renamed: a half-made directory never has the right name.
    with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as temporary:
        work = Path(temporary)
        made = work / "made"
        made.mkdir()
        try:
            packages = recipe.make(work, made)
        except (apt.AptError, OSError) as err:
            raise ImagesError(f"{recipe.what} cannot be made: {err}") from err
        manifest = {"packages": packages, "files": hash_files(made)}
        (made / "manifest.json").write_text(json.dumps(manifest, indent=1))
        made.rename(root)
