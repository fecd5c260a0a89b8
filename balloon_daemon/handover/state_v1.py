"""Reads states of version 1, which balloond wrote before version 2. Pure.

They are read for one release, so that VMs keep their balloons through the update; after that this
module is deleted. Version 1 had one JSON object for everything, a SHA-256 as its checksum, and the
VM's number only in its name (``vm7``).
"""

import json
import re

from balloon_daemon.errors import StateFileError

_NAME = re.compile(r"vm([0-9]{1,18})")


def read_v1(body: bytes, checksum: str) -> dict[str, object]:
    """The version 2 object with the same content. Its fields are not checked yet.

    Args:
        body: the state without its first line.
        checksum: the last word of that line.

    Raises:
        StateFileError: the checksum is wrong.
        ValueError, TypeError, KeyError, RecursionError: the body is no state of version 1.
    """
    # Import hashlib only here: it loads libcrypto, 3.6 MiB, and only states of version 1 need it.
    import hashlib

    if checksum != hashlib.sha256(body).hexdigest():
        raise StateFileError("is damaged: its checksum is wrong")
    fields = json.loads(body)
    name = _NAME.fullmatch(fields["name"])
    if name is None:
        raise ValueError(f"a guest named {fields['name']!r}")
    row = None
    if fields["policy"] is not None:
        level, recheck_at_s, release_at_s = fields["policy"]
        row = {
            "vm_mem_bytes": fields["vm_mem_bytes"],
            "level": level,
            "recheck_at_s": recheck_at_s,
            "release_at_s": release_at_s,
        }
    jailed = {
        key: fields[key]
        for key in ("messages", "handled", "num_pages", "actual", "connection", "journal")
    }
    return {
        "vm": {"number": int(name[1]), "name": name[0], "row": row},
        "jailed": jailed | {"stderr_pipe": fields["life"]},
    }
