"""How often something may be said: so much in a second, so much saved up, or each thing once.

Pure. The controller limits what it publishes with these, and a device what it reports.
"""


class LineBudget:
    """Lets through as many lines as have been saved up, and counts the others.

    Args:
        most: lines that can be saved up.
        per_second: lines that are saved up in a second.
    """

    def __init__(self, most: int, per_second: float) -> None:
        self._most = most
        self._per_second = per_second
        self._saved = float(most)
        self._at_s = 0.0
        self.left_out = 0
        """Lines since the last one that was let through."""

    def has_one(self, now_s: float) -> bool:
        """Takes a line's worth of what is saved up; False where there is none."""
        earned = (now_s - self._at_s) * self._per_second
        self._saved, self._at_s = min(self._most, self._saved + earned), now_s
        if self._saved < 1:
            return False
        self._saved -= 1
        return True

    def admit(self, now_s: float) -> int | None:
        """Tells how many lines were left out before this one; None: leave this one out too."""
        if not self.has_one(now_s):
            self.left_out += 1
            return None
        left_out, self.left_out = self.left_out, 0
        return left_out


class RateLimit:
    """Lets so many lines through in a second, and counts the others.

    Args:
        per_second: lines a second.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = -1
        self._passed = 0
        self._suppressed = 0

    def admit(self, now_s: float) -> int | None:
        """Tells how many lines were left out before this one; None: leave this one out too."""
        if int(now_s) != self._second:
            self._second, self._passed = int(now_s), 0
        if self._passed >= self._per_second:
            self._suppressed += 1
            return None
        self._passed += 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


class OnceEach:
    """Lets each of some lines through once.

    Args:
        most: different lines; those beyond are left out, as whoever causes them may vary them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._said = set[str]()

    def admit(self, line: str) -> bool:
        """Tells whether to say this line."""
        if line in self._said or len(self._said) >= self._most:
            return False
        self._said.add(line)
        return True
