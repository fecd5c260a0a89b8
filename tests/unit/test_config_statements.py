"""config/statements.py: the line of each key, and how reading goes on after a mistake."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.config.entries import DEEPEST, UNREADABLE, Key, entries_of
from balloon_daemon.config.statements import MOST_FAULTS, read_statements


def lines(text: str) -> dict[Key, list[int]]:
    """The lines of each table and key of a text without faults."""
    entries, faults, is_complete = read_statements(text)
    assert (faults, is_complete) == ([], True)
    found: dict[Key, list[int]] = {}
    for path, _, line in entries:
        found.setdefault(path, []).append(line)
    return found


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_is_that_of_the_header_or_the_key_whatever_stands_before(end: str) -> None:
    text = end.join(
        [
            "# [no.header]",
            "",
            "[ host ] # [x",
            'text = """',
            "key = 1",
            '[vm.no]"""',
            "list = [ # ]",
            "  \"]\", '[', # key = 2",
            "  [1, [2]],",
            "]",
            "'[vm.a]' = '''",
            "''''",
            'vm."a.b".inline = { key = "}", "=" = [1] }',
            '[vm."x]" . y]',
            'escaped = "\\"[" # "',
            "last = 1",
        ]
    )
    assert lines(text) == {
        ("host",): [3],
        ("host", "text"): [4],
        ("host", "list"): [7],
        ("host", "[vm.a]"): [11],
        ("host", "vm"): [13],
        ("host", "vm", "a.b"): [13],
        ("vm",): [14],
        ("vm", "x]"): [14],
        ("vm", "x]", "y"): [14],
        ("vm", "x]", "y", "escaped"): [15],
        ("vm", "x]", "y", "last"): [16],
    }


def test_one_of_many_tables_is_an_entry_and_what_is_in_it_is_none() -> None:
    assert lines("[[vm.web]]\nkey = 1\n[[vm.web]]\nkey = 2\n[host]\nkey = 3") == {
        ("vm", "web"): [1, 3],
        ("host",): [5],
        ("host", "key"): [6],
    }


NAMES = st.sampled_from(["host", "vm", "web", "a.b", "[", "=", "#", '"', "'", " ", "é", "\n"])
TEXTS = st.text(st.sampled_from("ab\"'[]{}=#\n\t ,\\é"), max_size=12)
LEAVES = st.one_of(TEXTS, st.integers(-9, 9), st.booleans())
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=4)


def basic(text: str) -> str:
    """A TOML string of one line."""
    return '"' + "".join(f"\\U{ord(c):08x}" if c in '"\\\n\t' else c for c in text) + '"'


def multi_line(text: str) -> str:
    """A TOML string of several lines, with quotes and brackets in it as they are."""
    return '"""\n' + text.replace("\\", "\\\\").replace('"""', '""\\"') + '"""'


@st.composite
def written(draw: st.DrawFn, value: object) -> str:
    """A value as TOML, in one of several styles."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            literal = f"'{value}'" if "'" not in value and "\n" not in value else basic(value)
            quotes = not value.endswith('"')
            styles = [basic(value), literal, multi_line(value) if quotes else basic(value)]
            return draw(st.sampled_from(styles))
        case list():
            between = draw(st.sampled_from([", ", ",\n", " , # ]\n\n"]))
            return "[" + between.join(draw(written(each)) for each in value) + "\n]"
        case _:
            return str(value)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Text that looks like TOML, and mostly is."""
    parts = []
    for _ in range(draw(st.integers(0, 5))):
        path = ".".join(map(basic, draw(st.lists(NAMES, min_size=1, max_size=3))))
        match draw(st.integers(0, 3)):
            case 0:
                parts.append(f"[{path}] # ]")
            case 1:
                parts.append("# key = [")
            case _:
                parts.append(f"{path} = {draw(written(draw(VALUES)))}")
    return "\n".join(parts)


def leaves(content: dict[str, object]) -> list[tuple[Key, object]]:
    return [(e.path, e.value) for e in entries_of(content) if not isinstance(e.value, dict)]


@given(documents())
def test_statements_have_the_keys_and_values_that_the_whole_text_has(text: str) -> None:
    entries, faults, _ = read_statements(text)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # What is twice: not all of it is found here.
    assert faults == []
    found = [(path, value) for path, value, _ in entries if not isinstance(value, dict)]
    shallow = [(path, value) for path, value in found if len(path) <= DEEPEST]
    assert sorted(shallow, key=repr) == sorted(leaves(content), key=repr)


@given(documents())
def test_key_is_in_the_line_that_is_told(text: str) -> None:
    all_lines = text.split("\n")
    for path, value, line in read_statements(text).entries:
        if not isinstance(value, dict) and len(path) <= DEEPEST:
            assert basic(path[-1]) in all_lines[line - 1]


@given(st.text(st.sampled_from("ab=\"'[]{}#\n\r ,.\\"), max_size=60))
def test_what_tomllib_refuses_in_one_statement_is_a_fault_in_a_line_that_there_is(
    text: str,
) -> None:
    entries, faults, _ = read_statements(text)
    last = text.count("\n") + 1
    told = [entry.line for entry in entries] + [fault.line for fault in faults]
    assert all(1 <= line <= last for line in told)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert faults == []


def test_reading_goes_on_behind_what_was_never_closed() -> None:
    text = """\
[host]
list = [
  "a",
text = '''
margin = "1G
[vm.web]
inline = { a = [
"quoted key" = 2
vm = "[" # ]
"""
    entries, faults, is_complete = read_statements(text)
    assert [fault.line for fault in faults] == [2, 4, 5, 7]
    assert is_complete
    assert [
        (path, value, line) for path, value, line in entries if len(path) == 2 + line // 7
    ] == [
        (("host", "list"), UNREADABLE, 2),
        (("host", "text"), UNREADABLE, 4),
        (("host", "margin"), UNREADABLE, 5),
        (("vm", "web"), {}, 6),
        (("vm", "web", "inline"), UNREADABLE, 7),
        (("vm", "web", "quoted key"), 2, 8),
        (("vm", "web", "vm"), "[", 9),
    ]


def test_keys_below_a_header_that_nobody_can_read_are_nobodys() -> None:
    entries, faults, is_complete = read_statements("[host]\n[a b]\nmargin = 1\n[vm]\nx = 1")
    assert ([fault.line for fault in faults], is_complete) == ([2], False)
    assert [path for path, _, _ in entries] == [("host",), ("vm",), ("vm", "x")]


def test_text_of_another_kind_is_given_up_after_a_number_of_faults() -> None:
    entries, faults, is_complete = read_statements("#!/bin/sh\n" + 'echo "$HOME"\n' * 5000)
    assert (entries, is_complete) == ([], False)
    assert len(faults) == MOST_FAULTS + 1
    assert faults[-1].said.startswith(f"{MOST_FAULTS} mistakes up to here: is this TOML?")
