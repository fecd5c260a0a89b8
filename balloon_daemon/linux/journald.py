"""Sends lines with fields to systemd-journald: one datagram a line, in its native protocol.

Source: systemd's page "Native Journal Protocol" (JOURNAL_NATIVE_PROTOCOL), and
systemd.journal-fields(7) for the names of fields.
"""

import re
import socket
from collections.abc import Iterable

SOCKET = "/run/systemd/journal/socket"
"""Where systemd-journald listens, under every systemd."""

_NAME = re.compile("[A-Z0-9][A-Z0-9_]{0,63}")


def send_line(fields: Iterable[tuple[str, str]], path: str = SOCKET) -> bool:
    """Sends one line; waits for nothing.

    Args:
        fields: names and values; a name may come more than once. Names that journald would refuse
            are left out: with other characters than upper-case letters, digits and ``_``, with
            ``_`` at the beginning, or of more than 64 characters.
        path: journald's socket.

    Returns:
        False where the line cannot be sent now (no process listens, the queue is full, the line is
        too long): the caller then writes the line elsewhere.
    """
    content = bytearray()
    for name, value in fields:
        if _NAME.fullmatch(name):
            content += _encoded(name, value.encode(errors="backslashreplace"))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(content, path)
    except OSError:
        return False
    return True


def _encoded(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return b"%b=%b\n" % (name.encode(), value)
    return b"%b\n%b%b\n" % (name.encode(), len(value).to_bytes(8, "little"), value)
