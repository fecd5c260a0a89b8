"""How much time work for each user has taken, of an allowance that comes back steadily."""

_MOST_USERS = 1024


class UserTime:
    """Each user's allowance of seconds.

    Args:
        most_s: how many seconds of work a user may have at once.
        regained: how much of an allowance, in seconds, comes back in each second.
    """

    def __init__(self, most_s: float, regained: float) -> None:
        self._most_s, self._regained = most_s, regained
        self._taken: dict[int, tuple[float, float]] = {}
        """By user: the seconds that were taken, less what has come back, and when that number was
        computed."""

    def is_used_up(self, user: int, now_s: float) -> bool:
        """Whether nothing of a user's allowance is left."""
        return self._taken_s(user, now_s) >= self._most_s

    def take(self, user: int, seconds: float, now_s: float) -> None:
        """Notes that work for a user has taken so many seconds."""
        self._taken[user] = self._taken_s(user, now_s) + seconds, now_s
        if len(self._taken) > _MOST_USERS:
            self._taken.pop(next(iter(self._taken)))

    def _taken_s(self, user: int, now_s: float) -> float:
        taken_s, at_s = self._taken.get(user, (0.0, now_s))
        taken_s -= (now_s - at_s) * self._regained
        if taken_s <= 0:
            self._taken.pop(user, None)
        return max(0.0, taken_s)
