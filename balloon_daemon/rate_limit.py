"""Limits how often something is published: per second, by a token bucket, or once each.

Pure. The controller limits its events with these classes, and a device its reports.
"""

from collections.abc import Hashable


class LineBudget:
    """A token bucket: each line that is let through uses up one token; the others are counted.

    Args:
        most: the size of the bucket, in lines.
        per_second: how many lines' tokens are added in a second.
    """

    def __init__(self, most: int, per_second: float) -> None:
        self._most = most
        self._per_second = per_second
        self._saved = float(most)
        self._at_s = 0.0
        self.left_out = 0
        """Lines left out since the last line that was let through."""

    def has_one(self, now_s: float) -> bool:
        """Uses up one line's token; False: the bucket is empty."""
        earned = (now_s - self._at_s) * self._per_second
        self._saved, self._at_s = min(self._most, self._saved + earned), now_s
        if self._saved < 1:
            return False
        self._saved -= 1
        return True

    def is_full(self, now_s: float) -> bool:
        """Whether the bucket has all of its tokens, as a new one has."""
        return self._saved + (now_s - self._at_s) * self._per_second >= self._most

    def admit(self, now_s: float) -> int | None:
        """How many lines were left out before this one; None: leave this line out too."""
        if not self.has_one(now_s):
            self.left_out += 1
            return None
        left_out, self.left_out = self.left_out, 0
        return left_out


class RateLimit:
    """Lets at most ``per_second`` lines through in each second, and counts the others.

    Args:
        per_second: lines a second.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = -1
        self._passed = 0
        self._suppressed = 0

    def admit(self, now_s: float) -> int | None:
        """How many lines were left out before this one; None: leave this line out too."""
        if int(now_s) != self._second:
            self._second, self._passed = int(now_s), 0
        if self._passed >= self._per_second:
            self._suppressed += 1
            return None
        self._passed += 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


class OnceEach:
    """Lets each of several lines through once.

    Only the hashes of the lines are kept: a line, such as the text of a memory table, may have
    tens of thousands of characters, and each of a user's VMs has lines of its own. A line with the
    hash of another one is left out.

    Args:
        most: the number of different lines; later ones are left out, because whoever causes them
            may vary them without end.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._hashes = set[int]()

    def admit(self, line: Hashable) -> bool:
        """Whether to let a line through, or whatever value it is about."""
        found = hash(line)
        if found in self._hashes or len(self._hashes) >= self._most:
            return False
        self._hashes.add(found)
        return True
