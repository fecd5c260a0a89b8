"""``python -m balloon_daemon`` is ``balloond``."""

import sys

from balloon_daemon.cli import main

if __name__ == "__main__":
    sys.exit(main())
