"""A client of libvirt's that a test scripts, run in the place of ``guests/libvirt/process.py``.

A domain's name says how it behaves: by the word before its first dash.
"""

import json
import os
import socket
import sys
from typing import Any

COMMAND = [sys.executable, "-I", __file__]

FIGURES: dict[str, Any] = {
    "size_kib": 1 << 20,
    "state": 1,
    "stats": {"actual": 1 << 20, "last_update": 7, "usable": 1 << 19},
    "age_ms": 100,
    "read_bytes": None,
    "balloon": True,
    "apart_kib": 0,
    "deflate_on_oom": False,
    "disks": False,
    "period_s": 0,
    "hugetlb": False,
    "pinned": False,
    "reason": 1,
}

TOGETHER = 4
"""How many calls of domains named ``together-…`` are answered at once, and none before."""


class Scripted:
    """The client.

    Args:
        sock: to balloond.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting: list[dict[str, Any]] = []
        self._torn = False
        self._periods = 0

    def run(self) -> None:
        """Answers until balloond closes the socket."""
        rest = b""
        while received := self._sock.recv(1 << 16):
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                self._take(json.loads(line))
            # Only now: a fifth call comes with the fourth, where nobody waits.
            self._answer_together()

    def _take(self, call: dict[str, Any]) -> None:
        match call:
            case {"do": "connect", "uri": uri}:
                self._connect(call["id"], uri)
            case {"do": "domains"}:
                self._answer(call, [["web", "web"]])
            case _:
                self._of_domain(call, call.get("name") or call["uuid"])

    def _connect(self, number: int, uri: str) -> None:
        match uri.split(":"):
            case ["hangs", *_]:
                pass
            case ["refuses", fault]:
                self._say({"id": number, "error": fault, "detail": "its own words"})
            case ["dies", *_]:
                os._exit(1)
            case _:
                self._say({"id": number, "ok": {"version": 1}})

    def _of_domain(self, call: dict[str, Any], name: str) -> None:
        match name.split("-")[0]:
            case "hangs":
                pass
            case "together":
                self._waiting.append(call)
            case "garbage":
                self._sock.sendall(b"\x00\xff{{{\n")
            case "endless":
                while True:
                    self._sock.sendall(b"x" * 65536)
            case "half":
                self._sock.sendall(b'{"id": ')
                os._exit(0)
            case "twice":
                self._answer(call, FIGURES)
                self._answer(call, FIGURES)
            case "bug":
                self._say({"error": "nonsense", "detail": "KeyError: 'x'"})
            case "event":
                event = name.split("-")[1]
                self._say({"event": event, "name": name, "uuid": name})
                self._answer(call, {"uuid": name, **FIGURES})
            case "unsized":
                known = call["do"] == "open"
                stats = FIGURES["stats"] if known else {}
                self._answer(call, {"uuid": name, **FIGURES, "stats": stats})
            case "seventh":
                if call.get("period_s", 7) in (1, 7):
                    self._answer(call, {"uuid": name, **FIGURES, "period_s": 7})
                else:
                    self._say({"id": call["id"], "error": "refused", "detail": "no such period"})
            case "restored":
                self._answer(call, {"uuid": name, **FIGURES, "reason": 3})
            case "silent":
                # Sends statistics once it was told thrice how often, which it refuses once.
                self._periods += call["do"] == "period"
                stats = {**FIGURES["stats"], "last_update": 7 + self._periods // 3}
                if call["do"] == "period" and self._periods == 2:
                    self._say({"id": call["id"], "error": "refused", "detail": "a save"})
                else:
                    self._answer(call, {"uuid": name, **FIGURES, "stats": stats})
            case "torn":
                self._torn = call["do"] == "sample" and not self._torn
                actual = (2 if self._torn else 1) << 20
                stats = {**FIGURES["stats"], "actual": actual}
                self._answer(call, {"uuid": name, **FIGURES, "stats": stats})
            case _:
                self._answer(call, {"uuid": name, **FIGURES})

    def _answer_together(self) -> None:
        if len(self._waiting) > TOGETHER:
            self._say({"error": "nonsense", "detail": "too many calls at a time"})
        if len(self._waiting) == TOGETHER:
            for each in self._waiting:
                self._answer(each, FIGURES)
            self._waiting = []

    def _answer(self, call: dict[str, Any], content: object) -> None:
        self._say({"id": call["id"], "ok": content})

    def _say(self, message: dict[str, Any]) -> None:
        self._sock.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    Scripted(socket.socket(fileno=int(sys.argv[1]))).run()
