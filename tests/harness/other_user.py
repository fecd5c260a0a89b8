"""Doing something as another user, within this process; only root can."""

import contextlib
import os
from collections.abc import Iterator

NOBODY = 65534


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """What is done meanwhile, a connect(2) for example, is this user's."""
    before = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before)
