"""The load that benchmarks let real guests work at, and what it says of their kernels."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.waiting import wait_until
from tests.vm.images import Images
from tests.vm.loaded_guest import LoadedGuest, compile_load

pytestmark = pytest.mark.vm


@pytest.fixture
def loaded(images: Images, suite: str, tmp_path: Path) -> Iterator[LoadedGuest]:
    guest = LoadedGuest(images, compile_load(tmp_path), suite, 512, tmp_path / "logs")
    yield guest
    guest.stop()


def test_loads_work_in_the_background_and_their_memory_is_in_use(loaded: LoadedGuest) -> None:
    def look() -> dict[str, int]:
        found = loaded.look()
        assert found is not None
        return found

    before = look()
    slots = [loaded.start("map", 32, 0, 100), loaded.start("anon", 64, 100)]
    filled = look()
    for slot in slots:
        done = filled[f"work_{slot}"]
        wait_until(lambda: look()[f"work_{slot}"] > done, what="the load goes on")  # noqa: B023

    assert before["work"] == 0
    # More than either load alone has. The guest itself, which has only just booted, frees a few
    # hundred pages meanwhile.
    assert before["nr_free_pages"] - filled["nr_free_pages"] > 80 * 256
    assert filled.keys() >= {"psi_some", "workingset_refault_file", "oom_kill", "probe_us"}


def test_burst_waits_for_its_time_and_then_has_all_its_memory(loaded: LoadedGuest) -> None:
    slot = loaded.start("burst", 100, 200, 1, 600)
    first = loaded.look()
    assert first is not None

    def done() -> dict[str, int] | None:
        found = loaded.look()
        return found if found and found[f"work_{slot}"] == 100 else None

    after = wait_until(done, what="the burst has its memory")
    assert after is not None
    assert first["nr_free_pages"] - after["nr_free_pages"] > 80 * 256  # the guest frees some


def test_guest_whose_set_no_longer_fits_reads_it_again(loaded: LoadedGuest) -> None:
    loaded.start("map", 330, 0, 300)
    loaded.slow_disk()
    before = loaded.look()
    assert before is not None
    loaded.set_balloon(160)

    def refaults() -> bool:
        found = loaded.look()
        name = "workingset_refault_file"
        return found is not None and found[name] - before[name] > 1000

    wait_until(refaults, what="the guest reads again what it had", deadline_s=120)
    assert 0 < loaded.balloon_mib() <= 160
