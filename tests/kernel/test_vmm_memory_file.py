"""The memory file of a VMM that has a file of the same name whose server is silent."""

import os
import signal
import struct
import threading
from pathlib import Path

import pytest

from balloon_daemon.guests.driven import process_orders
from tests.harness import slow_close
from tests.harness.slow_close import MuteFile
from tests.harness.waiting import HANG_S


def test_file_of_fuse_whose_server_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = slow_close._answers

    def answers_for_no_time(operation: int, node: int) -> bytes | None:
        said = answers(operation, node)
        if said is not None and operation == slow_close._LOOKUP:
            return said[:16] + struct.pack("<QQ", 60, 0) + said[32:]
        return said

    monkeypatch.setattr(slow_close, "_answers", answers_for_no_time)
    try:
        mute = MuteFile(tmp_path / "mount")
    except OSError as err:
        pytest.skip(f"needs root, to mount a file system of FUSE: {err}")
    inode = os.fstat(mute.fd).st_ino
    link = os.readlink(f"/proc/self/fd/{mute.fd}")
    found: list[object] = []
    look = threading.Thread(
        target=lambda: found.append(process_orders.open_files(os.getpid(), [link])),
        daemon=True,
    )
    try:
        os.kill(mute._server, signal.SIGSTOP)
        look.start()
        look.join(HANG_S)
        assert not look.is_alive()
    finally:
        mute.close()
        look.join(HANG_S)
    assert found == [(True, [(f"/proc/{os.getpid()}/fd/{mute.fd}", inode, 4096)])]
