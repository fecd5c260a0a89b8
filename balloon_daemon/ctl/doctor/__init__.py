"""``balloonctl doctor``: known causes why balloons do not help a host, each with its remedy.

``host_checks`` and ``vm_checks`` are pure: facts in, findings out. ``reader`` has the facts from
/proc and /sys, ``main`` asks balloond for the others.
"""
