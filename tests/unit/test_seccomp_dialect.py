"""The C dialect: what minijail0 -S makes of a policy file, and where the two readings part.

What is right stands here by hand; each line of it was asked of the minijail0 of 2026.
"""

import pytest

from balloon_daemon.ctl.seccomp.judged_call import parse_call
from balloon_daemon.errors import PolicyFileError
from balloon_daemon.seccomp.evaluator import evaluate
from balloon_daemon.seccomp.filter import load_arch
from balloon_daemon.seccomp.parser import parse_policy
from balloon_daemon.seccomp.policy import Action, Dialect, ParsedPolicy
from tests.harness.faults import fault

ARCH = load_arch()
C, PYTHON = Dialect.C, Dialect.PYTHON
KILL = "KILL_PROCESS"


def parse(
    text: str,
    dialect: Dialect = C,
    files: dict[str, str] | None = None,
    path: str = "p/test.policy",
) -> ParsedPolicy:
    def read(name: str) -> str:
        if name not in (files or {}):
            raise FileNotFoundError(2, "No such file or directory")
        return (files or {})[name]

    return parse_policy(
        text,
        path=path,
        arch=ARCH,
        read=read,
        dialect=dialect,
        is_another=lambda name, other: other in (files or {}) and name in (files or {}),
    )


def judge(policy: ParsedPolicy, *calls: str) -> list[str]:
    told = []
    for call in calls:
        number, args = parse_call(call, ARCH)
        arguments = [*args, *[0] * (6 - len(args))]
        verdict = evaluate(policy, ARCH.abi.audit_arch, number, arguments).verdict
        errno = f" {verdict.errno}" if verdict.action is Action.ERRNO else ""
        told.append(verdict.action.name + errno)
    return told


def mistakes(text: str, dialect: Dialect = C, files: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(PolicyFileError) as caught:
        parse(text, dialect, files)
    return [f"{p.file}:{p.line}:{p.column}: {p.message}" for p in caught.value.problems]


# --- what a line means ----------------------------------------------------------------------


@pytest.mark.parametrize("error", ["1", "EPERM", "0x1", "01"])
def test_condition_and_return_allow_where_it_holds_and_fail_where_not(error: str) -> None:
    text = f"socket: arg0 == AF_UNIX; return {error}"
    calls = ["socket(AF_UNIX)", "socket(AF_INET)"]
    assert judge(parse(text, C), *calls) == ["ALLOW", "ERRNO 1"]
    assert judge(parse(text, PYTHON), *calls) == ["ERRNO 1", KILL]


@fault("policy file that minijail's two compilers read differently")
@pytest.mark.parametrize(
    ("line", "verdicts"),
    [
        ("1", ["ALLOW", "ALLOW", "ALLOW"]),
        ("return EPERM", ["ERRNO 1"] * 3),
        ("return", [KILL] * 3),
        ("arg0 == 1", ["ALLOW", KILL, KILL]),
        ("arg0 == 1; return", ["ALLOW", KILL, KILL]),
        ("arg0 == 1;", ["ALLOW", KILL, KILL]),
        ("arg0 == 1 || arg0 == 2; return EIO", ["ALLOW", "ALLOW", "ERRNO 5"]),
        ("arg0 != 1 && arg0 != 2; return EIO", ["ERRNO 5", "ERRNO 5", "ALLOW"]),
        ("arg0 == 1; return EPERM|ENOSYS", ["ALLOW", "ERRNO 39", "ERRNO 39"]),
        ("arg0 == 1; return 0", ["ALLOW", "ERRNO 0", "ERRNO 0"]),
        ("arg0 == 1; return 5000", ["ALLOW", "ERRNO 5000", "ERRNO 5000"]),
        ("arg0 == 1; return 0x10001", ["ALLOW", "ERRNO 1", "ERRNO 1"]),
        ("arg0 == 1; return \\\nEPERM", ["ALLOW", "ERRNO 1", "ERRNO 1"]),
        ("arg0 in 1; return EPERM # a comment", ["ALLOW", "ERRNO 1", "ERRNO 1"]),
    ],
)
def test_line_means_what_it_means_to_minijails_c_compiler(line: str, verdicts: list[str]) -> None:
    policy = parse(f"read: {line}\nwrite: 1\n")
    assert judge(policy, "read(1)", "read(2)", "read(3)") == verdicts
    assert judge(policy, "write", "close") == ["ALLOW", KILL]


def test_default_of_the_command_line_counts() -> None:
    text = "read: arg0 == 1\nwrite: return\nclose: arg0 == 1; return"
    policy = parse_policy(
        text, path="p", arch=ARCH, read=str, default=Action.TRAP, dialect=Dialect.C
    )
    calls = ["read(1)", "read(2)", "write", "close(1)", "close(2)", "dup"]
    assert judge(policy, *calls) == ["ALLOW", "TRAP", "TRAP", "ALLOW", "TRAP", "TRAP"]


# --- what it does not take ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("read: allow", "takes 1, return or a condition, not 'allow'"),
        ("read: kill", "takes 1, return or a condition, not 'kill'"),
        ("read: log", "takes 1, return or a condition, not 'log'"),
        ("read: 0x1", "takes 1, return or a condition, not '0x1'"),
        ("read: 2", "takes 1, return or a condition, not '2'"),
        ("read: arg0 == 1; kill", "takes return after ';', not 'kill'"),
        ("read: arg0 == 1; 1", "takes return after ';', not '1'"),
        ("read:", "expected 1, return or a condition here"),
        ("read: { arg0 == 1, 1 }", "has no lists of filters"),
        ("{ read, write }: 1", "has no groups of calls"),
        ("read[arch=x86_64]: 1", "has no […] behind a call"),
        ("@default trap", "has no @default"),
        ("@denylist", "has no @denylist"),
        ("@loop", "unknown directive @loop"),
        ("read: return -1", "takes no error −1"),
        ("read: arg0 == 1; return 0xffffffff", "takes no error −1"),
        ("read: return(EPERM)", "sees an error only after return and a space"),
        ("read: arg0 == 1; return~1", "sees an error only after return and a space"),
        ("read: return\tEPERM", "sees an error only after return and a space"),
        ("read: return# EPERM", "takes this '#' for a part of the word before it"),
        ("read: arg0 == 0x1#0", "takes this '#' for a part of the word before it"),
        # What it passes over in silence.
        ("read: return EPERM EIO", "nothing may follow"),
        ("read: arg0 == 1; return EPERM; return EIO", "nothing may follow"),
        ("read: returns", "takes 1, return or a condition, not 'returns'"),
        ("read: 1 \0", "'\\x00' is not part of the language"),
    ],
)
def test_line_that_minijails_c_compiler_does_not_take_is_refused(line: str, message: str) -> None:
    assert [message in told for told in mistakes(f"close: 1\n{line}\ndup: 1")] == [True]


@pytest.mark.parametrize(
    "again", ["read: 1", "read: arg0 == 2", "read: return EPERM", "@include ./again"]
)
def test_call_has_one_line(again: str) -> None:
    told = mistakes(f"read: arg0 == 1\n{again}", files={"again": "read: 1"})
    assert ["read has a line already at p/test.policy:1" in m for m in told] == [True]


def test_frequency_is_passed_over_unread() -> None:
    assert judge(parse("@frequency ./none\nread: 1"), "read") == ["ALLOW"]


# --- includes -------------------------------------------------------------------------------


def test_include_is_relative_to_the_working_directory() -> None:
    files = {"a.policy": "read: 1", "p/a.policy": "write: 1"}
    assert judge(parse("@include ./a.policy", C, files), "read", "write") == ["ALLOW", KILL]
    assert judge(parse("@include ./a.policy", PYTHON, files), "read", "write") == [KILL, "ALLOW"]


@pytest.mark.parametrize("path", ["/abs/a", "./sub/a", "./../a"])
def test_include_goes_one_level_deep(path: str) -> None:
    name = path.removeprefix("./")
    files = {name: "@include ./b\nread: 1", "b": "write: 1", "sub/b": "write: 1"}
    assert mistakes(f"@include {path}\nclose: 1", C, files) == [
        f"{name}:1:10: includes are nested more than 1 deep; minijail's C compiler reads one level"
    ]


def test_include_of_a_file_with_a_hash_in_its_name_is_read() -> None:
    assert judge(parse("  @include ./a#b # why", C, {"a#b": "read: 1"}), "read") == ["ALLOW"]


def test_include_of_several_files_is_one_level() -> None:
    files = {"a": "read: 1", "b": "write: 1"}
    assert judge(parse("@include ./a\n@include ./b", C, files), "read", "write") == ["ALLOW"] * 2


@pytest.mark.parametrize(
    ("dialect", "told"),
    [
        (C, "a.policy is read, and minijail's Python compiler reads p/a.policy instead"),
        (PYTHON, "p/a.policy is read, and minijail's C compiler reads a.policy instead"),
    ],
)
def test_include_of_another_file_for_the_other_compiler_is_warned_of(
    dialect: Dialect, told: str
) -> None:
    both = {"a.policy": "read: 1", "p/a.policy": "read: 1"}
    assert [w.message for w in parse("@include ./a.policy", dialect, both).warnings] == [told]
    for name in both:
        one = {name: "read: 1", "/b": "read: 1"}
        text = "@include ./a.policy" if (name == "a.policy") == (dialect is C) else "@include /b"
        assert parse(text, dialect, one).warnings == ()


# --- comments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "# goes on \\\nread: 1\nwrite: 1",
        " \t# goes on \\\n# and on \\\nread: 1\nwrite: 1",
        "#\\\nread: \\\n 1\nwrite: 1",
        "# a carriage return\rread: 1\nwrite: 1",
        "# two\r\rread: 1\nwrite: 1",
    ],
)
def test_comment_that_goes_on_hides_a_statement_and_is_warned_of(text: str) -> None:
    in_c, in_python = parse(text, C), parse(text, PYTHON)
    assert judge(in_c, "read", "write") == [KILL, "ALLOW"]
    assert judge(in_python, "read", "write") == ["ALLOW", "ALLOW"]
    for policy, message in ((in_c, "is a part of it"), (in_python, "is read as a statement")):
        assert [(w.line, message in w.message) for w in policy.warnings] == [(1, True)]


@pytest.mark.parametrize(
    "text",
    [
        "# goes on \\\n# and ends\nread: 1",
        "# goes on \\\n\nread: 1",
        "# windows \\\r\n\r\nread: 1\r\n",
        "# a carriage return\r# and a comment\nread: 1",
        "# ends with one\r\nread: 1",
        "read: 1 # goes on",
        "read: arg0 == 1 || \\\n arg0 == 0",
    ],
)
@pytest.mark.parametrize("dialect", Dialect)
def test_comment_that_hides_nothing_is_not_warned_of(text: str, dialect: Dialect) -> None:
    policy = parse(text, dialect)
    assert policy.warnings == ()
    assert judge(policy, "read") == ["ALLOW"]


def test_continued_line_of_a_crlf_file_is_refused() -> None:
    assert mistakes("read: arg0 == 1 || \\\r\n arg0 == 2")[0].startswith(
        "p/test.policy:1:20: '\\\\'"
    )


# --- warnings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "first", "other"),
    [
        (C, "where the expression holds, the call is allowed", "Python compiler reads it the ot"),
        (PYTHON, "where the expression holds, the call fails", "C compiler reads it the other"),
    ],
)
def test_return_is_warned_of_with_both_meanings_and_all_places(
    dialect: Dialect, first: str, other: str
) -> None:
    lines = [f"{call}: arg0 == 1; return EPERM" for call in ("read", "write", "close", "dup")]
    files = {"/inc": "mmap: arg0 == 1; return EPERM"}
    policy = parse("\n".join(["ppoll: 1", *lines, "@include /inc"]), dialect, files)
    (warning,) = policy.warnings
    assert (warning.file, warning.line, warning.column) == ("p/test.policy", 2, 18)
    assert first in warning.message
    assert other in warning.message
    assert warning.message.endswith("; also at line 3, line 4, line 5, /inc:1")


def test_many_places_of_a_warning_are_counted() -> None:
    calls = list(ARCH.calls)[:40]
    policy = parse("\n".join(f"{call}: arg0 == 1; return EPERM" for call in calls))
    ends = "; also at line 2, line 3, line 4, line 5, line 6, 34 places more"
    assert policy.warnings[0].message.endswith(ends)


@pytest.mark.parametrize("line", ["arg0 == 1", "return EPERM", "1", "arg0 == 1; return"])
def test_line_that_means_the_same_to_both_is_not_warned_of(line: str) -> None:
    assert parse(f"read: {line}").warnings == ()


@pytest.mark.parametrize("errno", ["4096", "0x10000", "~0xf"])
def test_return_of_no_error_number_is_warned_of(errno: str) -> None:
    messages = [w.message for w in parse(f"read: return {errno}").warnings]
    assert ["is no error number: they end at 4095" in m for m in messages] == [True]
