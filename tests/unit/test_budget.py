"""How many lines the VMs of one user may have, and that other users' VMs are not held to it."""

from balloon_daemon.events import (
    Connected,
    Disconnected,
    NoDriverYet,
    StoreLost,
    TakenOver,
    VmDriven,
    VmLost,
)
from balloon_daemon.events.driven import Fault
from balloon_daemon.records.budget import (
    FIRST_LINES,
    FIRST_LINES_A_SECOND,
    FORGOTTEN_AFTER_S,
    LINES,
    LINES_A_SECOND,
    REMEMBERED,
    YOUNG_S,
    UserBudgets,
)
from balloon_daemon.units import GIB, VmId
from tests.harness.faults import fault

GREEDY, OTHER = 1, 2
VM, ANOTHER, LATER = VmId(1, "vm1"), VmId(2, "vm2"), VmId(3, "vm3")


@fault("one user's connections would fill the log")
def test_lines_on_new_connections_of_a_user_are_limited_together() -> None:
    budgets = UserBudgets()
    budgets.note(Connected(VM, GREEDY), 0.0)
    budgets.note(Connected(LATER, GREEDY), 0.0)
    budgets.note(Connected(ANOTHER, OTHER), 0.0)
    admitted = [budgets.admit(TakenOver(VM), 0.0) for _ in range(FIRST_LINES + 7)]
    assert admitted == [0] * FIRST_LINES + [None] * 7
    assert budgets.admit(TakenOver(ANOTHER), 0.0) == 0

    assert budgets.admit(TakenOver(LATER), 1 / FIRST_LINES_A_SECOND) == 7


@fault("one user's connections would fill the log")
def test_lines_on_driven_vms_count_as_their_vmms_users() -> None:
    budgets = UserBudgets()
    budgets.note(VmDriven(VM, "/run/web.qmp", GIB, 77, uid=GREEDY), 0.0)
    budgets.note(VmDriven(ANOTHER, "/run/db.qmp", GIB, 78, uid=OTHER), 0.0)
    admitted = [budgets.admit(NoDriverYet(VM), 0.0) for _ in range(FIRST_LINES + 1)]
    assert admitted == [0] * FIRST_LINES + [None]
    # The same user's VM is driven anew, under another number.
    budgets.note(VmLost(VM, Fault.GONE), 0.0)
    budgets.note(VmDriven(LATER, "/run/web.qmp", GIB, 77, uid=GREEDY), 0.0)
    assert budgets.admit(NoDriverYet(LATER), 0.0) is None
    assert budgets.admit(VmLost(VM, Fault.GONE), 0.0) is None
    assert budgets.admit(NoDriverYet(ANOTHER), 0.0) == 0


@fault("one user's connections would fill the log")
def test_lines_on_older_connections_do_not_suffer_from_new_ones() -> None:
    budgets = UserBudgets()
    budgets.note(Connected(VM, GREEDY), 0.0)
    budgets.note(Connected(LATER, GREEDY), YOUNG_S)
    for _ in range(FIRST_LINES + 1):
        budgets.admit(TakenOver(LATER), YOUNG_S)
    assert budgets.admit(TakenOver(LATER), YOUNG_S) is None
    assert budgets.admit(TakenOver(VM), YOUNG_S) == 2


@fault("one user's connections would fill the log")
def test_all_lines_of_a_user_are_limited_too() -> None:
    budgets = UserBudgets()
    budgets.note(Connected(VM, GREEDY), 0.0)
    admitted = [budgets.admit(TakenOver(VM), YOUNG_S) for _ in range(LINES + 1)]
    assert admitted == [0] * LINES + [None]
    assert budgets.admit(TakenOver(VM), YOUNG_S + 1 / LINES_A_SECOND) == 1


def test_what_is_about_no_vm_or_an_unknown_one_is_not_limited() -> None:
    budgets = UserBudgets()
    assert {budgets.admit(StoreLost(), 0.0) for _ in range(2 * LINES)} == {0}
    assert {budgets.admit(TakenOver(VM), 0.0) for _ in range(2 * LINES)} == {0}


def test_lines_on_a_vm_that_is_gone_are_limited_for_as_long_as_it_is_remembered() -> None:
    budgets = UserBudgets()
    budgets.note(Connected(VM, GREEDY), 0.0)
    for _ in range(FIRST_LINES):
        budgets.admit(TakenOver(VM), 0.0)
    budgets.note(Disconnected(VM), 0.0)
    assert budgets.admit(TakenOver(VM), 0.0) is None

    for number in range(REMEMBERED):
        vm = VmId(10 + number, "vm")
        budgets.note(Connected(vm, OTHER), 0.0)
        budgets.note(Disconnected(vm), 0.0)
    assert budgets.admit(TakenOver(VM), 0.0) == 0


@fault("a user with 65,536 subordinate users connects as each of them")
def test_user_of_whom_no_vm_is_remembered_is_forgotten_once_its_buckets_are_full_again() -> None:
    budgets = UserBudgets()
    budgets.note(Connected(VM, OTHER), 0.0)
    for number in range(10, 10 + 2 * REMEMBERED):
        vm = VmId(number, f"vm{number}")
        budgets.note(Connected(vm, number), 0.0)
        budgets.note(Disconnected(vm), 0.0)
    # Those of whom no VM is remembered are kept for a time: who comes again has no new bucket.
    assert len(budgets._users) == 1 + 2 * REMEMBERED
    for _ in range(2 * REMEMBERED):
        budgets.note(Connected(ANOTHER, GREEDY), FORGOTTEN_AFTER_S)
    assert len(budgets._users) == 2 + REMEMBERED
    assert OTHER in budgets._users
