from balloon_daemon.device.huge_pages import HugePages
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.virtio.guest_memory import MemoryRegion

HUGE_BYTES = 512 * PAGE_SIZE
HALF_BYTES = HUGE_BYTES // 2


def huge_pages(*, must_tell_host: bool = True) -> HugePages:
    size_bytes = 4 * HUGE_BYTES
    region = MemoryRegion(GuestAddr(0), FrontendAddr(0), size_bytes, memoryview(b""), HUGE_BYTES)
    return HugePages([region, region], must_tell_host=must_tell_host)


def test_huge_page_is_complete_once_when_its_last_part_comes() -> None:
    pages = huge_pages()
    assert pages.put_in(0, 0, HUGE_BYTES - PAGE_SIZE) == []
    assert pages.put_in(0, HUGE_BYTES - PAGE_SIZE, PAGE_SIZE) == [0]
    assert pages.put_in(0, 0, HUGE_BYTES) == []


def test_range_over_several_huge_pages_completes_those_that_it_covers() -> None:
    pages = huge_pages()
    assert pages.put_in(0, HALF_BYTES, 2 * HUGE_BYTES) == [1]
    assert pages.put_in(0, 0, HALF_BYTES) == [0]
    assert pages.put_in(0, 5 * HALF_BYTES, HALF_BYTES) == [2]


def test_parts_of_one_region_complete_no_page_of_another() -> None:
    pages = huge_pages()
    assert pages.put_in(0, 0, HALF_BYTES) == []
    assert pages.put_in(1, HALF_BYTES, HALF_BYTES) == []


def test_part_that_was_taken_out_has_to_come_again() -> None:
    pages = huge_pages()
    assert pages.put_in(0, 0, HALF_BYTES) == []
    pages.take_out(0, 0, PAGE_SIZE)
    assert pages.put_in(0, HALF_BYTES, HALF_BYTES) == []
    assert pages.put_in(0, 0, PAGE_SIZE) == [0]


def test_complete_page_of_which_a_part_was_taken_out_is_complete_again_with_it() -> None:
    pages = huge_pages()
    assert pages.put_in(0, 0, HUGE_BYTES) == [0]
    pages.take_out(0, PAGE_SIZE, PAGE_SIZE)
    assert pages.put_in(0, PAGE_SIZE, PAGE_SIZE) == [0]


def test_nothing_is_remembered_of_a_driver_that_need_not_tell() -> None:
    pages = huge_pages(must_tell_host=False)
    assert pages.put_in(0, 0, HALF_BYTES) == []
    assert pages.put_in(0, HALF_BYTES, HALF_BYTES) == []
    assert pages.put_in(0, 0, HUGE_BYTES) == [0]


def test_forgotten_parts_have_to_come_again() -> None:
    pages = huge_pages()
    assert pages.put_in(0, 0, HALF_BYTES) == []
    pages.forget()
    assert pages.put_in(0, HALF_BYTES, HALF_BYTES) == []
    assert pages.put_in(0, 0, HALF_BYTES) == [0]
