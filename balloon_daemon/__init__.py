"""balloond: takes memory back from VMs when the host runs low, and returns it later."""

import sys

# Python 3.15 can be told to import everything at its first use (PYTHON_LAZY_IMPORTS=all). For a
# device that would be in its jail, where it dies of opening a file.
getattr(sys, "set_lazy_imports", lambda mode: None)("normal")

__version__ = "0.1.0"
