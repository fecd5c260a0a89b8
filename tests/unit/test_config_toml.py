"""config/toml.py: what a configuration file sets, and what is said of each mistake in it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.config.model import Config
from balloon_daemon.config.toml import LIMIT_BYTES, parse_config, read_config
from balloon_daemon.config.vms import Discover, Kind, VmConfig
from balloon_daemon.errors import ConfigFileError
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB
from tests.harness.faults import fault
from tests.harness.other_user import NOBODY

FILE = "b.toml"


def mistakes(text: str) -> list[str]:
    """What is said of a file, without its name."""
    with pytest.raises(ConfigFileError) as caught:
        parse_config(text, FILE)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    for mistake in caught.value.mistakes:
        assert mistake.isprintable()
    return [mistake.removeprefix(f"{FILE}: ") for mistake in caught.value.mistakes]


def test_empty_file_sets_nothing_but_the_profile() -> None:
    assert parse_config("", FILE) == Config(socket=None, profile=Profile.CAREFUL)


def test_every_key_is_set() -> None:
    config = parse_config(
        """
        [host]
        margin = "1G"
        low_mem_dir = "/host"
        socket = "/run/balloond/any.sock"
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
    )


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
        ("[hosts]", "hosts: there is no such table; did you mean host?"),
        ("margin = '1G'", "margin: there is no such key"),
        ("[host]\nmargins = '1G'", "[host] margins: there is no such key; did you mean margin?"),
        ("[discover]\nlibvrt = []", "[discover] libvrt: there is no such key; did you mean "
         "libvirt?"),
        (f"{QMP}flor = '1G'", "[vm.web] flor: there is no such key; did you mean floor?"),
        ("[vm.web]\nqpm = '/s'", "[vm.web] qpm: there is no such key; did you mean qmp?"),
        (f"{QMP}[vm.web.example]", "[vm.web] example: there is no such table; a name with a dot "
         "is written in quotes, as in [vm.\"web.example\"]"),
        ("host = 1", "[host]: 1 is no table; write its keys below [host]"),
        ("vm = []", "[vm]: [] is no table; write its keys below [vm]"),
        ("[vm]\nweb = 'x'", '[vm.web]: "x" is no table; write its keys below [vm.web]'),
        ("[[vm.web]]", "[vm.web]: [{}] is no table; write its keys below [vm.web]"),
        (f"[vm.{'n' * 65}]\nqmp = '/s'", f"[vm.{'n' * 65}]: a name has 1 to 64 printable "
         "characters; give it another"),
        ('[vm."a\\u001b[2J"]\nqmp = "/s"', '[vm."a\\x1b[2J"]: a name has 1 to 64 printable '
         "characters; give it another"),
        ("[vm.'']\nqmp = '/s'", '[vm.""]: a name has 1 to 64 printable characters; give it '
         "another"),
        # --- how a VM is reached
        ("[vm.web]", "[vm.web]: nothing says how to reach it; add one of vhost_user, qmp, "
         "libvirt, cloud_hypervisor, firecracker, crosvm"),
        (f"{QMP}libvirt = 'qemu:///system'", "[vm.web] libvirt: it has qmp too; name one way to "
         "reach a VM"),
        (f"{QMP}[vm.db]\nfirecracker = '/run//web.qmp'", "[vm.db] firecracker: /run/web.qmp is "
         "[vm.web] qmp already; name each socket once"),
        ("[host]\nsocket = '/s'\n[vm.a]\nvhost_user = '/s'", "[vm.a] vhost_user: /s is [host] "
         "socket already; name each socket once"),
        ("[vm.a]\nqmp = 'web.qmp'", '[vm.a] qmp: "web.qmp" is a relative path; write it from / '
         "on"),
        ("[vm.a]\nqmp = ''", '[vm.a] qmp: "" is empty or not printable; name path like '
         "/run/balloond/web.sock"),
        ('[vm.a]\nqmp = "/a\\u0000b"', '[vm.a] qmp: "/a\\x00b" is empty or not printable; name '
         "path like /run/balloond/web.sock"),
        ("[vm.a]\nqmp = 3", '[vm.a] qmp: 3 is no path; write it like "/run/balloond/web.sock"'),
        (f"[vm.a]\nqmp = '/{'s' * 107}'", "[vm.a] qmp: a socket's path has at most 107 bytes; "
         "name a shorter"),
        ("[vm.a]\nlibvirt = 'system'", '[vm.a] libvirt: "system" is no libvirt URI; write it '
         "like qemu:///system"),
        ("[vm.a]\nlibvirt = 'qemu://other/system'", '[vm.a] libvirt: "qemu://other/system" is '
         "another host's; run a balloond there"),
        ("[vm.a]\nlibvirt = 'qemu+ssh:///system'", '[vm.a] libvirt: "qemu+ssh:///system" is '
         "another host's; run a balloond there"),
        # --- limits
        (f"{QMP}floor = 512", '[vm.web] floor: 512 is no size; write it like "512M"'),
        (f"{QMP}floor = true", '[vm.web] floor: True is no size; write it like "512M"'),
        (f"{QMP}floor = '512'", "[vm.web] floor: '512' has no unit; write 512G or 512M"),
        (f"{QMP}floor = '4Q'", "[vm.web] floor: '4Q' is not a size; write it like 4G, 512M or "
         "1.5GiB"),
        (f"{QMP}floor = '-1G'", "[vm.web] floor: '-1G' is not a size; write it like 4G, 512M or "
         "1.5GiB"),
        (f"{QMP}ceiling = false", '[vm.web] ceiling: False is no size; write it like "512M"'),
        (f"{QMP}memory = '4G'", "[vm.web] memory: only for vhost_user; a VM's size by qmp is its "
         "VMM's"),
        ("[vm.a]\nvhost_user = '/s'\nmemory = '1G'\nfloor = '2G'", "[vm.a] floor: 2 GiB is more "
         "than its memory, 1 GiB"),
        (f"{QMP}priority = 1001", "[vm.web] priority: 1001 is no whole number from -1000 to "
         "1000"),
        (f"{QMP}priority = 1.0", "[vm.web] priority: 1.0 is no whole number from -1000 to 1000"),
        (f"{QMP}priority = true", "[vm.web] priority: True is no whole number from -1000 to "
         "1000"),
        (f"{QMP}priority = 'high'", '[vm.web] priority: "high" is no whole number from -1000 to '
         "1000"),
        (f"{QMP}priority = 0x{'f' * 5000}", "[vm.web] priority: that number is no whole number "
         "from -1000 to 1000"),
        (f"{QMP}profile = 'carefull'", '[vm.web] profile: "carefull" is no profile; write seed '
         "or careful"),
        (f"{QMP}profile = []", "[vm.web] profile: [] is no profile; write seed or careful"),
        # --- the host, and what is discovered
        ("[host]\nmargin = nan", '[host] margin: nan is no size; write it like "512M"'),
        ("[host]\nlow_mem_dir = 'x'", '[host] low_mem_dir: "x" is a relative path; write it from '
         "/ on"),
        ("[discover]\nlibvirt = 'qemu:///system'", '[discover] libvirt: "qemu:///system" is no '
         'list; write it in brackets, ["qemu:///system"]'),
        ("[discover]\nqmp = ['/a', '/a']", '[discover] qmp: "/a" is there twice; name it once'),
        ("[discover]\nqmp = [1979-05-27]", "[discover] qmp: 1979-05-27 is no path; write it like "
         '"/run/balloond/web.sock"'),
    ],
)  # fmt: skip
@fault("mistake in the configuration file")
def test_mistake_is_one_line_that_names_its_place_and_the_remedy(text: str, said: str) -> None:
    assert mistakes(text) == [said]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[host", "(at end of document)"),
        ("a = '\x1b'", "(at line 1, column 6)"),
        ("a = " + "[" * 5000, "is nested too deeply"),
        (f"a = {'9' * 5000}", "Exceeds the limit"),
        (f"{QMP}{QMP}", "twice (at line 3, column 8); each table and key may be there once"),
        ("[host]\nmargin = '1G'\nmargin = '2G'", "; each table and key may be there once"),
    ],
)
@fault("mistake in the configuration file")
def test_text_that_is_no_toml_is_one_line_with_the_place(text: str, said: str) -> None:
    (mistake,) = mistakes(text)
    assert mistake.startswith("is no TOML: ")
    assert said in mistake


def test_value_of_a_mebibyte_is_shown_cut() -> None:
    (said,) = mistakes(f"{QMP}profile = '{'x' * LIMIT_BYTES}'")
    assert len(said) < 200


@fault("mistake in the configuration file")
def test_all_mistakes_are_found_in_one_go() -> None:
    said = mistakes("[host]\nmargin = 1\n[vm.a]\nfloor = 1\n[vm.b]\nqmp = 'x'\n[discover]\nx = 1")
    places = [line.partition(":")[0] for line in said]
    assert places == ["[host] margin", "[vm.a] floor", "[vm.a]", "[vm.b] qmp", "[discover] x"]


def parsed(text: str) -> Config | None:
    """The settings; None where the text has mistakes, which then are lines fit for a terminal."""
    try:
        return parse_config(text, FILE)
    except ConfigFileError as err:
        lines = err.mistakes
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
    assert mistake.startswith(f"{path}: ")
    return mistake.removeprefix(f"{path}: ")


def test_file_is_read(file: Path) -> None:
    assert [vm.name for vm in read_config(file).vms] == ["web"]


def test_link_to_a_file_is_followed(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    assert read_config(link).vms


def test_file_that_is_not_there_is_the_callers_to_judge(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_config(tmp_path / "none")


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
    assert refused(file) == "line 2 is not UTF-8; save it as UTF-8"


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
