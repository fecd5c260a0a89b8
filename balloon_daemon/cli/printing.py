"""Prints for people: a full disk or a closed pipe must neither end balloond nor block it."""

import os
import sys
from typing import TextIO

from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import VmConfig
from balloon_daemon.errors import printable
from balloon_daemon.linux.signals import Interruptible
from balloon_daemon.linux.systemd import logs_to_journal, runs_as_service
from balloon_daemon.units import format_size


def show(text: str) -> None:
    """Prints text on which nothing depends: errors of a full disk or a closed pipe are ignored."""
    try:
        # backslashreplace: a path in the text need not be valid UTF-8, and print() would raise an
        # error for such a path.
        print(text.encode(errors="backslashreplace").decode(), flush=True)
    except OSError:
        print_no_more(sys.stdout)


def complain(message: str) -> None:
    """Prints why balloond does not run; a full disk or a closed pipe changes no exit status."""
    try:
        with Interruptible():
            print(message, file=sys.stderr, flush=True)
    except (KeyboardInterrupt, OSError):
        print_no_more(sys.stderr)


def answer(text: str) -> bool:
    """Prints what was asked for.

    Returns:
        False where the text could not be printed. A line on standard error says so, unless the
        output's reader has gone (EPIPE), which is no error.
    """
    try:
        print(text.encode(errors="backslashreplace").decode(), flush=True)
    except OSError as err:
        print_no_more(sys.stdout)
        if not isinstance(err, BrokenPipeError):
            complain(f"balloond: standard output: {err.strerror}; write it to another place")
        return False
    return True


def print_no_more(stream: TextIO) -> None:
    """Redirects the stream to /dev/null: a flush of its buffer at exit would fail again, or
    block."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def is_for_people(fd: int) -> bool:
    """Whether a person may read the output: not where a service manager collects it."""
    # Test for a terminal first: a program in a terminal that itself runs as a service inherits the
    # service's environment variables, and would look like a service.
    return os.isatty(fd) or not (runs_as_service() or logs_to_journal(fd))


def how_to_attach(config: Config) -> str:
    """The options of crosvm and of QEMU that give a VM its balloon here; several lines."""
    first, *others = config.own_sockets
    size, socket = first.vm_mem_bytes, first.address
    mem = "SIZE" if size is None else f"{size >> 20}M"
    crosvm_mem = "MIB" if size is None else f"{size >> 20}"
    the_vm = f"the VM {first.name}" if first.name else "a VM"
    more = "".join(f"\nThe same for the VM {vm.name}, at {vm.address}\n" for vm in others)
    return f"""\
Attach {the_vm} to {socket}

  crosvm:
    crosvm run --mem {crosvm_mem} --no-balloon --vhost-user balloon,socket={socket} ...

  QEMU 10.2 or newer:
    qemu-system-x86_64 ... -m {mem} \\
      -object memory-backend-memfd,id=mem,size={mem},share=on -machine q35,memory-backend=mem \\
      -chardev socket,id=balloond,path={socket} \\
      -device vhost-user-test-device-pci,chardev=balloond,virtio-id=5,num_vqs=5,config_size=16
{more}"""


def vm_said(vm: VmConfig) -> str:
    """A VM's name, how it is reached, and the settings that are its own."""
    settings = vm.settings
    words = [f"by {vm.kind.value} at {printable(vm.address)}", settings.profile.value]
    if settings.priority:
        words.append(f"priority {settings.priority}")
    if settings.floor_bytes is not None:
        words.append(f"floor {format_size(settings.floor_bytes)}")
    if settings.ceiling_bytes is not None:
        words.append(f"ceiling {format_size(settings.ceiling_bytes)}")
    return f"{vm.name}: {', '.join(words)}"


def limits_said(vm_mem_bytes: int, most_bytes: int) -> str:
    """How much a VM's balloon may take of its memory, in bytes, and how much is left."""
    least = format_size(vm_mem_bytes - most_bytes)
    if not most_bytes:
        return f"keeps all of its {least}"
    return f"balloon of at most {format_size(most_bytes)}, so it keeps {least}"
