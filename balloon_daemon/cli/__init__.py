"""The command line of balloond, and the only place where its parts are put together."""

# Before any module of the command line imports argparse or pathlib; see the module.
from balloon_daemon.cli import asyncio_lean as asyncio_lean
