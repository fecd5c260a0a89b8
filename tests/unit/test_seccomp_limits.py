"""No policy file is too much: what is nested, long or many is refused at its place."""

import pytest

from balloon_daemon.ctl.seccomp.judged_call import parse_call
from balloon_daemon.errors import PolicyFileError
from balloon_daemon.seccomp.bpf import SOCK_FILTER
from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.filter import load_arch
from balloon_daemon.seccomp.parser import FILTERS_LIMIT, parse_policy
from balloon_daemon.seccomp.policy import Dialect, ParsedPolicy
from balloon_daemon.seccomp.policy_sources import FILES_LIMIT, INCLUDE_DEPTH_LIMIT, TEXT_LIMIT
from balloon_daemon.seccomp.remarks import MISTAKES_LIMIT
from balloon_daemon.seccomp.tokens import LINE_LIMIT, WORDS_LIMIT
from balloon_daemon.seccomp.values import NESTING_LIMIT
from tests.harness.faults import fault

ARCH = load_arch()


def parse(
    text: str, files: dict[str, str] | None = None, dialect: Dialect = Dialect.PYTHON
) -> ParsedPolicy:
    known = files or {}
    return parse_policy(text, path="p", arch=ARCH, read=known.__getitem__, dialect=dialect)


def mistakes(
    text: str, files: dict[str, str] | None = None, dialect: Dialect = Dialect.PYTHON
) -> list[str]:
    with pytest.raises(PolicyFileError) as caught:
        compile_bpf(parse(text, files, dialect))
    for problem in caught.value.problems:
        assert len(str(problem)) < 4096, "what is shown of a mistake is bounded"
    return [f"{p.file}:{p.line}:{p.column}: {p.message}" for p in caught.value.problems]


def nested(depth: int, opened: str = "(") -> str:
    return opened * depth + "1" + ")" * depth


# --- nesting --------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("opened", ["(", "~(", "1|("])
def test_parentheses_may_be_nested_up_to_the_limit(opened: str, dialect: Dialect) -> None:
    assert parse(f"read: arg0 == {nested(NESTING_LIMIT, opened)}", dialect=dialect).calls


@fault("policy file nested, long or large beyond measure")
@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("opened", ["(", "~(", "1|("])
@pytest.mark.parametrize("depth", [NESTING_LIMIT + 1, 495, 5_000])
def test_parentheses_nested_deeper_are_refused_at_the_first_too_deep(
    opened: str, depth: int, dialect: Dialect
) -> None:
    column = len("read: arg0 == ") + (NESTING_LIMIT + 1) * len(opened)
    assert mistakes(f"read: arg0 == {nested(depth, opened)}", dialect=dialect) == [
        f"p:1:{column}: parentheses are nested more than {NESTING_LIMIT} deep"
    ]


def test_parentheses_nested_over_continued_lines_are_refused_too() -> None:
    text = "read: arg0 == \\\n" + "(\\\n" * 700 + "1" + ")" * 700
    assert mistakes(text) == [
        f"p:{NESTING_LIMIT + 2}:1: parentheses are nested more than {NESTING_LIMIT} deep"
    ]


def test_parentheses_nested_in_a_c_return_are_refused() -> None:
    text = f"read: arg0 == 1; return {nested(900)}"
    assert "nested more than" in mistakes(text, dialect=Dialect.C)[0]


def test_parentheses_nested_in_a_call_to_be_judged_are_refused() -> None:
    with pytest.raises(PolicyFileError, match="nested more than 64 deep"):
        parse_call(f"read({nested(495)})", ARCH)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("read: arg0 == " + "~" * 3000 + "1", "expected a value, found '~'"),
        ("read: " + "{" * 3000, "expected an action or a condition, found '{'"),
        ("{" * 3000 + "read", "expected a system call, found '{'"),
        ("read" + "[" * 3000, "expected a key, found '['"),
        ("read: arg0 == 1" + ";" * 3000, "expected an action or a condition, found ';'"),
    ],
)
def test_what_cannot_be_nested_is_refused_at_its_second(text: str, message: str) -> None:
    assert [message in m for m in mistakes(text)] == [True]


# --- long -----------------------------------------------------------------------------------


@pytest.mark.parametrize("atom", ["arg0 == {} || ", "arg0 != {} && ", "arg0 == {} || \\\n"])
def test_long_chain_of_conditions_compiles(atom: str) -> None:
    text = "read: " + "".join(atom.format(n) for n in range(1000)) + "arg1 == 1"
    assert len(compile_bpf(parse(text))) // SOCK_FILTER.size > 1000


@pytest.mark.parametrize(
    "written", ["arg0 == {} || \\\n", "arg0 != {} && \\\n", "arg0 > {} && \\\n"]
)
def test_chain_of_conditions_longer_than_a_program_is_refused(written: str) -> None:
    text = "read: " + "".join(written.format(n) for n in range(4600, 1, -1)) + "arg1 == 1"
    told = mistakes(text)
    assert len(told) == 1
    assert told[0].endswith(" instructions, and the kernel takes 4096")


@fault("policy file nested, long or large beyond measure")
def test_conditions_that_would_take_the_compiler_too_long_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The upper halves of these are compared with each other: steps grow with the square.
    text = "read: " + " || ".join(f"arg0 == {n << 32}" for n in range(1, 500))
    assert compile_bpf(parse(text))
    monkeypatch.setattr("balloon_daemon.seccomp.bpf.STEPS_LIMIT", 100_000)
    told = ["p:1:1: would be far too many instructions, and the kernel takes 4096"]
    assert mistakes(text) == told


def test_group_of_all_calls_with_a_long_condition_shares_it() -> None:
    group = ", \\\n".join(ARCH.calls)
    condition = " || \\\n".join(f"arg0 == {n << 32}" for n in range(600))
    assert len(compile_bpf(parse(f"{{ {group} }}: {condition}"))) // SOCK_FILTER.size < 4096


def test_line_is_refused_beyond_the_limit_unless_it_is_a_comment() -> None:
    assert parse(f"#{'x' * LINE_LIMIT}\nread: 1").calls
    assert parse(f"read: 1{' ' * (LINE_LIMIT - 7)}").calls
    assert mistakes(f"read: 1{' ' * (LINE_LIMIT - 6)}\nclose: 2") == [
        f"p:1:{LINE_LIMIT + 1}: the line is longer than 131,072 characters",
        "p:2:8: 2 is no action; 1 means allow",
    ]


def test_statement_of_too_many_words_is_refused_once_for_all_that_follow() -> None:
    lines = ("x " * 1000 + "\\\n") * (WORDS_LIMIT // 1000)
    assert mistakes(f"read: {lines}\nreed: 1") == [
        f"p:{WORDS_LIMIT // 1000}:1997: a statement has at most 50,000 words",
        f"p:{WORDS_LIMIT // 1000 + 2}:1: unknown system call reed on x86_64; did you mean read?",
    ]


@pytest.mark.parametrize("word", ["9" * 5000, "0x" + "f" * 5000, "0" * 5000, "-" + "9" * 200])
def test_number_of_too_many_digits_is_refused(word: str) -> None:
    told = ["p:1:15: a number of more than 100 digits does not fit into 64 bits"]
    assert mistakes(f"read: arg0 == {word}") == told


@pytest.mark.parametrize("digits", ["9" * 5000, "1" * 10, "6", "0" * 5000 + "6"])
def test_argument_that_does_not_exist_is_refused_however_long_its_number(digits: str) -> None:
    assert (
        "does not exist: system calls have arg0 to arg5" in mistakes(f"read: arg{digits} == 1")[0]
    )


@pytest.mark.parametrize(
    "text",
    [
        "read: arg0 == " + "A" * 9000, "x" * 9000 + ": 1", "@" + "x" * 9000,
        "read[" + "a" * 9000 + "]: 1", "read: " + "b" * 9000, "read: return " + "E" * 9000,
    ],
)  # fmt: skip
def test_word_of_any_length_is_refused_and_shown_in_part(text: str) -> None:
    assert len(mistakes(text)) == 1


def test_frequency_of_any_size_is_refused_or_counted() -> None:
    files = {"f": f"read: {'9' * 99}\n", "g": f"read: {'9' * 5000}\n"}
    assert parse("@frequency ./f\nread: 1", files).calls[0].frequency == int("9" * 99)
    assert mistakes("@frequency ./g\nread: 1", files) == [
        "g:1:7: a number of more than 100 digits does not fit into 64 bits"
    ]


# --- many -----------------------------------------------------------------------------------


def test_mistakes_are_told_up_to_the_limit() -> None:
    told = mistakes("reed: 1\n" * (MISTAKES_LIMIT + 50))
    assert len(told) == MISTAKES_LIMIT + 1
    assert told[-1] == "p:100:1: these are 100 mistakes; more are not looked for"
    assert len(mistakes("reed: 1\n" * (MISTAKES_LIMIT - 1))) == MISTAKES_LIMIT - 1


@fault("policy file nested, long or large beyond measure")
@pytest.mark.parametrize(
    "text",
    [
        "read: 1\n" * 500, "$\n" * 500, "@include x\n" * 500, "@include ./p\n" * 500,
        "@default log\n" * 500, "{" + "read, " * 500 + "read}: 1", "read: arg0 == QXYZ\n" * 500,
        "read: arg9 == 1 && arg8 == 1\n" * 500,
    ],
)  # fmt: skip
def test_mistakes_of_every_kind_end_at_the_limit(text: str) -> None:
    assert len(mistakes(text)) == MISTAKES_LIMIT + 1


def test_mistakes_in_included_files_count_together() -> None:
    files = {"a": "reed: 1\n" * 60}
    told = mistakes("@include ./a\n@include ./a\nread: 1", files)
    assert len(told) == MISTAKES_LIMIT + 1


@fault("policy file nested, long or large beyond measure")
def test_files_included_over_and_over_are_refused_beyond_the_limit() -> None:
    # 1, then 40 each time: file 1,001 is in the 25th time that b is read.
    files = {"a": "@include ./b\n" * 40, "b": "@include ./c\n" * 40, "c": "# nothing"}
    told = f"b:{(FILES_LIMIT - 1) % 41}:10: more than 1,000 files are included"
    assert mistakes("@include ./a\nread: 1", files) == [told]


def test_files_of_counts_are_refused_beyond_the_limit() -> None:
    told = f"p:{FILES_LIMIT + 1}:12: more than 1,000 files are included"
    assert mistakes("@frequency ./f\n" * 2000 + "read: 1", {"f": "read: 1"}) == [told]


@fault("policy file nested, long or large beyond measure")
@pytest.mark.parametrize("directive", ["@include", "@frequency"])
def test_text_of_all_files_together_is_refused_beyond_the_limit(directive: str) -> None:
    files = {"a": "#" * (TEXT_LIMIT // 3)}
    assert parse(f"{directive} ./a\n" * 2 + "read: 1", files).calls
    assert mistakes(f"{directive} ./a\n" * 9 + "read: 1", files) == [
        f"p:3:{len(directive) + 2}: with this file the policy is larger than 2,097,152 characters"
    ]


def test_includes_nested_to_the_limit_are_read() -> None:
    files = {f"{n}": f"@include ./{n + 1}" for n in range(INCLUDE_DEPTH_LIMIT - 1)}
    files[f"{INCLUDE_DEPTH_LIMIT - 1}"] = "read: 1"
    assert parse("@include ./0", files).calls


@pytest.mark.parametrize("filters", [300, 3000])
def test_filters_of_a_group_are_refused_beyond_the_limit(filters: int) -> None:
    group = ", \\\n".join(ARCH.calls)
    text = f"{{ {group} }}: {{ " + ", \\\n".join(f"arg0 == {n}" for n in range(filters)) + " }"
    assert [f"more than {FILTERS_LIMIT:,} filters" in m for m in mistakes(text)] == [True]
