"""What the daemon does not load before it listens: each costs milliseconds and megabytes."""

import subprocess
import sys


def run(program: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_daemon_does_not_load_what_only_some_hosts_need() -> None:
    """libcrypto is for hosts with a store, each driver for those whose VMs need it."""
    loaded = run("import sys, balloon_daemon.cli.run; print(*sys.modules)").split()
    assert {"_hashlib", "_ssl", "tomllib", "balloon_daemon.cli.trial"}.isdisjoint(loaded)
    drivers = ("guests.driven.", "guests.jailed.", "guests.libvirt.", "seccomp.compiler")
    assert [
        name for name in loaded if any(f"balloon_daemon.{each}" in name for each in drivers)
    ] == []


def test_lean_asyncio_works_and_has_no_ssl() -> None:
    program = """\
import sys
from balloon_daemon.cli.asyncio_lean import asyncio
import balloon_daemon.controller.loop
async def echo():
    ours, theirs = asyncio.Event(), await asyncio.create_subprocess_exec("true")
    ours.set()
    await asyncio.wait_for(ours.wait(), 5)
    return await theirs.wait()
print(asyncio.run(echo()), "_ssl" in sys.modules)
"""
    assert run(program) == "0 False\n"


def test_others_import_ssl_after_lean_asyncio() -> None:
    program = "from balloon_daemon.cli.asyncio_lean import asyncio; import ssl; print(ssl.HAS_SNI)"
    assert run(program) == "True\n"


def test_lean_asyncio_leaves_a_loaded_one_alone() -> None:
    program = """\
import ssl
from balloon_daemon.cli.asyncio_lean import asyncio
from asyncio import sslproto
print(sslproto.ssl is ssl)
"""
    assert run(program) == "True\n"
