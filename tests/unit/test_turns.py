import asyncio
import select
import socket
import time
from collections.abc import Callable

import pytest

from balloon_daemon.guests.jailed import turns
from balloon_daemon.guests.jailed.turns import AT_ONCE, LOOK_AT, Allowances, EachStep, Turns
from tests.harness.faults import fault

CONNECTIONS = AT_ONCE + 3 * LOOK_AT + 1


class Crowd:
    """Connections that have something to say, and never stop.

    Args:
        user: in whose turns they are heard.
    """

    def __init__(self, user: Turns, count: int) -> None:
        self.heard = [0] * count
        self._user = user
        self._pairs = [socket.socketpair() for _ in range(count)]
        for number, (theirs, ours) in enumerate(self._pairs):
            theirs.send(b"x")
            user.watch(ours.fileno(), self._hear(number))

    def _hear(self, number: int) -> Callable[[], None]:
        def hear() -> None:
            self.heard[number] += 1

        return hear

    def silence(self) -> None:
        for _, ours in self._pairs:
            ours.recv(1)

    def speak(self) -> None:
        for theirs, _ in self._pairs:
            theirs.send(b"x")

    def establish(self, count: int) -> None:
        for _, ours in self._pairs[:count]:
            self._user.establish(ours.fileno())

    def watch_anew(self) -> None:
        for number, (_, ours) in enumerate(self._pairs):
            self._user.unwatch(ours.fileno())
            self._user.watch(ours.fileno(), self._hear(number))

    def close(self) -> None:
        for theirs, ours in self._pairs:
            self._user.leave(ours.fileno())
            theirs.close()
            ours.close()


async def turns_of_the_loop(count: int) -> None:
    # Each sleep(0) ends with the loop's next turn, in which it has looked at what is ready.
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a turn without any time one message is taken all the same.
    monkeypatch.setattr(turns, "TURN_S", 0.0)


@fault("any user puts many locks on a file that balloond reads")
def test_epoll_instance_of_a_user_who_has_left_is_the_next_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[select.epoll] = []
    epoll = select.epoll

    def noted() -> select.epoll:
        made.append(epoll())
        return made[-1]

    async def scene() -> None:
        monkeypatch.setattr(select, "epoll", noted)
        for _ in range(3):
            user = Turns(Allowances())
            crowd = Crowd(user, 1)
            await turns_of_the_loop(3)
            assert crowd.heard > [0]
            crowd.close()
            user.close()

    monkeypatch.setattr(turns, "_SPARE", [])
    asyncio.run(scene())
    assert len(made) == 1
    assert not made[0].closed


@fault("one user has much to say, over however many connections")
def test_user_with_many_connections_is_heard_no_more_than_one_with_few() -> None:
    async def scene() -> tuple[int, int, int]:
        many, one = Turns(Allowances()), Turns(Allowances())
        crowd, single = Crowd(many, CONNECTIONS), Crowd(one, 1)
        crowd.establish(AT_ONCE + 1)
        await turns_of_the_loop(3 * CONNECTIONS)
        heard = sum(crowd.heard[:AT_ONCE]), sum(crowd.heard[AT_ONCE:]), single.heard[0]
        for each in (crowd, single):
            each.close()
        for user in (many, one):
            user.close()
        return heard

    at_once, in_turns, single = asyncio.run(scene())
    assert abs(in_turns - single) <= 1
    assert abs(at_once - AT_ONCE * single) <= AT_ONCE


@fault("one user has much to say, over however many connections")
def test_established_connection_is_heard_in_each_turn_whatever_a_crowd_does() -> None:
    async def scene() -> tuple[int, int]:
        user, turns_taken = Turns(Allowances()), 3 * CONNECTIONS
        neighbour = Crowd(user, 1)
        neighbour.establish(1)
        crowd = Crowd(user, CONNECTIONS)
        await turns_of_the_loop(turns_taken)
        # Watched anew, as after each message for its task, it keeps its place.
        neighbour.watch_anew()
        await turns_of_the_loop(turns_taken)
        heard = neighbour.heard[0]
        for each in (neighbour, crowd):
            each.close()
        user.close()
        return heard, 2 * turns_taken

    heard, turns_taken = asyncio.run(scene())
    assert abs(heard - turns_taken) <= 3


@fault("one user has much to say, over however many connections")
def test_connections_of_one_user_are_heard_one_after_the_other() -> None:
    async def scene() -> list[int]:
        user = Turns(Allowances())
        crowd = Crowd(user, CONNECTIONS)
        crowd.establish(AT_ONCE)
        await turns_of_the_loop(4 * CONNECTIONS)
        crowd.close()
        user.close()
        return crowd.heard[AT_ONCE:]

    heard = asyncio.run(scene())
    assert min(heard) > 0
    assert max(heard) - min(heard) <= 1


class Tasks:
    """Tasks of one user that want a turn of the loop each, again and again."""

    def __init__(self, user: Turns, turn: list[int], fds: range) -> None:
        self.begun: list[int] = []
        self._user, self._turn = user, turn
        self.tasks = [asyncio.create_task(self._begin(fd)) for fd in fds]

    async def _begin(self, fd: int) -> None:
        while True:
            await self._user.mine(fd)
            self.begun.append(self._turn[0])
            await asyncio.sleep(0)


@fault("one user has much to say, over however many connections")
def test_tasks_of_one_user_begin_one_in_each_turn_of_the_loop() -> None:
    async def scene() -> tuple[list[int], list[int]]:
        user, other, turn = Turns(Allowances()), Turns(Allowances()), [0]
        many, one = Tasks(user, turn, range(100, 110)), Tasks(other, turn, range(1))
        many.tasks[3].cancel()
        while turn[0] < 60:
            await asyncio.sleep(0)
            turn[0] += 1
        for task in (*many.tasks, *one.tasks):
            task.cancel()
        for each in (user, other):
            each.close()
        return many.begun, one.begun

    many, one = asyncio.run(scene())
    assert len(many) > 25
    assert len(set(many)) == len(many)
    assert len(one) > 15


@fault("one user has much to say, over however many connections")
def test_task_of_an_established_connection_waits_for_no_crowd() -> None:
    async def scene() -> int:
        user, turn = Turns(Allowances()), [0]
        user.establish(7)
        Tasks(user, turn, range(100, 200))
        neighbour = Tasks(user, turn, range(7, 8))
        while turn[0] < 100:
            await asyncio.sleep(0)
            turn[0] += 1
        user.leave(7)
        user.close()
        return len(neighbour.begun)

    # Every other turn is theirs, and each of its own takes it two more.
    assert asyncio.run(scene()) > 15


def test_connection_that_nobody_watches_any_more_is_not_heard() -> None:
    async def scene() -> list[int]:
        user = Turns(Allowances())
        crowd = Crowd(user, AT_ONCE + 2)
        crowd.establish(AT_ONCE)
        for _, ours in (crowd._pairs[0], crowd._pairs[AT_ONCE]):
            user.unwatch(ours.fileno())
        await turns_of_the_loop(3)
        crowd.close()
        user.close()
        return crowd.heard

    heard = asyncio.run(scene())
    assert [number for number, times in enumerate(heard) if not times] == [0, AT_ONCE]


@fault("one user has much to say, over however many connections")
def test_allowance_is_earned_as_a_part_of_the_time_and_saved_up_to_a_bound() -> None:
    allowance = turns.Allowance(turns.OF_THE_LOOP)

    assert allowance.charge(0.0, 1000.0) == turns.SAVED_S
    assert allowance.charge(turns.SAVED_S, 1000.0) == 0.0
    assert allowance.charge(0.0, 1001.0) == pytest.approx(turns.OF_THE_LOOP)
    # However long a user has kept the loop, it is heard again soon.
    assert allowance.charge(3600.0, 1001.0) == -turns.OWED_S


@fault("one user has much to say, over however many connections")
def test_user_who_has_had_its_part_of_the_loop_rests_but_for_established_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene() -> tuple[int, int, list[int], int]:
        user, turn = Turns(Allowances()), [0]
        old, young = Crowd(user, 1), Crowd(user, CONNECTIONS)
        old.establish(1)
        user.charge(turns.SAVED_S + turns.OWED_S)
        new = Tasks(user, turn, range(1000, 1003))
        await turns_of_the_loop(20)
        heard = old.heard[0], sum(young.heard), new.begun[:]
        while not (sum(young.heard) and new.begun):
            # Not sleep(0): the loop waits for what ends the rest.
            await asyncio.sleep(turns.TURN_S)
        for task in new.tasks:
            task.cancel()
        for each in (old, young):
            each.close()
        user.close()
        return *heard, sum(young.heard)

    at_rest, young, begun, afterwards = asyncio.run(scene())
    assert at_rest >= 15
    assert (young, begun) == (0, [])
    assert afterwards > 0


@fault("one user has much to say, over however many connections")
def test_established_connection_that_takes_most_is_put_back_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Allowances that are used up by any message, and a rest that nobody waits for.
    monkeypatch.setattr(turns, "SAVED_S", 0.0)
    monkeypatch.setattr(turns, "OF_THE_LOOP_AT_ONCE", 1e-9)

    async def scene() -> tuple[int, int]:
        user = Turns(Allowances())
        floods, honest = Crowd(user, AT_ONCE - 1), Crowd(user, 1)
        honest.silence()
        floods.establish(AT_ONCE - 1)
        honest.establish(1)
        await turns_of_the_loop(10 * AT_ONCE)
        floods_heard = sum(floods.heard)
        honest.speak()
        # In the first turn the loop sees that it has something to say; in the next it is heard.
        await turns_of_the_loop(2)
        heard = floods_heard, honest.heard[0]
        for each in (floods, honest):
            each.close()
        user.close()
        return heard

    floods_heard, honest_heard = asyncio.run(scene())
    # Once each until it is put back, and then one of them in a turn of the loop.
    assert floods_heard <= AT_ONCE + 10 * AT_ONCE
    assert honest_heard >= 1


@fault("one user has much to say, over however many connections")
def test_only_a_tasks_own_steps_are_charged_to_it() -> None:
    took: list[float] = []

    async def step_for_long(turns_of_others: "asyncio.Future[None]") -> None:
        end = time.monotonic() + 0.01
        while time.monotonic() < end:
            pass
        await turns_of_others

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        others: asyncio.Future[None] = loop.create_future()

        async def task() -> None:
            await EachStep(step_for_long(others), took.append)

        running = asyncio.ensure_future(task())
        await asyncio.sleep(0)
        time.sleep(0.05)
        others.set_result(None)
        await running

    asyncio.run(scene())
    first, last = took
    # No upper bound: the test's own process may be kept from the processor at any time.
    assert first >= 0.01
    assert last < first


def test_steps_end_with_the_coroutines_result_error_or_cancellation() -> None:
    async def waits(seen: list[str]) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def fails() -> None:
        await asyncio.sleep(0)
        raise EOFError

    async def scene() -> tuple[list[str], int]:
        seen: list[str] = []
        steps: list[float] = []

        async def task() -> None:
            await EachStep(waits(seen), steps.append)

        running = asyncio.ensure_future(task())
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(EOFError):
            await EachStep(fails(), steps.append)
        return seen, len(steps)

    assert asyncio.run(scene()) == (["cancelled"], 4)


@fault("one user has much to say, over however many connections")
def test_tasks_time_counts_more_than_that_of_config_accesses() -> None:
    async def scene() -> tuple[float, float]:
        allowances = Allowances()
        user = Turns(allowances)
        user.charge_task(1000, 0.1)
        user.establish(7)
        user.charge_task(7, 0.05)
        user.leave(7)
        user.close()
        now_s = asyncio.get_running_loop().time()
        young_s = allowances.in_turns.charge(0.0, now_s)
        return young_s, allowances.at_once.charge(0.0, now_s)

    young_s, at_once_s = asyncio.run(scene())
    # Both allowances were full before, and have earned something since.
    assert turns.SAVED_S - 0.1 * turns.A_REQUEST_COUNTS <= young_s < turns.SAVED_S
    assert turns.SAVED_S - 0.05 * turns.A_REQUEST_COUNTS <= at_once_s < turns.SAVED_S


@fault("one user has much to say, over however many connections")
@pytest.mark.parametrize("spent_s", [0.0, 0.9 * turns.SAVED_S])
def test_tasks_of_a_user_who_sent_much_leave_others_a_turn_in_between(spent_s: float) -> None:
    async def scene() -> list[str]:
        order, loop = list[str](), asyncio.get_running_loop()
        user = Turns(Allowances())
        for fd in (7, 8, 9):
            user.establish(fd)
        user.charge_task(7, spent_s / turns.A_REQUEST_COUNTS)
        theirs, ours = socket.socketpair()

        def answer() -> None:
            ours.recv(1)
            order.append("other user")

        async def task(fd: int) -> None:
            await user.mine(fd)
            if len(order) == 1:
                theirs.send(b"x")
            order.append("task")

        loop.add_reader(ours, answer)
        await asyncio.wait([loop.create_task(task(fd)) for fd in (7, 8, 9)])
        loop.remove_reader(ours)
        for fd in (7, 8, 9):
            user.leave(fd)
        user.close()
        theirs.close()
        ours.close()
        return order

    order = asyncio.run(scene())
    between = ["other user"] if spent_s else []
    assert [*order, "other user"][:4] == ["task", "task", *between, "task", "other user"][:4]
