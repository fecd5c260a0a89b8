"""``balloond``, the program: ``python -m balloon_daemon`` is the same."""

import sys

from balloon_daemon.device.template import start_template


def main() -> int:
    """Forks the template, and only then loads and runs all else; returns the exit status."""
    template = start_template()
    from balloon_daemon import cli

    try:
        return cli.main(template=template)
    finally:
        if template is not None:
            template.close()


if __name__ == "__main__":
    sys.exit(main())
