"""balloond: takes memory back from VMs when the host runs low, and returns it later."""

import sys

# Python 3.15 can import all modules at their first use (PYTHON_LAZY_IMPORTS=all). In a device that
# would be inside its jail, which kills it for opening a file.
getattr(sys, "set_lazy_imports", lambda mode: None)("normal")

__version__ = "0.1.0"
