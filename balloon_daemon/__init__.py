"""balloond: takes memory back from VMs when the host runs low, and returns it later."""

import sys

# Python 3.15 can import all modules at their first use (PYTHON_LAZY_IMPORTS=all). A device would
# then open a module's file inside its jail, whose filter kills it for that.
getattr(sys, "set_lazy_imports", lambda mode: None)("normal")

__version__ = "0.1.0"
