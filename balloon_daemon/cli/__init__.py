"""The command line of balloond, and the only place where its parts are put together."""

# Import this module first, before any module of the command line imports argparse or pathlib: it
# keeps these from loading modules that balloond seldom needs.
from balloon_daemon.cli import asyncio_lean as asyncio_lean
