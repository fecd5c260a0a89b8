"""Runs a command under a filter, and watches it and all of its children by ptrace.

``run`` and ``trace`` share this loop: ``run`` reports calls for which the filter kills, and the
filter of ``trace`` stops at every call. The filter starts at the program's entry, after the
dynamic loader, or before the command is executed.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from balloon_daemon.ctl.seccomp import ptrace
from balloon_daemon.ctl.seccomp.inject import EntryPoint
from balloon_daemon.linux.own_module import own_module

_OPTIONS = (
    ptrace.PTRACE_O_EXITKILL
    | ptrace.PTRACE_O_TRACEFORK
    | ptrace.PTRACE_O_TRACEVFORK
    | ptrace.PTRACE_O_TRACECLONE
    | ptrace.PTRACE_O_TRACEEXEC
    | ptrace.PTRACE_O_TRACEEXIT
    | ptrace.PTRACE_O_TRACESECCOMP
)


class Start(Enum):
    """From which system call on the filter judges the command: the first one after the program's
    entry point, or execve."""

    ENTRY = "entry"
    EXEC = "exec"


@dataclass(slots=True)
class Watch:
    """One command, watched until the command and all of its children have ended.

    Attributes:
        command: the program and its arguments.
        bpf: the filter.
        start: from which system call on the filter judges the command.
        on_call: called for each call that the filter answered with TRACE.
        on_kill: called for each call that ended a thread with SIGSYS, or was answered with TRAP.
    """

    command: Sequence[str]
    bpf: bytes
    start: Start
    on_call: Callable[[int, ptrace.Call], None]
    on_kill: Callable[[int, ptrace.Call], None]
    _root: int = 0
    _entry: EntryPoint | None = None
    _filtered: bool = False
    _live: set[int] = field(default_factory=set)

    def run(self) -> int:
        """Runs the command to its end.

        Returns:
            Its exit status, or 128 and the number of the signal that ended it.

        Raises:
            FileNotFoundError: there is no such command.
            OSError: the command cannot be traced.
            UnsupportedProgramError: the command cannot be filtered from its entry.
        """
        path = shutil.which(self.command[0])
        if path is None:
            raise FileNotFoundError(2, "no such command", self.command[0])
        self._root = self._spawn(path)
        result = 0
        try:
            while self._live:
                pid, status = os.waitpid(-1, ptrace.WALL)
                if os.WIFSTOPPED(status):
                    self._stopped(pid, status)
                    continue
                self._live.discard(pid)
                if pid == self._root:
                    result = os.waitstatus_to_exitcode(status)
        finally:
            for pid in self._live:  # after an error of ours: leave no stopped process behind
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, ptrace.WALL)
            if self._entry is not None:
                self._entry.close()
        return result if result >= 0 else 128 - result

    def _spawn(self, path: str) -> int:
        source = "-"
        memory = -1
        if self.start is Start.EXEC:
            memory = os.memfd_create("filter", 0)
            os.write(memory, self.bpf)
            os.lseek(memory, 0, os.SEEK_SET)
            os.set_inheritable(memory, True)
            source = str(memory)
        child = [*own_module("balloon_daemon.ctl.seccomp.child"), source, path]
        pid = os.posix_spawn(sys.executable, [*child, *self.command], os.environ)
        if memory >= 0:
            os.close(memory)
        _, status = os.waitpid(pid, ptrace.WALL)
        if not os.WIFSTOPPED(status):
            raise PermissionError(1, "cannot trace here; is ptrace allowed?")
        self._live.add(pid)
        ptrace.set_options(pid, _OPTIONS)
        ptrace.resume(pid)
        return pid

    def _stopped(self, pid: int, status: int) -> None:
        stop, event = os.WSTOPSIG(status), status >> 16
        try:
            deliver = self._event(pid, event) if event else self._signal(pid, stop)
            ptrace.resume(pid, deliver)
        except ProcessLookupError:
            pass  # killed meanwhile by another thread's exit_group: its status comes next

    def _event(self, pid: int, event: int) -> int:
        self._live.add(pid)
        if event == ptrace.PTRACE_EVENT_SECCOMP:
            self.on_call(pid, ptrace.current_call(pid))
        elif event == ptrace.PTRACE_EVENT_EXIT:
            # The event's message is the thread's wait status: its low 7 bits are the signal that
            # kills the thread, bit 7 says that a core was dumped.
            if ptrace.event_message(pid) & 0x7F == signal.SIGSYS:
                self.on_kill(pid, ptrace.current_call(pid))
        elif event == ptrace.PTRACE_EVENT_EXEC and pid == self._root and not self._filtered:
            self._filtered = True
            if self.start is Start.ENTRY:
                self._entry = EntryPoint(pid)
        return 0

    def _signal(self, pid: int, number: int) -> int:
        if pid not in self._live:
            self._live.add(pid)  # a new thread or child: ptrace itself stops it first
            return 0 if number == signal.SIGSTOP else number
        if number == signal.SIGTRAP and self._entry is not None and pid == self._root:
            if self._entry.reached():
                self._entry.load(self.bpf)
                self._entry.close()
                self._entry = None
                return 0
        elif number == signal.SIGSYS:
            self.on_kill(pid, ptrace.current_call(pid))
        return number
