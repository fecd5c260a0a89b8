"""Target: what an operator types. A wrong flag is told in a line, status 2, never a traceback."""

import contextlib
import io

from balloon_daemon.cli.flags import build_parser
from balloon_daemon.errors import ConfigError
from balloon_daemon.units import format_size, parse_size
from tests.harness.enemies.choices import Choices
from tests.harness.invariants import require

_PARSER = build_parser()
_FLAGS = [
    "--vm-mem", "--socket", "--low-mem-dir", "--margin", "--policy", "--user", "--log", "--speed",
    "--keep-fds", "--no-page-reporting", "--check", "--verbose", "--version", "--help", "-v", "--",
    "--vm", "",
]  # fmt: skip


def run(data: bytes) -> None:
    """A size, then a whole command line."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(ConfigError):
        size_bytes = parse_size(text)
        require(1 <= size_bytes < 1 << 100 and format_size(size_bytes), "no size", size_bytes)
    choices = Choices(data)
    arguments = []
    for _ in range(choices.below(6)):
        arguments.append(choices.pick(_FLAGS))
        value = choices.take(choices.below(12)).decode("utf-8", "surrogateescape")
        if choices.chance(200):
            arguments.append(value)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            args = _PARSER.parse_args(arguments)
    except SystemExit as err:
        require(err.code in (0, 2), "another exit status", err.code, arguments)
        said = complaint.getvalue()
        require(err.code == 0 or said.startswith("balloond: "), "no complaint", said, arguments)
        require("Traceback" not in said, "a traceback", said)
    else:
        require(args.vm_mem is None or args.vm_mem >= 1, "a VM of nothing", args.vm_mem)
        require(0.1 <= args.speed <= 1000, "a speed that is none", args.speed)
