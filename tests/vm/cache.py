"""A cache of things that take long to make: made once, kept outside the tree, never half-made.

Each thing is a directory named by the SHA-256 of the files that decide what it is, with a manifest
of all that was made. Each use checks every file against the manifest, and removes what earlier
versions of the same thing have left, but one: checkouts of two versions can take turns.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm import apt

UNKNOWN_FOR_S = 14 * 24 * 3600
"""What does not say what it is, as it is older than the word in its manifest, is removed when it
has not been used for so long."""

_MAKING = "making-"
_in_use: dict[Path, int] = {}
"""What this process uses, each with the descriptor that holds its lock until we end."""


class ImagesError(Exception):
    """Images cannot be made here; one line says what is missing."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is made, and how.

    Attributes:
        what: in words, for messages; the same in each version of one thing.
        files: whose content decides the outcome.
        make: makes it; takes a work directory and the directory to fill, and returns the packages
            that it was made from.
        variant: which of several things the same files make; "" where they make one.
    """

    what: str
    files: list[Path]
    make: Callable[[Path, Path], dict[str, list[str]]]
    variant: str = ""

    def digest(self) -> str:
        """SHA-256 of all that decides the outcome."""
        digest = hashlib.sha256(self.variant.encode())
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
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as err:
        raise ImagesError(f"the cache for {recipe.what} cannot be made: {err}") from err
    _check_owner(cache)
    root = cache / recipe.digest()
    with _only_maker(cache):
        if root.exists():
            _check_owner(root)
        if (fault := find_fault(root)) is not None:
            if root.exists():
                print(f"{recipe.what}: {fault}; making them anew", file=sys.stderr)
                shutil.rmtree(root)
                _let_go(root)
            _make(recipe, cache, root)
        _use(root)
        _remove_old(cache, recipe.what)
    return root


def _use(root: Path) -> None:
    """Notes the time and keeps everybody from removing it for as long as this process lives."""
    with contextlib.suppress(PermissionError):  # Another user's, in a cache that is shared.
        os.utime(root)
    if root not in _in_use:
        _in_use[root] = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(_in_use[root], fcntl.LOCK_SH)


def _let_go(root: Path) -> None:
    """Gives up the lock of a directory that is gone: another will have its name."""
    if root in _in_use:
        os.close(_in_use.pop(root))


def _remove_old(cache: Path, what: str) -> None:
    """Removes all versions of a thing but the two last used; under the lock of `_only_maker`.

    What a process uses stays, and so does what some other recipe has made.
    """
    kinds: dict[str | None, list[Path]] = {}
    for path in cache.iterdir():
        if path.name.startswith(_MAKING):
            _remove(path)  # Its maker was killed: it had the lock that we have now.
        elif path.is_dir():
            kinds.setdefault(_what(path), []).append(path)
    old = sorted(kinds.get(what, []), key=_last_use, reverse=True)[2:]
    before = time.time() - UNKNOWN_FOR_S
    old += [path for path in kinds.get(None, []) if _last_use(path) < before]
    for path in old:
        if not _is_used(path):
            _remove(path)


def _what(root: Path) -> str | None:
    """What a directory says that it holds; None where it does not."""
    try:
        return str(json.loads((root / "manifest.json").read_text())["what"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _last_use(root: Path) -> float:
    return root.stat().st_mtime


def _is_used(root: Path) -> bool:
    lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as err:
        # Half of it may be gone, which its manifest shows to whoever wants it again.
        print(f"{path} is not used any more, but cannot be removed: {err}", file=sys.stderr)


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


def _check_owner(path: Path) -> None:
    """Refuses what others may write: programs are run from there, by root too.

    The directories above count as well, as whoever may write one of them puts another directory
    in our path's place, unless it is sticky, as /tmp is.

    Raises:
        ImagesError: names the directory and the remedy.
    """
    for part in (path, *path.parents):
        found = part.stat()
        others = stat.S_IWOTH
        if found.st_gid not in (0, os.getegid()):
            others |= stat.S_IWGRP
        shared = found.st_mode & others and not (part != path and found.st_mode & stat.S_ISVTX)
        if found.st_uid in (0, os.geteuid()) and not shared:
            continue
        raise ImagesError(
            f"{part} may be written by others, and what lies below it is run; name a directory "
            "that is yours alone (BALLOOND_VM_CACHE=), or make this one so (chmod go-w)"
        )


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
    with tempfile.TemporaryDirectory(dir=cache, prefix=_MAKING) as temporary:
        work = Path(temporary)
        made = work / "made"
        made.mkdir()
        try:
            packages = recipe.make(work, made)
        except (apt.AptError, OSError) as err:
            raise ImagesError(f"{recipe.what} cannot be made: {err}") from err
        manifest = {"what": recipe.what, "packages": packages, "files": hash_files(made)}
        (made / "manifest.json").write_text(json.dumps(manifest, indent=1))
        made.rename(root)
