"""The policy language: what each construct means, and what each mistake is told."""

import pytest

from balloon_daemon.ctl.seccomp.arches import load_arch
from balloon_daemon.ctl.seccomp.judged_call import parse_call
from balloon_daemon.errors import PolicyFileError
from balloon_daemon.seccomp.evaluator import evaluate
from balloon_daemon.seccomp.parser import parse_policy
from balloon_daemon.seccomp.policy import Action, ParsedPolicy

X86_64 = load_arch("x86_64")
AARCH64 = load_arch("aarch64")
MAX = 2**64 - 1


def parse(
    text: str,
    files: dict[str, str] | None = None,
    arch: str = "x86_64",
    path: str = "p/test.policy",
) -> ParsedPolicy:
    def read(name: str) -> str:
        if name not in (files or {}):
            raise FileNotFoundError(2, "No such file or directory")
        return (files or {})[name]

    known = {"x86_64": X86_64, "aarch64": AARCH64}[arch]
    return parse_policy(text, path=path, arch=known, read=read)


def judge(policy: ParsedPolicy, call: str) -> str:
    arch = X86_64 if policy.abi.name == "x86_64" else AARCH64
    number, args = parse_call(call, arch)
    verdict = evaluate(
        policy, arch.abi.audit_arch, number, [*args, *[0] * (6 - len(args))]
    ).verdict
    return f"ERRNO {verdict.errno}" if verdict.action is Action.ERRNO else verdict.action.name


def judge_all(text: str, *calls: str) -> list[str]:
    policy = parse(text)
    return [judge(policy, call) for call in calls]


def mistakes(text: str, files: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(PolicyFileError) as caught:
        parse(text, files)
    return [f"{p.file}:{p.line}:{p.column}: {p.message}" for p in caught.value.problems]


def value(text: str) -> int:
    rule = parse(f"read: arg0 == {text}").calls[0].filters[0]
    assert rule.clauses is not None
    return rule.clauses[0][0].value


# --- actions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "verdict"),
    [
        ("1", "ALLOW"),
        ("0x1", "ALLOW"),
        ("allow", "ALLOW"),
        ("kill", "KILL_PROCESS"),
        ("kill-process", "KILL_PROCESS"),
        ("kill-thread", "KILL_THREAD"),
        ("trap", "TRAP"),
        ("trace", "TRACE"),
        ("log", "LOG"),
        ("user-notify", "USER_NOTIF"),
        ("return EPERM", "ERRNO 1"),
        ("return 0", "ERRNO 0"),
        ("return 0x26", "ERRNO 38"),
        ("return -1", "ERRNO 65535"),
    ],
)
def test_action_means_its_verdict(action: str, verdict: str) -> None:
    assert judge_all(f"read: {action}", "read") == [verdict]
    assert judge_all(f"read: arg0 == 7; {action}", "read(7)", "read(8)") == [
        verdict,
        "KILL_PROCESS",
    ]


@pytest.mark.parametrize("default", ["kill-process", "kill-thread", "trap", "user-notify"])
def test_default_decides_unlisted_calls_and_failed_conditions(default: str) -> None:
    name = {"user-notify": "USER_NOTIF"}.get(default, default.upper().replace("-", "_"))
    text = f"read: arg0 == 1\n@default {default}\nwrite: 1"
    assert judge_all(text, "read(1)", "read(2)", "close", "write") == [
        "ALLOW",
        name,
        name,
        "ALLOW",
    ]


def test_default_given_twice_last_one_counts() -> None:
    assert judge_all("@default trap\nread: 1\n@default kill-thread", "close") == ["KILL_THREAD"]


@pytest.mark.parametrize("default", ["allow", "log", "trace", "1", "return EPERM", "sigsys"])
def test_default_that_lets_calls_through_is_refused(default: str) -> None:
    assert "cannot be the default" in mistakes(f"read: 1\n@default {default}")[0]


def test_kill_is_a_call_and_an_action() -> None:
    assert judge_all("kill: kill-thread\nread: kill", "kill", "read") == [
        "KILL_THREAD",
        "KILL_PROCESS",
    ]


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("10", 10),
        ("0x10", 16),
        ("0XfF", 255),
        ("010", 8),
        ("00", 0),
        ("0o17", 15),
        ("-1", MAX),
        ("-0x10", MAX - 15),
        ("-010", MAX - 7),
        ("-9223372036854775808", 2**63),
        ("18446744073709551615", MAX),
        ("~0", MAX),
        ("~0xfffffffb", 0xFFFFFFFF00000004),
        ("1|2|4", 7),
        ("1 | 2", 3),
        ("(1|2)|(4)", 7),
        ("~(1|2)", MAX - 3),
        ("~1|1", MAX),
        ("((3))", 3),
        ("PROT_READ|PROT_EXEC", 5),
        ("~PROT_EXEC", MAX - 4),
        ("AT_FDCWD", MAX - 99),
        ("MADV_REMOVE", 9),
        ("O_CLOEXEC", 0o2000000),
        ("TCGETS", 0x5401),
        ("TUNSETIFF", 0x400454CA),
        ("CLONE_NEWUSER", 0x10000000),
    ],
)
def test_value_is_a_64_bit_number(text: str, number: int) -> None:
    assert value(text) == number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("18446744073709551616", "does not fit into 64 bits"),
        ("-9223372036854775809", "does not fit into 64 bits"),
        ("08", "is not a decimal, octal or hexadecimal number"),
        ("0x", "is not a decimal, octal or hexadecimal number"),
        ("0b1", "is not a decimal, octal or hexadecimal number"),
        ("1_000", "is not a decimal, octal or hexadecimal number"),
        ("1UL", "is not a decimal, octal or hexadecimal number"),
        ("PROT_EXECUTE", "unknown constant PROT_EXECUTE; did you mean PROT_EXEC?"),
        ("prot_exec", "unknown constant prot_exec; did you mean PROT_EXEC?"),
        ("~~1", "expected a value, found '~'"),
        ("~", "expected a value here"),
        ("1|", "expected a value here"),
        ("(1", "'(' is never closed by ')'"),
        ("()", "expected a value, found ')'"),
        ("1)", "nothing may follow"),
        ("", "expected a value here"),
        ("arg1", "expected a value, found 'arg1'"),
    ],
)
def test_value_that_is_none_is_refused(text: str, message: str) -> None:
    assert message in mistakes(f"read: arg0 == {text}")[0]


# --- operators: 64 bits, unsigned -----------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "holds", "fails"),
    [
        ("== 5", [5], [4, 6, 2**32 + 5, MAX]),
        ("!= 5", [4, 6, 2**32 + 5], [5]),
        ("< 5", [0, 4], [5, 6, 2**32, MAX]),
        ("<= 5", [0, 5], [6, 2**32 + 5, MAX]),
        ("> 5", [6, 2**32, 2**63, MAX], [0, 5]),
        (">= 5", [5, 6, 2**32 + 1, MAX], [0, 4]),
        ("> -2", [MAX], [0, 1, MAX - 1]),
        ("& 6", [2, 4, 6, 7, 2**32 + 2], [0, 1, 8, 2**33]),
        ("& 0x100000000", [2**32, MAX], [0, 2**32 - 1, 2**33]),
        ("& 0", [], [0, 1, MAX]),
        ("in 6", [0, 2, 4, 6], [1, 8, 7, 2**32, 2**32 + 2]),
        ("in 0xfffffffb", [0, 3, 0xFFFFFFFB], [4, 2**32, 2**63]),
        ("in ~4", [0, 3, 2**32, MAX - 4], [4, 5, MAX]),
        ("in 0", [0], [1, 2**63]),
    ],
)
def test_operator_compares_all_64_bits_unsigned(
    condition: str, holds: list[int], fails: list[int]
) -> None:
    policy = parse(f"read: arg1 {condition}")
    assert {judge(policy, f"read(9, {v})") for v in holds} <= {"ALLOW"}
    assert {judge(policy, f"read(9, {v})") for v in fails} <= {"KILL_PROCESS"}


def test_and_binds_tighter_than_or() -> None:
    text = "read: arg0 == 1 && arg1 == 2 || arg0 == 3 && arg2 == 4"
    calls = ["read(1,2)", "read(3,0,4)", "read(1,0,4)", "read(3,2)", "read(1,2,4)"]
    assert judge_all(text, *calls) == ["ALLOW", "ALLOW", "KILL_PROCESS", "KILL_PROCESS", "ALLOW"]


# --- lists and repeated statements ----------------------------------------------------------


def test_filter_list_is_tried_in_order() -> None:
    text = "read: { arg0 == 1; return EPERM, arg0 < 3; trap, arg0 < 5, return EIO }"
    calls = ["read(1)", "read(2)", "read(4)", "read(5)"]
    assert judge_all(text, *calls) == ["ERRNO 1", "TRAP", "ALLOW", "ERRNO 5"]


def test_conditional_statements_of_one_call_append() -> None:
    text = "read: arg0 == 1; return EPERM\nwrite: 1\nread: arg0 < 5\nread: return EIO"
    calls = ["read(1)", "read(2)", "read(9)"]
    assert judge_all(text, *calls) == ["ERRNO 1", "ALLOW", "ERRNO 5"]


@pytest.mark.parametrize(
    "text",
    ["read: 1\nread: 1", "read: 1\nread: arg0 == 1", "read: { 1, arg0 == 1 }", "{read, read}: 1"],
)
def test_anything_after_an_unconditional_filter_is_refused(text: str) -> None:
    assert ["already decided without a condition" in m for m in mistakes(text)] == [True]


def test_group_gives_every_call_the_filters() -> None:
    text = "{ read, write,close }: arg0 == 1"
    assert judge_all(text, "read(1)", "write(1)", "close(1)", "close(2)", "dup(1)") == [
        "ALLOW",
        "ALLOW",
        "ALLOW",
        "KILL_PROCESS",
        "KILL_PROCESS",
    ]


# --- architectures --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aarch64", "arm64"])
def test_arch_of_a_call_selects_it(name: str) -> None:
    text = f"{{ poll[arch=x86_64], ppoll[arch={name},x86_64], read }}: 1"
    assert [c.name for c in parse(text).calls] == ["poll", "ppoll", "read"]
    assert [c.name for c in parse(text, arch="aarch64").calls] == ["ppoll", "read"]


def test_arch_elsewhere_hides_calls_that_are_unknown_here() -> None:
    assert [c.name for c in parse("mmap2[arch=arm,x86]: 1\nread: 1").calls] == ["read"]


def test_arch_that_nobody_has_is_warned_of() -> None:
    policy = parse("poll[arch=x86-64]: 1\nread: 1")
    assert [w.message for w in policy.warnings] == [
        "no architecture is called x86-64; did you mean x86_64?"
    ]


def test_names_mean_the_architectures_own_numbers() -> None:
    text = "openat: arg2 == O_DIRECT"
    x86_64, aarch64 = parse(text).calls[0], parse(text, arch="aarch64").calls[0]
    assert (x86_64.number, aarch64.number) == (257, 56)
    assert x86_64.filters[0].clauses is not None
    assert aarch64.filters[0].clauses is not None
    assert x86_64.filters[0].clauses[0][0].value == 0o40000
    assert aarch64.filters[0].clauses[0][0].value == 0o200000


# --- lines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "# only: this\nread: 1 # and: that\n\n  \t\n",
        "read: \\\n  1",
        "read\\\n:\\\n1",
        "read: 1\r\n# x\r\n",
        "  read  :  1  ",
        "read:1",
        "# joined to the next \\\nread: 1",
        "\tread[arch=x86_64]: allow",
        "read:arg0 in-1",
    ],
)
def test_spaces_comments_and_continuations_do_not_matter(text: str) -> None:
    assert judge_all(text, "read", "write") == ["ALLOW", "KILL_PROCESS"]


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "   "])
def test_empty_file_is_refused(text: str) -> None:
    assert mistakes(text) == [
        "p/test.policy:1:1: the file has no statement, so nothing is allowed"
    ]


@pytest.mark.parametrize("text", ["read: 1\nclose: 1 \\", "close: 1 \\\n"])
def test_file_that_ends_in_a_continued_line_is_refused(text: str) -> None:
    assert "the file ends inside a continued line" in mistakes(text)[0]


# --- includes -------------------------------------------------------------------------------


def test_include_is_relative_to_the_including_file() -> None:
    files = {
        "p/sub/a.policy": "@include ./b.policy\nread: 1",
        "p/sub/b.policy": "@include ./../c.policy",
        "p/c.policy": "@include /abs/d.policy\nwrite: arg0 == 1; return EIO",
        "/abs/d.policy": "close: 1",
    }
    policy = parse("@include ./sub/a.policy\nwrite: 1", files)
    assert [judge(policy, c) for c in ("read", "close", "write(1)", "write(2)")] == [
        "ALLOW",
        "ALLOW",
        "ERRNO 5",
        "ALLOW",
    ]
    assert policy.files == ("p/test.policy", *files)


def test_include_in_a_circle_is_refused_with_the_chain() -> None:
    files = {"p/a.policy": "@include ./b.policy", "p/b.policy": "read: 1\n@include ./a.policy"}
    assert mistakes("@include ./a.policy", files) == [
        "p/b.policy:2:10: includes go in a circle: "
        "p/a.policy includes p/b.policy includes p/a.policy"
    ]


def test_include_of_itself_is_refused() -> None:
    assert "p/test.policy includes p/test.policy" in mistakes("@include ./test.policy")[0]


@pytest.mark.parametrize(("depth", "sound"), [(10, True), (11, False)])
def test_includes_may_be_nested_ten_deep(depth: int, sound: bool) -> None:
    files = {f"p/{n}.policy": f"@include ./{n + 1}.policy" for n in range(1, depth)}
    files[f"p/{depth}.policy"] = "read: 1"
    found = [] if sound else ["p/10.policy:1:10: includes are nested more than 10 deep"]
    try:
        parse("@include ./1.policy", files)
        told = []
    except PolicyFileError as err:
        told = [f"{p.file}:{p.line}:{p.column}: {p.message}" for p in err.problems]
    assert told == found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("@include", "expected a path that starts with / or ./ here"),
        ("@include x.policy", "a path starts with / or ./ and 'x.policy' does not"),
        ("@include ./none.policy", "cannot read p/none.policy: No such file or directory"),
        ("@include ./a.policy read", "nothing may follow"),
        ("@frequency ./none.frequency", "cannot read p/none.frequency"),
        ("@incluce ./a.policy", "unknown directive @incluce; did you mean @include?"),
        ("@loop", "unknown directive @loop; there are @include, @frequency"),
    ],
)
def test_directive_that_cannot_be_followed_is_refused(line: str, message: str) -> None:
    assert [message in m for m in mistakes(f"read: 1\n{line}", {"p/a.policy": "dup: 1"})] == [True]


def test_frequency_is_read_added_up_and_kept() -> None:
    files = {"p/f": "# counts\nread: 5\nwrite[arch=arm64]: 7\n", "p/g": "read: 0x10\n"}
    policy = parse("@frequency ./f\n@frequency ./g\n{read, write}: 1", files)
    assert {c.name: c.frequency for c in policy.calls} == {"read": 21, "write": 1}


@pytest.mark.parametrize("line", ["read", "read: -1", "read: x", "reed: 1", "read: 1 2", ": 1"])
def test_frequency_file_with_a_mistake_is_refused(line: str) -> None:
    assert [m.partition(":")[0] for m in mistakes("@frequency ./f\nread: 1", {"p/f": line})] == [
        "p/f"
    ]


# --- denylists ------------------------------------------------------------------------------


def test_denylist_allows_what_it_does_not_refuse() -> None:
    text = "@denylist # all but these\nread: return EPERM\nwrite: arg0 == 1; return EIO"
    assert judge_all(text, "read", "write(1)", "write(2)", "reboot") == [
        "ERRNO 1",
        "ERRNO 5",
        "ALLOW",
        "ALLOW",
    ]


@pytest.mark.parametrize("action", ["1", "allow", "kill", "log"])
def test_denylist_with_another_action_is_refused(action: str) -> None:
    assert "this file is a @denylist" in mistakes(f"@denylist\nread: {action}")[0]


def test_denylist_with_a_default_applies_it_to_failed_conditions_alone() -> None:
    # What minijail makes of it; nobody should write it.
    text = "@denylist\n@default trap\nread: arg0 == 1; return EPERM"
    assert judge_all(text, "read(1)", "read(2)", "write") == ["ERRNO 1", "TRAP", "ALLOW"]


def test_denylist_must_be_said_by_every_file() -> None:
    marked, bare = "@denylist\ndup: return EPERM", "dup: return EPERM"
    assert parse("@denylist\n@include ./a", {"p/a": marked}).denylist
    assert "lacks @denylist" in mistakes("@denylist\n@include ./a", {"p/a": bare})[0]
    assert "must stand in the policy itself" in mistakes("@include ./a", {"p/a": marked})[0]


# --- what is told ---------------------------------------------------------------------------


def test_every_mistake_of_a_run_is_told_in_the_order_of_the_text() -> None:
    text = (
        "reed: 1\n"
        "read: arg6 == 1 && arg7 & QXYZ\n"
        "@include ./a\n"
        "write: arg0 = 1\n"
        "{open, close: 1\n"
        "dup: $ 1\n"
        "fsync: 1\n"
    )
    assert mistakes(text, {"p/a": "pool: 1\n\nclose: arg0 < 1 ||"}) == [
        "p/test.policy:1:1: unknown system call reed on x86_64; did you mean read?",
        "p/test.policy:2:7: arg6 does not exist: system calls have arg0 to arg5",
        "p/test.policy:2:20: arg7 does not exist: system calls have arg0 to arg5",
        "p/test.policy:2:27: unknown constant QXYZ",
        "p/test.policy:4:13: expected an operator, found '='; did you mean '=='?",
        "p/test.policy:5:1: '{' is never closed by '}'",
        "p/test.policy:6:6: '$' is not part of the language",
        "p/a:1:1: unknown system call pool on x86_64; did you mean poll?",
        "p/a:3:19: expected an argument, arg0 to arg5 here",
    ]


def test_mistake_shows_the_line_and_a_caret_below_tabs() -> None:
    with pytest.raises(PolicyFileError) as caught:
        parse("\tread:\targ0 == PROT_EXECC # no\n")
    assert str(caught.value) == (
        "p/test.policy:1:16: unknown constant PROT_EXECC; did you mean PROT_EXEC?\n"
        "    \tread:\targ0 == PROT_EXECC # no\n"
        "    \t     \t        ^^^^^^^^^^"
    )


def test_mistake_in_a_continued_line_is_told_where_it_stands() -> None:
    assert mistakes("read: arg0 == 1 || \\\n  arg0 == NOPE")[0].startswith("p/test.policy:2:11:")


@pytest.mark.parametrize(
    "line",
    [
        "read", "read:", "read: ;", "read 1", ": 1", "read: 2", "read: 0", "read: allow 1",
        "read: arg0", "read: arg0 ==", "read: arg0 1", "read: arg0 == 1 &&", "read: {",
        "read: { 1", "read: {}", "read: { 1, }", "read: 1, 1", "read: return", "read: return arg0",
        "read: return 1|2", "read: arg0 == 1; ", "read: arg0 == 1; 5", "{}: 1", "{read,}: 1",
        "read[: 1", "read[arch]: 1", "read[arch=]: 1", "read[arch=x86_64: 1",
        "read[arch=x86_64;arch=arm]: 1", "io@libc: 1", "read: (arg0 == 1)", "read: !arg0",
        "read: arg00x == 1", "read: 1 /x", "0: 1", "read: arg0 === 1", "read: \udcff",
    ],
)  # fmt: skip
def test_malformed_statement_is_refused_once_and_the_rest_is_read(line: str) -> None:
    assert len(mistakes(f"{line}\nclose: 1\ndupp: 1")) == 2


def test_bytes_of_any_kind_may_stand_in_comments() -> None:
    assert judge_all("# \udcff\udc80 é\nread: 1", "read") == ["ALLOW"]


# --- warnings -------------------------------------------------------------------------------


def test_expression_with_return_is_warned_of_once_at_its_first_place() -> None:
    policy = parse("read: arg0 == 1; return EPERM\nwrite: arg0 == 1; return EPERM")
    assert [(w.line, w.column) for w in policy.warnings] == [(1, 18)]
    assert "C compiler reads it the other way round" in policy.warnings[0].message
    assert judge(policy, "read(1)") == "ERRNO 1"
    assert judge(policy, "read(2)") == "KILL_PROCESS"


def test_conditions_before_an_unconditional_allow_hold_and_are_warned_of() -> None:
    policy = parse("read: { arg0 == 1; trap, allow }")
    assert judge(policy, "read(1)") == "TRAP"
    assert "drops all conditions" in policy.warnings[0].message


@pytest.mark.parametrize(
    ("line", "message"),
    [("read: return 5000", "is no error number"), ("read[cpu=arm]: 1", "cpu means nothing here")],
)
def test_line_that_surprises_is_warned_of(line: str, message: str) -> None:
    assert [message in w.message for w in parse(line).warnings] == [True]


# --- calls to be judged ---------------------------------------------------------------------


def test_call_is_parsed_with_names_and_numbers() -> None:
    assert parse_call("madvise(0, 0x1000, MADV_REMOVE)", X86_64) == (28, [0, 4096, 9])
    assert parse_call("getpid", X86_64) == (39, [])
    assert parse_call("getpid( )", X86_64) == (39, [])
    assert parse_call("0x40000001(~0)", X86_64) == (0x40000001, [MAX])


@pytest.mark.parametrize(
    "text", ["", "nope()", "read(", "read(1,)", "read(1) x", "read(0,0,0,0,0,0,0)", "-1()", "$"]
)
def test_call_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PolicyFileError):
        parse_call(text, X86_64)
