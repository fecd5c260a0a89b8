"""config/toml.py: what a configuration file sets, and what is said of each mistake in it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.cli.own_api import NOWHERE
from balloon_daemon.config.files import LIMIT_BYTES, ConfigText
from balloon_daemon.config.model import Config
from balloon_daemon.config.toml import parse_config, parse_texts, read_config
from balloon_daemon.config.vms import Discover, Kind, VmConfig
from balloon_daemon.errors import ConfigFileError
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB
from tests.harness.faults import fault
from tests.harness.other_user import NOBODY

FILE = "b.toml"


def mistakes(text: str) -> list[str]:
    """What is said of a file, without its name: ``line: what``."""
    with pytest.raises(ConfigFileError) as caught:
        parse_config(text, FILE)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    for mistake in caught.value.mistakes:
        assert mistake.isprintable()
    return [mistake.removeprefix(f"{FILE}:") for mistake in caught.value.mistakes]


def test_empty_file_sets_nothing_but_the_profile() -> None:
    assert parse_config("", FILE) == Config(socket=None, profile=Profile.CAREFUL)


def test_every_key_is_set() -> None:
    config = parse_config(
        """
        [host]
        margin = "1G"
        low_mem_dir = "/host"
        socket = "/run/balloond/any.sock"
        api = "/run/balloond/api.sock"
        history = "/run/balloond/history.db"
        record = "/run/balloond/host.trace"
        dry_run = true
        [vm.web]
        qmp = "/run/web.qmp"
        floor = "512M"
        ceiling = "2G"
        priority = 10
        profile = "seed"
        [vm."my db.example"]
        vhost_user = "/run/balloond/db.sock"
        memory = "4G"
        [discover]
        libvirt = ["qemu:///system", "qemu+unix:///session"]
        qmp = ["/run/qemu/*.qmp"]
        """,
        FILE,
    )
    web = VmSettings(512 * MIB, 2 * GIB, 10, Profile.SEED)
    assert config == Config(
        socket=Path("/run/balloond/any.sock"),
        low_mem_dir=Path("/host"),
        margin_bytes=GIB,
        vms=(
            VmConfig("web", Kind.QMP, "/run/web.qmp", web),
            VmConfig(
                "my db.example", Kind.VHOST_USER, "/run/balloond/db.sock", VmSettings(), 4 * GIB
            ),
        ),
        discover=Discover(("qemu:///system", "qemu+unix:///session"), ("/run/qemu/*.qmp",)),
        profile=Profile.CAREFUL,
        api=Path("/run/balloond/api.sock"),
        history=Path("/run/balloond/history.db"),
        record=Path("/run/balloond/host.trace"),
        dry_run=True,
    )


def test_host_profile_is_that_of_all_vms_that_name_none() -> None:
    config = parse_config(
        "[host]\nprofile = 'adaptive'\n[vm.a]\nqmp = '/a'\n[vm.b]\nqmp = '/b'\nprofile = 'seed'\n",
        FILE,
    )
    assert [vm.settings.profile for vm in config.vms] == [Profile.ADAPTIVE, Profile.SEED]
    assert (config.profile, config.found_profile) == (Profile.ADAPTIVE, Profile.ADAPTIVE)
    assert config.found_settings == VmSettings(profile=Profile.ADAPTIVE)
    assert config.unprofiled == {"a"}
    other = config.with_profile(Profile.CAREFUL)
    assert [vm.settings.profile for vm in other.vms] == [Profile.CAREFUL, Profile.SEED]


def test_api_may_be_nowhere() -> None:
    assert parse_config("[host]\napi = 'none'", FILE).api == NOWHERE


@pytest.mark.parametrize("kind", Kind)
def test_kind_of_a_vm_follows_from_the_key_that_says_how_to_reach_it(kind: Kind) -> None:
    address = "qemu:///system" if kind is Kind.LIBVIRT else "/run/x"
    (vm,) = parse_config(f'[vm.a]\n{kind.value} = "{address}"', FILE).vms
    assert vm == VmConfig("a", kind, address, VmSettings(profile=Profile.CAREFUL))


@pytest.mark.parametrize("ceiling", ["0", '"0"'])
def test_ceiling_of_nothing_leaves_a_vm_alone(ceiling: str) -> None:
    (vm,) = parse_config(f'[vm.a]\nlibvirt = "qemu:///system"\nceiling = {ceiling}', FILE).vms
    assert vm.settings.ceiling_bytes == 0


def test_two_domains_of_one_libvirt_are_two_vms() -> None:
    text = '[vm.a]\nlibvirt = "qemu:///system"\n[vm.b]\nlibvirt = "qemu:///system"'
    assert [vm.name for vm in parse_config(text, FILE).vms] == ["a", "b"]


QMP = '[vm.web]\nqmp = "/run/web.qmp"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # --- names
        ("[hosts]", "1: hosts: there is no such table; did you mean host?"),
        ("margin = '1G'", '1: margin = "1G": there is no such key; it belongs in [host]'),
        ("[host]\nmargins = '1G'",
         '2: [host] margins = "1G": there is no such key; did you mean margin?'),
        ("[discover]\nlibvrt = []",
         "2: [discover] libvrt = []: there is no such key; did you mean libvirt?"),
        (f"{QMP}flor = '1G'",
         '3: [vm.web] flor = "1G": there is no such key; did you mean floor?'),
        ("[vm.web]\nqpm = '/s'",
         '2: [vm.web] qpm = "/s": there is no such key; did you mean qmp?'),
        (f"{QMP}[vm.web.example]",
         "3: [vm.web] example: there is no such table; a name with a dot is written in "
         'quotes, as in [vm."web.example"]'),
        ("host = 1", "1: [host]: 1 is no table; write its keys below [host]"),
        ("vm = []", "1: [vm]: [] is no table; write its keys below [vm]"),
        ("[vm]\nweb = 'x'", '2: [vm.web]: "x" is no table; write its keys below [vm.web]'),
        ("[vm]\nqmp = '/s'",
         '2: [vm] qmp = "/s": this VM has no name; write [vm.NAME] in place of [vm]'),
        ("[[vm.web]]", "1: [vm.web]: [a table] is no table; write its keys below [vm.web]"),
        (f"[vm.{'n' * 65}]\nqmp = '/s'", f"1: [vm.{'n' * 65}]: a name has 1 to 64 printable "
         "characters; give it another"),
        ('[vm."a\\u001b[2J"]\nqmp = "/s"',
         '1: [vm."a\\x1b[2J"]: a name has 1 to 64 printable characters; give it another'),
        ("[vm.'']\nqmp = '/s'",
         '1: [vm.""]: a name has 1 to 64 printable characters; give it another'),
        # --- how a VM is reached
        ("[vm.web]",
         "1: [vm.web]: nothing says how to reach it; add one of vhost_user, qmp, libvirt, "
         "cloud_hypervisor, firecracker, crosvm"),
        (f"{QMP}libvirt = 'qemu:///system'",
         '3: [vm.web] libvirt = "qemu:///system": it has qmp too, in line 2; name one way '
         "to reach a VM"),
        (f"{QMP}[vm.db]\nfirecracker = '/run//web.qmp'",
         "4: [vm.db] firecracker: /run/web.qmp is [vm.web] qmp already, in line 2; name "
         "each socket once"),
        ("[host]\nsocket = '/s'\n[vm.a]\nvhost_user = '/s'",
         "4: [vm.a] vhost_user: /s is [host] socket already, in line 2; name each socket "
         "once"),
        ("[vm.a]\nqmp = 'web.qmp'",
         '2: [vm.a] qmp: "web.qmp" is a relative path; write it from / on'),
        ("[vm.a]\nqmp = ''",
         '2: [vm.a] qmp: "" is empty or not printable; name path like '
         "/run/balloond/web.sock"),
        ('[vm.a]\nqmp = "/a\\u0000b"',
         '2: [vm.a] qmp: "/a\\x00b" is empty or not printable; name path like '
         "/run/balloond/web.sock"),
        ("[vm.a]\nqmp = 3", '2: [vm.a] qmp: 3 is no path; write it like "/run/balloond/web.sock"'),
        (f"[vm.a]\nqmp = '/{'s' * 107}'",
         '2: [vm.a] qmp: "/sssssssssssssssssssssssssssssssssssssssssssssssssssssssss… is '
         "too long: a socket's path has at most 107 bytes; name a shorter"),
        ("[vm.a]\nlibvirt = 'system'",
         '2: [vm.a] libvirt: "system" is no libvirt URI; write it like qemu:///system'),
        ("[vm.a]\nlibvirt = 'qemu://other/system'",
         "2: [vm.a] libvirt: \"qemu://other/system\" is another host's; run a balloond there"),
        ("[vm.a]\nlibvirt = 'qemu+ssh:///system'",
         "2: [vm.a] libvirt: \"qemu+ssh:///system\" is another host's; run a balloond there"),
        # --- limits
        (f"{QMP}floor = 512", '3: [vm.web] floor: 512 is no size; write it like "512M"'),
        (f"{QMP}floor = true", '3: [vm.web] floor: true is no size; write it like "512M"'),
        (f"{QMP}floor = '512'", "3: [vm.web] floor: '512' has no unit; write 512G or 512M"),
        (f"{QMP}floor = '4Q'",
         "3: [vm.web] floor: '4Q' is not a size; write it like 4G, 512M or 1.5GiB"),
        (f"{QMP}floor = '-1G'",
         "3: [vm.web] floor: '-1G' is not a size; write it like 4G, 512M or 1.5GiB"),
        (f"{QMP}ceiling = false", '3: [vm.web] ceiling: false is no size; write it like "512M"'),
        (f"{QMP}memory = '4G'",
         "3: [vm.web] memory = \"4G\": only for vhost_user; a VM's size by qmp is its VMM's"),
        ("[vm.a]\nvhost_user = '/s'\nmemory = '1G'\nfloor = '2G'",
         "4: [vm.a] floor: 2 GiB is more than its memory, 1 GiB; make it less"),
        (f"{QMP}priority = 1001",
         "3: [vm.web] priority: 1001 is no whole number from -1000 to 1000"),
        (f"{QMP}priority = 1.0",
         "3: [vm.web] priority: 1.0 is no whole number from -1000 to 1000"),
        (f"{QMP}priority = true",
         "3: [vm.web] priority: true is no whole number from -1000 to 1000"),
        (f"{QMP}priority = 'high'",
         '3: [vm.web] priority: "high" is no whole number from -1000 to 1000'),
        (f"{QMP}priority = 0x{'f' * 5000}",
         "3: [vm.web] priority: that number is no whole number from -1000 to 1000"),
        (f"{QMP}profile = 'carefull'",
         '3: [vm.web] profile: "carefull" is no profile; write seed, careful or adaptive'),
        (f"{QMP}profile = []",
         "3: [vm.web] profile: [] is no profile; write seed, careful or adaptive"),
        # --- the host, and what is discovered
        ("[host]\napi = 'nowhere'",
         '2: [host] api: "nowhere" is a relative path; write it from / on'),
        (f"[host]\napi = '/run/web.qmp'\n{QMP}",
         "4: [vm.web] qmp: /run/web.qmp is [host] api already, in line 2; name each socket once"),
        ("[host]\nhistory = 'h'", '2: [host] history: "h" is a relative path; write it from / on'),
        ("[host]\nrecord = 1",
         '2: [host] record: 1 is no path; write it like "/run/balloond/web.sock"'),
        ("[host]\ndry_run = 'yes'",
         '2: [host] dry_run: "yes" is neither true nor false; write one, without quotes'),
        ("[host]\nmargin = nan", '2: [host] margin: nan is no size; write it like "512M"'),
        ("[host]\nlow_mem_dir = 'x'",
         '2: [host] low_mem_dir: "x" is a relative path; write it from / on'),
        ("[discover]\nlibvirt = 'qemu:///system'",
         '2: [discover] libvirt: "qemu:///system" is no list; write it in brackets, '
         '["qemu:///system"]'),
        ("[discover]\nqmp = ['/a', '/a']", '2: [discover] qmp: "/a" is there twice; name it once'),
        ("[discover]\nqmp = [1979-05-27]",
         '2: [discover] qmp: 1979-05-27 is no path; write it like "/run/balloond/web.sock"'),
    ],
)  # fmt: skip
@fault("mistake in the configuration file")
def test_mistake_is_one_line_that_names_its_place_and_the_remedy(text: str, said: str) -> None:
    assert mistakes(text) == [said]


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ("[host", "1:6: [host", "write it like [host]"),
        ("[vm.my db]\nqmp = '/s'", "1:8: [vm.my db]", 'write it like [vm."my db"]'),
        ("[]", "1:2: []", "write it like [vm.web]"),
        ("[host]\nmargin = '\x1b'", "2:11: [host] margin = '\\x1b'",
         'write it like KEY = "VALUE"'),
        (f"{QMP}floor = 1G", "3:10: [vm.web] floor = 1G", 'write it in quotes, "1G"'),
        (f"{QMP}floor = '1G\n", "3: [vm.web] floor = '1G", "end it with '"),
        (f"{QMP}floor =\n", "3:8: [vm.web] floor =", 'write it like KEY = "VALUE"'),
        (f"{QMP}floor\n", "3:6: [vm.web] floor", 'write KEY = "VALUE"'),
        (f"{QMP}floor = 1\ufeffG", "3:10: [vm.web] floor = 1\\ufeffG",
         'write it like KEY = "VALUE"'),
        (f"{QMP}floor = {'G' * 61}", f"3:9: [vm.web] floor = {'G' * 51}…",
         'write it like KEY = "VALUE"'),
        ("[discover]\nqmp = [\n'/a',\n[host]\n", "2: [discover] qmp = [",
         "close the list with ]"),
        ("[discover]\nqmp = [\n'/a',\n/b\n]", "4:1: [discover] qmp = [",
         'write it like KEY = "VALUE"'),
    ],
)  # fmt: skip
@fault("mistake in the configuration file")
def test_text_that_is_no_toml_is_one_line_with_the_place_and_the_remedy(
    text: str, place: str, remedy: str
) -> None:
    (mistake,) = mistakes(text)
    # What stands between is tomllib's, and not the same in all versions of Python.
    assert mistake.startswith(f"{place}: is no TOML: ")
    assert mistake.endswith(f"; {remedy}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{QMP}{QMP}", "3: [vm.web]: it is there already, in line 1; name each VM once"),
        ("[host]\n[host]", "2: [host]: it is there already, in line 1; join the two"),
        ("host.margin = '1G'\n[host]", "2: [host]: it is there already, in line 1; join the two"),
        ("[host]\nmargin = '1G'\nmargin = '2G'", "3: [host] margin: it is there already, in line "
         "2; set each key once"),
    ],
)  # fmt: skip
@fault("mistake in the configuration file")
def test_what_is_there_twice_is_one_line_that_names_both_places(text: str, said: str) -> None:
    assert mistakes(text) == [said]


def test_text_that_only_tomllib_refuses_is_refused_with_its_words() -> None:
    (mistake,) = mistakes("host = {}\nhost.margin = '1G'")
    assert mistake.startswith(" is no TOML: ")


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000])
def test_value_that_tomllib_cannot_hold_is_one_line_with_the_place(value: str) -> None:
    (mistake,) = mistakes(f"{QMP}priority = {value}")
    assert mistake.startswith(f"3: [vm.web] priority = {value[:40]}")
    assert len(mistake) < 400


def test_value_of_a_mebibyte_is_shown_cut() -> None:
    (said,) = mistakes(f"{QMP}profile = '{'x' * LIMIT_BYTES}'")
    assert len(said) < 200


TEN = """\
[hosts]
[host]
margin = 1G
low_mem_dir = "host"
[vm.web]
qmp = "/run/web.qmp"
flor = "512M"
priority = "high"
[vm.db]
firecracker = "/run/web.qmp"
ceiling = 4
[vm.web]
libvirt = "qemu:///system"
[vm.none]
[discover]
qmp = [
    "monitors",
    7,
]
"""


@fault("mistake in the configuration file")
def test_ten_mistakes_and_more_are_all_found_in_one_go() -> None:
    assert mistakes(TEN) == [
        "1: hosts: there is no such table; did you mean host?",
        "3:11: [host] margin = 1G: is no TOML: Expected newline or end of document after a "
        'statement; write it in quotes, "1G"',
        '4: [host] low_mem_dir: "host" is a relative path; write it from / on',
        '7: [vm.web] flor = "512M": there is no such key; did you mean floor?',
        '8: [vm.web] priority: "high" is no whole number from -1000 to 1000',
        "10: [vm.db] firecracker: /run/web.qmp is [vm.web] qmp already, in line 6; name each "
        "socket once",
        '11: [vm.db] ceiling: 4 is no size; write it like "512M"',
        "12: [vm.web]: it is there already, in line 5; name each VM once",
        '13: [vm.web] libvirt = "qemu:///system": it has qmp too, in line 6; name one way to '
        "reach a VM",
        "14: [vm.none]: nothing says how to reach it; add one of vhost_user, qmp, libvirt, "
        "cloud_hypervisor, firecracker, crosvm",
        '16: [discover] qmp: "monitors" is a relative path; write it from / on',
        '16: [discover] qmp: 7 is no path; write it like "/run/balloond/web.sock"',
    ]


def test_key_that_cannot_be_read_is_not_taken_for_missing() -> None:
    (said,) = mistakes("[vm.web]\nqmp = /run/web.qmp")
    assert said.endswith('; write it in quotes, "/run/web.qmp"')
    (said,) = mistakes("[vm.web]\nqmp: /run/web.qmp")
    assert said == (
        "2:4: [vm.web] qmp: /run/web.qmp: is no TOML: Expected '=' after a key in a key/value "
        'pair; write KEY = "VALUE"'
    )


# --- several files -------------------------------------------------------------------------------


def several(*texts: str) -> list[ConfigText]:
    """Files that are named 0, 1, …"""
    return [ConfigText(str(number), text) for number, text in enumerate(texts)]


def test_later_file_overrides_key_by_key_adds_vms_and_replaces_lists() -> None:
    config, origins = parse_texts(
        several(
            f"{QMP}floor = '1G'\npriority = 1\n[host]\nmargin = '1G'\nlow_mem_dir = '/host'\n"
            "[discover]\nqmp = ['/a', '/b']\nlibvirt = ['qemu:///system']",
            "[vm.web]\npriority = 2\n[vm.db]\ncrosvm = '/db'\n[discover]\nqmp = ['/c']",
            "host.margin = '3G'\nvm.web.priority = 3",
        ),
        with_origins=True,
    )
    assert (config.margin_bytes, config.low_mem_dir) == (3 * GIB, Path("/host"))
    assert config.discover == Discover(("qemu:///system",), ("/c",))
    assert config.vms == (
        VmConfig("web", Kind.QMP, "/run/web.qmp", VmSettings(GIB, None, 3)),
        VmConfig("db", Kind.CROSVM, "/db", VmSettings()),
    )
    places = {key: [str(each.where) for each in found] for key, found in origins.items()}
    assert places == {
        ("vm", "web", "qmp"): ["0:2"],
        ("vm", "web", "floor"): ["0:3"],
        ("vm", "web", "priority"): ["0:4", "1:2", "2:2"],
        ("host", "margin"): ["0:6", "2:1"],
        ("host", "low_mem_dir"): ["0:7"],
        ("discover", "qmp"): ["0:9", "1:6"],
        ("discover", "libvirt"): ["0:10"],
        ("vm", "db", "crosvm"): ["1:4"],
    }


@fault("mistake in the configuration file")
def test_mistakes_of_all_files_are_told_with_the_file_and_what_contradicts_another() -> None:
    texts = several(
        f"{QMP}floor = 1",
        "[vm.web]\nlibvirt = 'qemu:///system'\nfloor = '1G'\n[vm.a]\nfloor = '1G'\nx",
        "[vm.db]\ncrosvm = '/run/web.qmp'",
    )
    with pytest.raises(ConfigFileError) as caught:
        parse_texts(texts, ["3: is a pipe, not a file"])
    assert caught.value.mistakes == (
        "3: is a pipe, not a file",
        '0:3: [vm.web] floor: 1 is no size; write it like "512M"',
        '1:2: [vm.web] libvirt = "qemu:///system": it has qmp too, in 0:2; name one way to reach '
        "a VM",
        "1:6:2: [vm.a] x: is no TOML: Expected '=' after a key in a key/value pair; write KEY = "
        '"VALUE"',
        "2:2: [vm.db] crosvm: /run/web.qmp is [vm.web] qmp already, in 0:2; name each socket once",
    )


def test_value_that_is_overridden_by_a_wrong_one_does_not_count() -> None:
    with pytest.raises(ConfigFileError) as caught:
        parse_texts(several(f"{QMP}floor = '4G'", "[vm.web]\nfloor = 4"))
    assert caught.value.mistakes == ('1:2: [vm.web] floor: 4 is no size; write it like "512M"',)


# --- any text ------------------------------------------------------------------------------------


def parsed(text: str) -> Config | None:
    """The settings; None where the text has mistakes, which then are lines fit for a terminal."""
    try:
        config = parse_config(text, FILE)
    except ConfigFileError as err:
        lines = err.mistakes
    else:
        # Read by statements, for the lines, it is the same.
        assert parse_texts([ConfigText(FILE, text)], with_origins=True).config == config
        return config
    assert lines
    assert all(line.isprintable() for line in lines)
    return None


@given(st.text(max_size=200))
def test_text_of_any_kind_gives_settings_or_mistakes(text: str) -> None:
    parsed(text)


VALUES = st.recursive(
    st.one_of(
        st.text(max_size=20), st.integers(), st.floats(), st.booleans(),
        st.sampled_from(["512M", "/run/s", "qemu:///system", "seed"]),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def written(value: object) -> str:
    """A value as TOML."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
        case list():
            return "[" + ", ".join(map(written, value)) + "]"
        case _:
            return str(value)


@given(
    st.dictionaries(
        st.sampled_from(
            [kind.value for kind in Kind] + ["floor", "ceiling", "priority", "profile", "memory"]
        ),
        VALUES,
    )
)
def test_values_of_any_type_give_settings_in_range_or_mistakes(keys: dict[str, object]) -> None:
    config = parsed(
        "[vm.a]\n" + "".join(f"{key} = {written(value)}\n" for key, value in keys.items())
    )
    for vm in () if config is None else config.vms:
        assert vm.address
        assert -1000 <= vm.settings.priority <= 1000


# --- the file itself -----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "b.toml"
    path.write_text(QMP)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigFileError) as caught:
        read_config(path)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{path}:")
    return mistake.removeprefix(f"{path}:").lstrip()


def names(path: Path) -> list[str]:
    """The VMs that a file names."""
    found = read_config(path)
    assert found is not None
    return [vm.name for vm in found.config.vms]


def test_file_is_read(file: Path) -> None:
    assert names(file) == ["web"]


def test_link_to_a_file_is_followed(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    assert names(link) == ["web"]


def test_file_that_is_not_there_is_a_mistake_unless_it_may_be_absent(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == "No such file or directory; name a file that there is"
    assert read_config(tmp_path / "none", optional=True) is None


def test_directory_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == "Is a directory; name a file in it"


def test_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo") == "is a pipe, not a file"


def test_file_of_a_gibibyte_is_refused_without_being_read(file: Path) -> None:
    os.truncate(file, GIB)
    assert refused(file) == "is larger than 1 MiB"


def test_file_that_is_not_utf8_is_refused_with_the_line(file: Path) -> None:
    file.write_bytes(b"# one\n# \xe9t\xe9\n")
    assert refused(file) == "2: this line is not UTF-8; save the file as UTF-8"


def test_file_below_a_file_is_refused(file: Path) -> None:
    assert refused(file / "x") == "Not a directory; name a file that there is"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose file it is about")


@needs_root
@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o666, "others may write it (mode 666); chmod go-w it"),
        (0o620, "others may write it (mode 620); chmod go-w it"),
    ],
)
@fault("configuration file that cannot be read or trusted")
def test_file_of_roots_that_others_may_write_is_refused(file: Path, mode: int, said: str) -> None:
    file.chmod(mode)
    assert refused(file) == said


@fault("configuration file that cannot be read or trusted")
@needs_root
def test_another_users_file_is_refused_by_root(file: Path) -> None:
    os.chown(file, NOBODY, NOBODY)
    said = f"belongs to user {NOBODY}, who could change it; chown root it"
    assert refused(file) == said


@fault("configuration file that cannot be read or trusted")
@needs_root
def test_file_in_a_directory_that_others_may_write_is_refused_by_root(file: Path) -> None:
    file.parent.chmod(0o777)
    assert refused(file) == (
        f"others may write to {file.parent} (mode 777): it could be replaced; move it to a "
        "directory of root's"
    )
