"""Coverage-guided and random campaigns against balloond; ``python -m tests.fuzz --time 600``.

A *target* takes bytes and makes a conversation, a hostile guest, a file of them; it raises for
what must not be. ``targets.py`` lists them. ``guided.py`` runs one under atheris, ``unguided.py``
without it (a short slice for ``make test``), ``replay.py`` one input again. Three more campaigns
need more than bytes: ``state_machine.py`` (Hypothesis, back-end and device together),
``whole_daemon.py`` (a real balloond between hostile VMMs and an honest guest) and
``hostile_users.py`` (one user with many connections beside that guest).
"""
