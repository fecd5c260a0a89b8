"""Soak: hours of faults in minutes, with every page checked; ``python -m tests.soak --time 600``.

``world.py`` is what is soaked: two balloonds and their guests. ``chaos.py`` is what happens to
them. ``gauges.py`` measures what must stay flat, ``picture.py`` draws it.

Then come attacks, one after the other: ``attacks.py`` holds one balloond against each,
``neighbour.py`` is the honest guest that waits meanwhile, ``hostile_user.py`` the enemy's process,
``hostile_acts.py`` and ``hostile_device.py`` what it does.
"""
