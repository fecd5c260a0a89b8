"""Work for driven VMs: how much of it one turn of the event loop does, and for whom."""

import asyncio
from collections.abc import Callable

import pytest

from balloon_daemon.guests import in_turn
from balloon_daemon.guests.in_turn import InTurn

ANN, BOB = 1000, 1001
ANSWER_S = 0.0003


class Loop:
    """The turns of an event loop, and what is done in each."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.turn = 0
        self.done: list[tuple[int, int]] = []
        self.in_turn = InTurn(lambda: self.now_s)

    def answer(self, user: int) -> Callable[[], None]:
        """The work on an answer of a VMM of this user's."""

        def work() -> None:
            self.now_s += ANSWER_S
            self.done.append((self.turn, user))

        return work

    def play(self, *users: int) -> None:
        """Has VMMs of these users answer at once, and lets turns pass until all is done."""

        async def scene() -> None:
            for user in users:
                self.in_turn.do(user, self.answer(user))
            while len(self.done) < len(users):
                self.turn += 1
                await asyncio.sleep(0)

        asyncio.run(scene())

    def users(self) -> list[int]:
        return [user for _, user in self.done]


def test_hundreds_of_answers_at_once_are_worked_on_for_a_moment_in_each_turn() -> None:
    loop = Loop()
    loop.play(*[ANN] * 300)
    turns = [turn for turn, _ in loop.done]
    most = max(turns.count(turn) for turn in set(turns))
    assert most * ANSWER_S < in_turn.TURN_S + ANSWER_S
    assert turns == sorted(turns)


def test_users_take_turns() -> None:
    loop = Loop()
    loop.play(*[ANN] * 100, BOB)
    assert loop.users().index(BOB) < 7


def test_one_answer_waits_for_nothing() -> None:
    loop = Loop()
    loop.play(ANN)
    assert loop.done == [(0, ANN)]


def test_error_in_later_work_ends_no_other_and_reaches_whoever_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(in_turn, "TURN_S", 0.0)
    loop = Loop()
    errors: list[str] = []

    def fails() -> int:
        raise ValueError("nonsense")

    async def scene() -> list[object]:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: errors.append(str(context["exception"]))
        )
        loop.in_turn.do(ANN, fails)
        works = [loop.in_turn.result(ANN, fails), loop.in_turn.result(ANN, lambda: 7)]
        return await asyncio.gather(*works, return_exceptions=True)

    failed, seven = asyncio.run(scene())
    assert isinstance(failed, ValueError)
    assert (seven, errors) == (7, ["nonsense"])


def test_work_that_waited_in_a_loop_that_has_ended_is_not_done_in_another() -> None:
    loop = Loop()

    async def left() -> None:
        for _ in range(10):
            loop.in_turn.do(ANN, loop.answer(ANN))

    asyncio.run(left())
    loop.done.clear()
    loop.play(BOB)
    assert loop.users() == [BOB]
