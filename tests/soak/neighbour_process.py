"""An honest guest that measures how long each access to its config space takes.

``python -m tests.soak.neighbour_process SOCKET``: one command a line on standard input, one line
of JSON for each; it ends with its input. ``measure`` begins, ``delays`` ends a measurement,
``reboot`` resets the guest, ``check`` looks at every page, and all else asks for its figures.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from balloon_daemon.errors import BalloondError
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, step
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.settings import DriverSettings
from balloon_daemon.virtio.balloon import BalloonConfig
from tests.soak.other_user import become, enter

STDIN = 0
EVERY_S = 0.002
"""A guest that inflates accesses its config space about as often."""

MEM_BYTES = 512 << 20
SETTINGS = GuestSettings(
    mem_bytes=MEM_BYTES,
    driver=DriverSettings(refill=True),
    population=Population(touched_bytes=24 << 20, pinned_bytes=12 << 20, seed=7),
)


class Neighbour:
    """The guest, and what it has measured.

    Args:
        guest: attached, its driver bound.
    """

    def __init__(self, guest: FakeGuest) -> None:
        self._guest = guest
        self._delays: list[float] | None = None
        self._due = time.monotonic()

    def serve(self) -> None:
        """Obeys until standard input ends."""
        pending = b""
        while True:
            left_s = 3600.0 if self._delays is None else max(0.0, self._due - time.monotonic())
            if step([self._guest], left_s, [STDIN]):
                heard = os.read(STDIN, 4096)
                if not heard:
                    return
                *lines, pending = (pending + heard).split(b"\n")
                for line in lines:
                    print(json.dumps(self._obey(line.decode())), flush=True)
            if self._delays is not None and time.monotonic() >= self._due:
                self._access(self._delays)

    def _access(self, delays: list[float]) -> None:
        frontend = self._guest.frontend
        if frontend is None:
            self._delays = None
            return
        began = time.monotonic()
        try:
            frontend.read_config(0, BalloonConfig.SIZE)
        except (OSError, BalloondError) as err:
            self._lose(err)
            return
        now = time.monotonic()
        delays.append(now - began)
        self._due += EVERY_S
        while self._due < now:
            # It would have been made meanwhile, and would have waited for as long as it is late:
            # else a guest that stands still for a second counts as one access of many.
            delays.append(now - self._due)
            self._due += EVERY_S

    def _lose(self, err: Exception) -> None:
        self._guest.disconnected = f"{type(err).__name__}: {err}"
        self._guest.hang_up()

    def _obey(self, command: str) -> dict[str, object]:
        if command == "measure":
            self._delays, self._due = [], time.monotonic()
            return {}
        if command == "delays":
            delays, self._delays = self._delays or [], None
            return {"ms": [round(1000 * each, 4) for each in delays]}
        if command == "reboot":
            try:
                self._guest.reboot()
            except (OSError, BalloondError) as err:
                self._lose(err)
        if command == "check":
            return asdict(self._guest.ram.check())
        return self._guest.status()


def main(argv: Sequence[str]) -> int:
    """Attaches, and obeys until its standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.neighbour_process")
    parser.add_argument("socket", type=Path)
    parser.add_argument("--uid", type=int)
    args = parser.parse_args(argv)
    path = enter(args.socket)
    become(args.uid)
    guest = FakeGuest(SETTINGS)
    try:
        guest.connect(path)
        guest.bind()
        print(json.dumps(guest.status()), flush=True)
        Neighbour(guest).serve()
    finally:
        guest.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
