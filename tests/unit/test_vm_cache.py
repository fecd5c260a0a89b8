"""The cache of guest images: what no checkout uses any more does not stay for ever."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.faults import fault
from tests.harness.needs import needs_root
from tests.vm.cache import UNKNOWN_FOR_S, Recipe

ROOT = Path(__file__).parents[2]
DAY_S = 24 * 3600

_USER = """\
import sys
from pathlib import Path
from tests.vm.cache import Recipe, ready

def make(work, made):
    (made / "image").write_text("made")
    return {}

print(ready(Recipe(sys.argv[1], [Path(sys.argv[2])], make)).name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@contextmanager
def using(cache: Path, version: int, what: str = "images") -> Iterator[str]:
    """A process that uses a version of something, for as long as the block runs.

    Gives the name of its directory. Each process stands for a checkout.
    """
    recipe = cache.parent / f"recipe-{version}"
    recipe.write_text(str(version))
    process = subprocess.Popen(
        [sys.executable, "-c", _USER, what, str(recipe)],
        cwd=ROOT,
        env=os.environ | {"BALLOOND_VM_CACHE": str(cache)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate()
        assert process.returncode == 0


def refusal(cache: Path) -> str:
    """What is said by a process that may not use the cache."""
    recipe = cache.parent / "recipe-0"
    recipe.write_text("0")
    done = subprocess.run(
        [sys.executable, "-c", _USER, "images", str(recipe)],
        cwd=ROOT,
        env=os.environ | {"BALLOOND_VM_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    return done.stderr


def use(cache: Path, version: int, what: str = "images") -> str:
    """Uses a version of something for a moment."""
    with using(cache, version, what) as name:
        return name


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} - {"lock"}


def put(cache: Path, version: int, age_s: float, what: str | None) -> str:
    """A version that was made and last used some time ago, by a process that has ended."""
    cache.mkdir(exist_ok=True)
    recipe = cache.parent / f"recipe-{version}"
    recipe.write_text(str(version))
    root = cache / Recipe("", [recipe], lambda work, made: {}).digest()
    root.mkdir()
    manifest: dict[str, object] = {"packages": {}, "files": {}}
    if what is not None:
        manifest["what"] = what
    (root / "manifest.json").write_text(json.dumps(manifest))
    os.utime(root, (time.time() - age_s, time.time() - age_s))
    return root.name


def test_present_version_and_the_one_before_are_kept(cache: Path) -> None:
    names = [use(cache, version) for version in (1, 2, 3)]

    assert kept(cache) == set(names[1:])


def test_version_that_is_used_again_counts_as_new(cache: Path) -> None:
    old, recent = put(cache, 1, 3 * DAY_S, "images"), put(cache, 2, 2 * DAY_S, "images")

    assert use(cache, 1) == old
    new = use(cache, 3)

    assert kept(cache) == {old, new}
    assert recent not in kept(cache)


def test_version_that_a_running_process_uses_is_kept(cache: Path) -> None:
    with using(cache, 1) as used:
        others = [use(cache, version) for version in (2, 3)]
        assert kept(cache) == {used, *others}
    last = use(cache, 4)

    assert kept(cache) == {others[1], last}


def test_version_of_something_else_is_kept(cache: Path) -> None:
    others = {put(cache, version, version * 100 * DAY_S, "a machine") for version in (1, 2, 3)}

    used = use(cache, 4)

    assert kept(cache) == others | {used}


@pytest.mark.parametrize(
    ("age_s", "stays"), [(UNKNOWN_FOR_S - DAY_S, True), (UNKNOWN_FOR_S + DAY_S, False)]
)
def test_version_that_does_not_say_what_it_is_goes_by_its_age(
    age_s: float, stays: bool, cache: Path
) -> None:
    unknown = put(cache, 1, age_s, None)

    use(cache, 2)

    assert (unknown in kept(cache)) == stays


def test_what_a_killed_maker_left_is_removed(cache: Path) -> None:
    (cache / "making-abc/made").mkdir(parents=True)

    used = use(cache, 1)

    assert kept(cache) == {used}


def test_damaged_version_is_made_anew_while_it_is_known(cache: Path) -> None:
    name = use(cache, 1)
    (cache / name / "image").write_text("damaged")

    assert use(cache, 1) == name

    assert (cache / name / "image").read_text() == "made"


@fault("`make test-vm` with a cache that others may write")
def test_cache_that_others_may_write_is_refused(cache: Path) -> None:
    use(cache, 1)
    cache.chmod(0o757)

    assert f"ImagesError: {cache} may be written by others" in refusal(cache)


@fault("`make test-vm` with a cache that others may write")
def test_cache_below_a_directory_that_others_may_write_is_refused_unless_it_is_sticky(
    cache: Path,
) -> None:
    cache.parent.chmod(0o777)
    assert f"ImagesError: {cache.parent} may be written by others" in refusal(cache)

    cache.parent.chmod(0o1777)
    used = use(cache, 1)
    assert kept(cache) == {used}


@fault("`make test-vm` with a cache that others may write")
@needs_root
@pytest.mark.parametrize("part", ["", "version"])
def test_cache_of_another_user_is_refused_by_root(part: str, cache: Path) -> None:
    version = cache / use(cache, 0)
    anothers = version if part else cache
    os.chown(anothers, 65534, 65534)

    assert f"ImagesError: {anothers} may be written by others" in refusal(cache)
