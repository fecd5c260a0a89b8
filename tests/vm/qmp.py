"""QEMU's monitor: one command, one answer; events are kept until asked for."""

import json
import socket
from collections.abc import Callable
from typing import Any

from tests.harness.waiting import wait_until


class QmpError(Exception):
    """QEMU refused a command, or closed its monitor."""


class Qmp:
    """A monitor connection that QEMU has opened to us."""

    def __init__(self, connection: socket.socket) -> None:
        """Leaves negotiation mode. The connection stays the caller's to close.

        Raises:
            QmpError: QEMU closed it.
        """
        self._connection = connection
        self._received = bytearray()
        self._messages: list[dict[str, Any]] = []
        connection.setblocking(False)
        self._wait_message(lambda message: "QMP" in message, "QEMU's greeting", 30)
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """Runs one command of the monitor.

        Returns:
            What the answer's "return" holds.

        Raises:
            QmpError: QEMU answered with an error.
        """
        request = {"execute": command, "arguments": arguments}
        self._connection.sendall(json.dumps(request).encode())
        answer = self._wait_message(
            lambda message: "return" in message or "error" in message, f"QMP {command}", 60
        )
        if "error" in answer:
            raise QmpError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_event(self, name: str, deadline_s: float) -> dict[str, Any]:
        """Waits for an event, also one that came before, and forgets it; returns its data."""
        event = self._wait_message(lambda message: message.get("event") == name, name, deadline_s)
        return dict(event.get("data", {}))

    def _wait_message(
        self, wanted: Callable[[dict[str, Any]], bool], what: str, deadline_s: float
    ) -> dict[str, Any]:
        def find() -> dict[str, Any] | None:
            self._read()
            return next(filter(wanted, self._messages), None)

        found = wait_until(find, deadline_s=deadline_s, what=what)
        assert found is not None
        self._messages.remove(found)
        return found

    def _read(self) -> None:
        try:
            data = self._connection.recv(65536)
        except BlockingIOError:
            return
        if not data:
            raise QmpError("QEMU closed its monitor")
        self._received += data
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        self._messages += [json.loads(line) for line in lines if line.strip()]
