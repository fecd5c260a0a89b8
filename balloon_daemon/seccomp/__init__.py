"""Minijail's seccomp policy files: parsed, judged, compiled, loaded.

What the daemon uses, all from ``seccomp.filter``::

    compile_policy(path, *, default=Action.KILL_PROCESS, arch=None,
                   dialect=Dialect.PYTHON) -> CompiledFilter
        in the controller, at start-up, before any fork. PolicyFileError carries every mistake
        of the file (``.problems``; ``str()`` shows file:line:column, the line and a caret);
        OSError: the file cannot be read, or is no file.
    CompiledFilter.load() -> None
        in the forked child, the last step of the jail, with no_new_privs set: one seccomp(2) call
        on memory that compile_policy has allocated. OSError: the kernel refuses.
    CompiledFilter.bpf: bytes            the program, an array of struct sock_filter
    CompiledFilter.warnings              PolicyProblems worth a log line each
    syscall_name(number) -> str
        to report a SIGSYS; reads a table, so it is never called in the jail.

For tools (``balloonctl seccomp``), besides those::

    filter.read_policy(path, *, default, arch, dialect, read) -> ParsedPolicy
    filter.load_arch() -> Arch           x86-64's; balloonctl has more (ctl/seccomp/arches.py)
    compiler.compile_bpf(policy) -> bytes
    evaluator.evaluate(policy, audit_arch, number, arguments) -> Answer
    libseccomp.second_opinion(policy, bpf) -> Opinion    for --check and ``seccomp check``

Modules: ``tokens`` → ``words`` → ``rules`` or ``c_rules`` → ``parser`` make a
``policy.ParsedPolicy`` of the text; ``evaluator`` tells the policy's answer to one call;
``compiler`` turns the policy into a graph of tests, and ``bpf`` turns the graph into a program.
All of these are pure; ``policy_file`` reads files for ``filter``. ``judge`` compares the program
with libseccomp's: ``span`` and ``flat_rules`` turn the policy into rules for libseccomp,
``libseccomp`` has the library compile the rules in a process of its own, and ``machine`` runs both
programs for the calls of ``probes``. ``constants`` describes an architecture; ``tables/`` has the
names of x86-64's calls and constants, made by ``policies/make_constants.py``.

The language and its surprises are in docs/policy-files.md.
"""
