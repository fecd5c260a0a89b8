"""balloond: takes memory back from VMs when the host runs low, and returns it later."""

__version__ = "0.1.0"
