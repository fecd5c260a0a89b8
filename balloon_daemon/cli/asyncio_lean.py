"""Imports asyncio without ssl; must be imported before any other module imports asyncio.

asyncio imports ssl for transports that balloond, which uses Unix sockets only, never creates, and
works without ssl where Python was built without it. That saves a twentieth of the daemon's start,
and, with libcrypto, which nothing else loads at the start, 5 MiB of the controller.
"""

import sys


def _import_without_ssl() -> None:
    if "ssl" in sys.modules or "asyncio" in sys.modules:
        return  # Too late: one of them has been loaded already.
    # None in sys.modules makes "import ssl" fail as if the module were missing (Python's
    # reference, "The module cache"): asyncio then loads without ssl.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio  # noqa: F401  # sys.modules keeps it
    finally:
        del sys.modules["ssl"]


_import_without_ssl()

import asyncio as asyncio  # noqa: E402
