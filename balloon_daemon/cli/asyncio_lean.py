"""asyncio without ssl: whoever imports it from here first has one that never loads OpenSSL.

asyncio imports ssl for transports that balloond, which speaks to Unix sockets only, never makes,
and does without where Python was built without it. That is a twentieth of the daemon's start, and
with libcrypto, which nothing else loads at the start, 5 MiB of the controller.
"""

import sys


def _import_without_ssl() -> None:
    if "ssl" in sys.modules or "asyncio" in sys.modules:
        return  # too late to save anything
    # None is how to say that there is no such module (the import system, "The module cache").
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio  # noqa: F401  # sys.modules keeps it
    finally:
        del sys.modules["ssl"]


_import_without_ssl()

import asyncio as asyncio  # noqa: E402
