"""A report that takes several chains, while the guest goes on inflating between them."""

from balloon_daemon.fake_guest.page_reporting import PageReport
from balloon_daemon.fake_guest.pages import Population, populate
from balloon_daemon.fake_guest.ram import GuestRam
from balloon_daemon.units import MIB, PAGE_SIZE

BLOCK_PAGES = 16


def test_blocks_given_up_between_two_chains_are_not_reported_any_more() -> None:
    ram = GuestRam([(0, 8 * MIB)])
    free = populate(ram, Population(touched_bytes=8 * MIB))
    report = PageReport(ram, free, BLOCK_PAGES)

    report.next_chain()
    # The next in line for the balloon are the next to be reported, too.
    in_balloon = set(free.take(40 * BLOCK_PAGES).tolist())
    report.finish()
    later: set[int] = set()
    while chain := report.next_chain():
        for addr, length in chain:
            later.update(range(addr // PAGE_SIZE, (addr + length) // PAGE_SIZE))
        report.finish()

    assert later
    assert not later & in_balloon
    assert len(set(free.next().tolist())) == len(free) == ram.num_pages - len(in_balloon)
    ram.close()
