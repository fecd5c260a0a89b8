"""What the daemon loads before it listens: each of these costs its start and every device."""

import subprocess
import sys


def run(program: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_daemon_does_not_load_what_only_some_hosts_need() -> None:
    """psutil is for hosts without ChromeOS's files, libcrypto for those with a store."""
    loaded = run("import sys, balloon_daemon.cli; print(*sys.modules)").split()
    assert {"psutil", "_hashlib", "balloon_daemon.trial"}.isdisjoint(loaded)
