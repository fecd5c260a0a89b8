"""balloond on a host whose ChromeOS driver is a directory: ``DIRECTORY OPTION...``.

``DIRECTORY/low_mem`` stands for ``/sys/kernel/mm/chromeos-low_mem`` and the FIFO
``DIRECTORY/device`` for ``/dev/chromeos-low-mem``; all else is balloond as it is.
"""

import sys

from balloon_daemon.device.template import Template


def main() -> int:
    """Runs balloond there; returns its exit status."""
    template = Template()
    from balloon_daemon.cli import run as cli
    from balloon_daemon.host import low_memory

    # An absolute path takes the place of what it is joined to. To import pathlib here, before
    # balloond does, would load what balloond does without.
    directory = low_memory.CHROMEOS_DIR / sys.argv[1]
    low_memory.CHROMEOS_DIR = directory / "low_mem"
    low_memory.CHROMEOS_DEVICE = directory / "device"
    return cli.main(sys.argv[2:], template)


if __name__ == "__main__":
    sys.exit(main())
