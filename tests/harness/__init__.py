"""Code that tests of several kinds share: the daemon, its host, VMs, rigs, enemies, and
waiting."""
