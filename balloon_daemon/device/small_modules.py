"""Small modules in place of some of the standard library's, for the template alone.

Must be imported before the template imports anything else. Devices are forked from the template,
so what it has loaded is in the memory of each of them. ``socket`` and ``signal`` make enumerations
of all constants of the C modules ``_socket`` and ``_signal``, which have all that a device uses.
"""

import _signal  # type: ignore[import-not-found]  # typeshed has none
import _socket
import sys

from balloon_daemon import small_typing as small_typing

sys.modules.setdefault("socket", _socket)
sys.modules.setdefault("signal", _signal)
