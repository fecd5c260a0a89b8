"""``balloonctl top``: draws the screen on a terminal again and again, until ``q`` is pressed.

It writes the terminal's control sequences itself (ECMA-48, and xterm's for the alternate screen),
so no library is needed.
"""

import contextlib
import json
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from balloon_daemon.ctl.ask.client import Client, NoAnswerError
from balloon_daemon.ctl.ask.screen import ASCII, BLOCKS, CELL_S, Line, Seen, screen

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""Switches to the alternate screen and hides the cursor; restores both."""


def is_possible() -> bool:
    """Whether the output is a terminal in which a cursor can be moved."""
    return os.isatty(sys.stdout.fileno()) and os.environ.get("TERM", "dumb") != "dumb"


def watch(client: Client, every_s: float) -> None:
    """Shows a balloond's status until ``q`` or Ctrl-C is pressed.

    Args:
        client: asks balloond.
        every_s: the time between two requests.

    Raises:
        NoAnswerError: balloond did not answer the first request; later ones are tried again.
        NotAllowedError: this user may not ask.
        RefusedError: balloond refuses the request.
    """
    seen = Seen(max(CELL_S, every_s))
    seen.take(json.loads(client.ask("/v1/status")), time.time())
    heights = BLOCKS if _can_write(BLOCKS) else ASCII
    with _Terminal() as terminal, _woken() as woken, contextlib.suppress(KeyboardInterrupt):
        trouble, due_s = "", time.monotonic() + every_s
        while True:
            size = os.get_terminal_size(sys.stdout.fileno())
            terminal.draw(screen(seen, size.columns, size.lines, heights=heights, trouble=trouble))
            left_s = max(0.0, due_s - time.monotonic())
            ready, _, _ = select.select([*terminal.keys, woken], [], [], left_s)
            if woken in ready:
                os.read(woken, 1 << 10)
            if any(_is_end(os.read(key, 1 << 10)) for key in terminal.keys if key in ready):
                return
            if time.monotonic() < due_s:
                continue
            due_s = time.monotonic() + every_s
            try:
                seen.take(json.loads(client.ask("/v1/status")), time.time())
                trouble = ""
            except NoAnswerError as err:
                trouble = f"{err}. Asking again"


def _is_end(pressed: bytes) -> bool:
    """Whether ``q`` was pressed, or the input has ended, so that no key can be pressed any
    more."""
    return not pressed or b"q" in pressed.lower()


def _can_write(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def _woken() -> Iterator[int]:
    """Yields a descriptor that is readable once the terminal has another size: Python writes a
    byte to it at each SIGWINCH."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.signal(signal.SIGWINCH, lambda _signal, _frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGWINCH, before)
        os.close(reading)
        os.close(writing)


class _Terminal:
    """Takes over the terminal's screen and keys, and restores both at the end."""

    def __init__(self) -> None:
        self._colours = not os.environ.get("NO_COLOR")
        has_keys = sys.stdin is not None and os.isatty(sys.stdin.fileno())
        self.keys = [sys.stdin.fileno()] if has_keys else []
        """The descriptors from which keys are read: standard input, if it is a terminal."""
        self._modes = [termios.tcgetattr(fd) for fd in self.keys]
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number, how in (
            (signal.SIGTERM, _interrupt),
            (signal.SIGHUP, _interrupt),
            (signal.SIGTSTP, self._stop),
        ):
            self._handlers[number] = signal.signal(number, how)
        self._take()
        return self

    def __exit__(self, *_error: object) -> None:
        self._leave()
        for number, before in self._handlers.items():
            signal.signal(number, before)

    def draw(self, lines: list[Line]) -> None:
        """Draws all lines of the screen."""
        shown = ("".join(self._styled(text, style) for text, style in line) for line in lines)
        # Write all lines at once, and let each line clear only the rest of its own row: clearing
        # the whole screen first would make it flicker.
        _write("\x1b[H" + "\x1b[K\r\n".join(shown) + "\x1b[K\x1b[J")

    def _take(self) -> None:
        for fd in self.keys:
            tty.setcbreak(fd, termios.TCSADRAIN)
        _write(_ENTER)

    def _leave(self) -> None:
        _write(_LEAVE)
        for fd, modes in zip(self.keys, self._modes, strict=True):
            termios.tcsetattr(fd, termios.TCSADRAIN, modes)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Stops this process at Ctrl-Z; draws the whole screen anew once it is continued."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    def _styled(self, text: str, style: str) -> str:
        if not self._colours:
            # Keep bold, dim and reversed, which are no colours (https://no-color.org).
            style = ";".join(part for part in style.split(";") if len(part) == 1)
        return f"\x1b[{style}m{text}\x1b[m" if style and text else text


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
