"""What another controller has left in a store, guest by guest."""

from collections.abc import Iterator
from dataclasses import dataclass

from balloon_daemon.errors import StateFileError
from balloon_daemon.handover.room import STATE
from balloon_daemon.handover.state import MAX_STATE_BYTES, GuestState, decode_state
from balloon_daemon.handover.store import Store
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import read_sealed


@dataclass(frozen=True, slots=True)
class KeptGuest:
    """A guest that another controller left.

    Attributes:
        name: its name.
        serial: of its newest state.
        state: that state; or why it cannot be used.
        fds: its descriptors by number.
    """

    name: str
    serial: int
    state: GuestState | StateFileError
    fds: dict[int, OwnedFd]


def find_guests(store: Store) -> Iterator[KeptGuest]:
    """Takes every guest out of what a store has kept, in the order of their names."""
    names = {name.partition(".")[0] for name in store.kept if "." in name}
    for name in sorted(names, key=lambda name: (len(name), name)):
        fds: dict[int, OwnedFd] = {}
        states: dict[int, OwnedFd] = {}
        for key in [key for key in store.kept if key.startswith(f"{name}.")]:
            fd = store.kept.pop(key)
            kind, _, number = key.rpartition("-") if STATE in key else key.rpartition(".")
            if number.isascii() and number.isdigit():
                (states if kind == f"{name}{STATE[:-1]}" else fds)[int(number)] = fd
            else:
                store.remove(key)
        newest = max(states, default=0)
        state = _decode(name, states.get(newest), fds)
        for serial, fd in states.items():
            fd.close()
            if serial != newest:
                store.remove(f"{name}{STATE}{serial}")
        yield KeptGuest(name, newest, state, fds)


def discard(store: Store, guest: KeptGuest) -> None:
    """Closes a guest that cannot be gone on with: its VMM sees its connection end."""
    store.remove(f"{guest.name}{STATE}{guest.serial}")
    for number, fd in guest.fds.items():
        store.remove(f"{guest.name}.{number}")
        fd.close()


def _decode(
    name: str, memory: OwnedFd | None, fds: dict[int, OwnedFd]
) -> GuestState | StateFileError:
    if memory is None:
        return StateFileError("is not there")
    try:
        state = decode_state(read_sealed(memory.fileno(), MAX_STATE_BYTES))
    except (OSError, ValueError) as err:
        return StateFileError(f"cannot be read: {err}")
    except StateFileError as err:
        return err
    missing = state.fds() - fds.keys()
    if missing:
        return StateFileError(f"names {len(missing)} descriptors that were not kept")
    return state if state.name == name else StateFileError(f"is that of {state.name!r}")
