import asyncio
from collections.abc import Callable

from balloon_daemon.guests.jailed.two_lines import TwoLines


def with_loop(scene: Callable[[TwoLines, Callable[[], asyncio.Future[None]]], None]) -> None:
    async def run() -> None:
        scene(TwoLines(), asyncio.get_running_loop().create_future)

    asyncio.run(run())


def test_old_and_new_connections_take_turns_each_in_the_order_of_coming() -> None:
    def scene(lines: TwoLines, future: Callable[[], asyncio.Future[None]]) -> None:
        for fd in (1, 2, 3):
            lines.add(fd, future(), old=True)
        for fd in (11, 12):
            lines.add(fd, future(), old=False)
        assert [lines.wake_next(young=True) for _ in range(6)] == [1, 11, 2, 12, 3, None]

    with_loop(scene)


def test_new_connections_wait_while_they_may_have_no_turn() -> None:
    def scene(lines: TwoLines, future: Callable[[], asyncio.Future[None]]) -> None:
        lines.add(11, future(), old=False)
        lines.add(1, future(), old=True)
        assert [lines.wake_next(young=False) for _ in range(3)] == [1, None, None]
        assert lines.young
        assert lines.wake_next(young=True) == 11
        assert not lines.young

    with_loop(scene)


def test_task_that_was_cancelled_is_passed_over_and_the_next_one_woken() -> None:
    def scene(lines: TwoLines, future: Callable[[], asyncio.Future[None]]) -> None:
        cancelled, other = future(), future()
        lines.add(1, cancelled, old=True)
        lines.add(2, other, old=True)
        cancelled.cancel()
        assert lines.wake_next(young=True) == 2
        assert other.done()

    with_loop(scene)
