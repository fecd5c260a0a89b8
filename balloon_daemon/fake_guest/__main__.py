"""``python -m balloon_daemon.fake_guest``."""

import sys

from balloon_daemon.fake_guest.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
