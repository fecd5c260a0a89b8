"""Soak: hours of faults in minutes, with every page checked; ``python -m tests.soak --time 600``.

``world.py`` is what is soaked: two balloonds and their guests. ``chaos.py`` is what happens to
them. ``gauges.py`` measures what must stay flat, ``picture.py`` draws it.
"""
