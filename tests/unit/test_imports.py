"""What the daemon does not load before it listens: each costs milliseconds and megabytes."""

import ast
import gettext
import importlib
import subprocess
import sys
from pathlib import Path

import _prctl
import pytest

import balloon_daemon
from balloon_daemon.cli.asyncio_lean import LATER
from balloon_daemon.small_typing import OF_TYPING
from tests.harness.faults import fault

LOADS_INSPECT = sys.version_info[:2] == (3, 14)
"""Python 3.14's own asyncio.graph has dataclasses load inspect; 3.15 loads it for no docstring."""

OF_INSPECT = () if sys.version_info >= (3, 14) else ("inspect", "ast", "dis")
"""What loads with inspect where balloond decides when."""

PACKAGE = Path(balloon_daemon.__file__ or "").parent

MOST_DATACLASSES = 19
"""That are mutable, check their values, or are changed by many (Config, Stats)."""

MOST_OF_TYPING = 10
"""Named tuples: named_tuple.py's own two, and what a new module brings before it is looked at."""


def run(program: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_daemon_does_not_load_what_only_some_hosts_need() -> None:
    """libcrypto is for hosts with a store, each driver for those whose VMs need it."""
    loaded = run("import sys, balloon_daemon.cli.run; print(*sys.modules)").split()
    assert {"_hashlib", "_ssl", "tomllib", "balloon_daemon.cli.trial"}.isdisjoint(loaded)
    drivers = ("guests.driven.", "guests.jailed.", "guests.libvirt.", "seccomp.compiler")
    assert [
        name for name in loaded if any(f"balloon_daemon.{each}" in name for each in drivers)
    ] == []


def test_template_loads_no_dataclasses() -> None:
    """They load inspect, ast, dis and tokenize: a quarter of the template's start."""
    loaded = run("import sys, balloon_daemon.device.forker; print(*sys.modules)").split()
    assert "balloon_daemon.device.spec" in loaded
    assert {"dataclasses", "inspect", "pathlib", "subprocess", "asyncio"}.isdisjoint(loaded)


TEMPLATE = """
import sys
before = set(sys.modules)
sys.path += {path!r}
from balloon_daemon.device import small_modules, forker
loaded = set(sys.modules) - before
files = [name for name in loaded if hasattr(sys.modules[name], "__file__")]
print(*(name for name in files if not name.startswith("balloon_daemon")))
print(sys.modules["socket"].__name__, sys.modules["signal"].__name__)
"""


def test_template_loads_no_typing_and_no_enumerations_of_constants() -> None:
    """They were a third of the template's start, and each device has what the template has."""
    path = [str(Path(_prctl.__file__).parent), str(PACKAGE.parent)]
    command = [sys.executable, "-I", "-S", "-c", TEMPLATE.format(path=path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded, small = done.stdout.splitlines()
    assert {"ctypes", "mmap"} <= {*loaded.split()}
    others = {"typing", "_typing", "re", "socket", "signal", "selectors"}
    # From Python 3.14 on named_tuple.py needs the real typing, which brings the others.
    assert sys.version_info >= (3, 14) or others.isdisjoint(loaded.split())
    assert small == ("_socket _signal" if sys.version_info < (3, 14) else small)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="uses typing's from Python 3.14 on")
def test_each_module_can_be_imported_with_the_stand_in_for_typing() -> None:
    """One that is imported late would fail while VMs are served."""
    rooms = {"ctl", "fake_guest", "__main__"}
    names = [
        ".".join(("balloon_daemon", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in sorted(PACKAGE.rglob("*.py"))
        if rooms.isdisjoint(path.relative_to(PACKAGE).with_suffix("").parts)
    ]
    assert len(names) > 200
    # A module that loads the real typing must not put it in the stand-in's place for the next one:
    # give the stand-in all other names from the beginning.
    program = f"""
import importlib, sys
import typing as real
del sys.modules["typing"]
from balloon_daemon import small_typing
others = (name for name in vars(real) if name[:2] != "__" and name not in small_typing.OF_TYPING)
vars(sys.modules["typing"]).update((name, getattr(real, name)) for name in others)
from balloon_daemon.cli import asyncio_lean
for name in {names!r}:
    try:
        importlib.import_module(name)
    except Exception as err:
        print(name, repr(err))
"""
    assert run(program) == ""


def test_stand_in_for_typing_has_all_that_balloond_imports_from_it() -> None:
    """Another name would load typing, perhaps while VMs are served."""
    sources = [
        path
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("ctl", "fake_guest")
    ]
    named = {
        alias.name
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "typing"
        for alias in node.names
    }
    # named_tuple.py imports it for type checkers only.
    assert named - OF_TYPING.keys() == {"NamedTuple"}


def test_command_line_loads_no_compression_library() -> None:
    program = "import sys; from balloon_daemon.cli import flags; flags.build_parser(); "
    loaded = run(program + "print(*sys.modules)").split()
    assert "balloon_daemon.cli.flags" in loaded
    assert {"shutil", "bz2", "lzma", "_bz2", "_lzma"}.isdisjoint(loaded)


def test_host_without_driven_vms_loads_none_of_their_modules() -> None:
    program = """\
import sys, balloon_daemon.cli.run
from balloon_daemon.config.model import Config
from balloon_daemon.guests.open_guest import Drivers
assert Drivers(print).open(Config()) == []
print(*sys.modules)
"""
    rooms = ("balloon_daemon.guests.driven", "balloon_daemon.guests.libvirt")
    assert [name for name in run(program).split() if name.startswith(rooms)] == []


def test_what_a_running_daemon_needs_is_loaded_before_it_serves() -> None:
    """Whoever may list a directory of modules can keep an import waiting, and so all VMs."""
    program = """\
import sys, balloon_daemon.cli.run
from balloon_daemon.cli import own_api
from balloon_daemon.guests.open_guest import NEW_LOW, asker
from balloon_daemon.records.bus import Bus
from balloon_daemon.sizing.balloon_policy import PolicySettings
asker(NEW_LOW)
own_api._server([], PolicySettings(), Bus())
print(*sys.modules)
"""
    needed = {"config.carried", "guests.driven.lookups", "records.entries", "records.recorder"}
    loaded = run(program).split()
    assert {f"balloon_daemon.{name}" for name in needed} <= {*loaded}


@pytest.mark.parametrize("kind", ["qmp", "firecracker", "cloud_hypervisor", "crosvm", "libvirt"])
def test_host_loads_the_modules_of_the_kinds_that_it_has(kind: str) -> None:
    program = f"""\
import sys, balloon_daemon.cli.run
from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.guests.open_guest import Drivers
from balloon_daemon.sizing.vm_settings import SEED
assert len(Drivers(print).open(Config(vms=(VmConfig("web", Kind("{kind}"), "/w", SEED),)))) == 1
print(*sys.modules)
"""
    loaded = run(program).split()
    names = {"driven.qmp", "driven.firecracker", "driven.cloud_hypervisor", "driven.crosvm"}
    mine = f"driven.{kind}" if kind != "libvirt" else "libvirt.driver"
    assert f"balloon_daemon.guests.{mine}" in loaded
    assert not {f"balloon_daemon.guests.{name}" for name in names - {mine}} & {*loaded}


def test_lean_asyncio_works_and_has_no_ssl() -> None:
    program = """\
import sys
from balloon_daemon.cli.asyncio_lean import asyncio
import balloon_daemon.controller.loop
async def echo():
    ours, theirs = asyncio.Event(), await asyncio.create_subprocess_exec("true")
    ours.set()
    await asyncio.wait_for(ours.wait(), 5)
    return await theirs.wait()
print(asyncio.run(echo()), "_ssl" in sys.modules)
"""
    assert run(program) == "0 False\n"


def test_lean_asyncio_has_all_that_asyncio_has_and_loads_the_rest_when_it_is_used() -> None:
    exported = run("import asyncio; print(*asyncio.__all__)").split()
    program = f"""\
import sys
from balloon_daemon.cli.asyncio_lean import asyncio
names = "streams", "subprocess", "taskgroups", "queues", "threads"
print(*(name for name in names if "asyncio." + name in sys.modules))
print(*(name for name in {exported} if not hasattr(asyncio, name)))
print(asyncio.streams.StreamReader is asyncio.StreamReader, hasattr(asyncio, "nothing"))
"""
    loaded = "streams subprocess taskgroups queues threads"
    if sys.version_info < (3, 14):
        # Python 3.13's asyncio.tasks imports queues itself.
        loaded = "queues" if sys.version_info >= (3, 13) else ""
    assert run(program) == f"{loaded}\n\nTrue False\n"


def test_others_import_ssl_after_lean_asyncio() -> None:
    program = "from balloon_daemon.cli.asyncio_lean import asyncio; import ssl; print(ssl.HAS_SNI)"
    assert run(program) == "True\n"


def test_daemon_loads_modules_for_errors_and_debugging_at_their_first_use() -> None:
    names = (*OF_INSPECT, "tokenize", "ipaddress", "textwrap")
    program = f"""\
import sys, signal
import balloon_daemon.cli.run, balloon_daemon.cli.own_device
import asyncio, dataclasses, ipaddress
def loaded():
    names = {names}
    return [name for name in names if hasattr(sys.modules.get(name), "__file__")]
async def serve():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
asyncio.run(serve())
print(*loaded())
print(ipaddress.ip_address("::1"), ipaddress.ip_address("::2"), *loaded())
@dataclasses.dataclass
class NoDocstring:
    field: int
print(NoDocstring.__doc__, *loaded())
"""
    assert run(program).split("\n") == [
        "",
        "::1 ::2 ipaddress",
        f"NoDocstring(field: int) {' '.join([*OF_INSPECT, 'ipaddress'])}",
        "",
    ]


@fault("a mistake of balloond's own in a callback, with no descriptor left")
def test_callback_that_fails_loads_no_module_and_the_loop_goes_on() -> None:
    """A module's import would read files, and fail; asyncio would let that end the loop."""
    program = """\
import functools, os, resource, sys
import balloon_daemon.cli.run
import asyncio
class Bound:
    def method(self):
        1 / 0
@functools.wraps(Bound.method)
def wrapped():
    1 / 0
def failed(loop, context):
    print(type(context["exception"]).__name__, context["message"].split(" at ")[0])
async def serve():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(failed)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, lowest_free))
    before = {name: id(module) for name, module in sys.modules.items()}
    for callback in (Bound().method, wrapped, functools.partial(wrapped)):
        loop.call_soon(callback)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    print(before == {name: id(module) for name, module in sys.modules.items()})
asyncio.run(serve())
"""
    names = ("Bound.method()", "Bound.method()", "Bound.method()()")
    lines = [f"ZeroDivisionError Exception in callback {name}" for name in names]
    assert run(program) == "\n".join([*lines, "True", ""])


def test_start_loads_no_module_that_has_a_stand_in() -> None:
    program = """\
import sys
import balloon_daemon.device.template
import balloon_daemon.cli.run, balloon_daemon.cli.own_device, balloon_daemon.cli.failed_start
from balloon_daemon.cli.asyncio_lean import LATER
balloon_daemon.cli.run.build_parser().parse_args(["--keep-fds"])
print(*(name for name in LATER if hasattr(sys.modules[name], "__file__")), "and")
print("locale" in sys.modules, "string" in sys.modules)
"""
    loaded = "inspect " if LOADS_INSPECT else ""
    assert run(program) == f"{loaded}and\nFalse False\n"


def test_stand_ins_give_what_the_modules_have() -> None:
    for module, given in LATER.items():
        real = importlib.import_module(module)
        for name, value in given.items():
            assert (
                callable(getattr(real, name)) if callable(value) else getattr(real, name) == value
            )


def test_argparse_says_the_same_with_untranslated_messages() -> None:
    given = LATER["gettext"]
    for name, args in (
        ("gettext", ["usage: "]),
        ("ngettext", ["a", "b", 1]),
        ("ngettext", ["a", "b", 2]),
    ):
        says = given[name]
        assert callable(says)
        assert says(*args) == getattr(gettext, name)(*args)


def test_module_is_loaded_in_its_stand_ins_place() -> None:
    program = """\
import sys, balloon_daemon.cli.run
import urllib.parse, concurrent.futures, pathlib, random, traceback, logging
print(urllib.parse.quote("a b"), concurrent.futures.Future().done())
print(pathlib.Path("/a b").as_uri(), random.Random(1).random() < 1)
print(urllib.parse.__name__, sys.modules["urllib.parse"] is urllib.parse)
print(bool(traceback.extract_stack()), logging.getLogger("own").name, logging.INFO)
"""
    assert run(program).split("\n") == [
        "a%20b False",
        "file:///a%20b True",
        "urllib.parse True",
        "True own 20",
        "",
    ]


def test_asyncios_warnings_are_printed_without_loading_logging() -> None:
    program = """\
import sys, balloon_daemon.cli.run
from asyncio.log import logger
sys.stderr = sys.stdout
logger.debug("nobody %s", "sees this")
logger.warning("socket.send() raised exception.")
try:
    1 / 0
except ZeroDivisionError:
    logger.error("Unable to check %r: 100%%", "/run/s", exc_info=True)
print(hasattr(sys.modules["logging"], "__file__"))
"""
    said = ["socket.send() raised exception.", "Unable to check '/run/s': 100%", "False", ""]
    assert run(program).split("\n") == said


def test_annotations_of_a_class_are_told_before_inspect_is_loaded_and_of_others_by_it() -> None:
    program = """\
from balloon_daemon.cli.asyncio_lean import asyncio
import inspect
class Base: field: int
class Derived(Base): pass
class Bare: pass
def function(a: "int"): pass
print(*map(inspect.get_annotations, (Base, Derived, Bare)), inspect.get_annotations(function))
print(inspect.get_annotations(function, eval_str=True))
"""
    assert run(program) == ("{'field': <class 'int'>} {} {} {'a': 'int'}\n{'a': <class 'int'>}\n")


def test_coroutine_function_is_refused_as_a_signal_handler() -> None:
    program = """\
import signal
from balloon_daemon.cli.asyncio_lean import asyncio
async def handler(): pass
async def serve():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, handler)
try:
    asyncio.run(serve())
except TypeError as err:
    print(err)
"""
    assert run(program) == "coroutines cannot be used with add_signal_handler()\n"


def test_traceback_shows_source_lines_though_tokenize_was_not_loaded() -> None:
    program = """\
import balloon_daemon.cli.run, traceback
try:
    balloon_daemon.cli.run.printable(None)
except Exception:
    print(traceback.format_exc())
"""
    assert "if text.isprintable():" in run(program)


def test_lean_asyncio_leaves_a_loaded_one_alone() -> None:
    program = """\
import ssl
from balloon_daemon.cli.asyncio_lean import asyncio
from asyncio import sslproto
print(sslproto.ssl is ssl)
"""
    assert run(program) == "True\n"


DRIVERS = """\
import sys
import balloon_daemon.cli.run
from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.guests.open_guest import Drivers
from balloon_daemon.sizing.vm_settings import VmSettings
before = set(sys.modules)
vms = [VmConfig("web", Kind[name], "/run/web", VmSettings()) for name in sys.argv[1:]]
Drivers(print).open(Config(vms=tuple(vms)))
print(*(name.removeprefix("balloon_daemon.guests.") for name in set(sys.modules) - before))
"""


def loaded_for(*kinds: str) -> set[str]:
    """What the drivers of VMs of these kinds load."""
    command = [sys.executable, "-c", DRIVERS, *kinds]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_daemon_without_driven_vms_loads_nothing_for_them() -> None:
    assert loaded_for() == set()
    assert loaded_for("VHOST_USER") == set()


def test_daemon_that_drives_by_qmp_loads_no_other_vmms_language() -> None:
    loaded = loaded_for("QMP")
    assert "driven.qmp" in loaded
    others = (
        "driven.http",
        "driven.fire",
        "driven.cloud",
        "driven.cros",
        "libvirt",
        "ssl",
        "_ssl",
    )
    assert [name for name in loaded if name.startswith(others)] == []


def test_daemon_without_an_api_loads_nothing_for_it() -> None:
    loaded = run("import sys, balloon_daemon.cli.run; print(*sys.modules)").split()
    assert [name for name in loaded if name.startswith(("balloon_daemon.api", "h11"))] == []
    # Python 3.13's pathlib imports grp, for Path.group.
    of_python = run("import sys, pathlib; print(*sys.modules)").split()
    assert {"balloon_daemon.records.recent", "grp"}.isdisjoint(set(loaded) - set(of_python))


def test_api_loads_no_other_http_and_no_ssl() -> None:
    program = """\
import sys
from balloon_daemon.cli.asyncio_lean import asyncio
import balloon_daemon.cli.run
before = set(sys.modules)
import balloon_daemon.api.server
print(*(set(sys.modules) - before))
"""
    loaded = run(program).split()
    assert "h11" in loaded
    others = ("http", "ssl", "_ssl", "email", "balloon_daemon.guests", "balloon_daemon.controller")
    assert [name for name in loaded if name.startswith(others)] == []


def test_start_makes_few_dataclasses() -> None:
    """Making one takes half a millisecond, a named tuple 0.02."""
    program = """\
import dataclasses
made, process = [], dataclasses._process_class
def counted(cls, *args):
    if cls.__module__.startswith("balloon_daemon."):
        made.append(cls.__qualname__)
    return process(cls, *args)
dataclasses._process_class = counted
import balloon_daemon.cli.run, balloon_daemon.cli.own_device
print(*made)
"""
    made = run(program).split()
    assert "Config" in made
    assert len(made) <= MOST_DATACLASSES, made


def test_start_makes_few_named_tuples_by_typing() -> None:
    """Making one takes 0.05 ms and 5 KiB, by named_tuple.py 0.02 and 3."""
    program = """\
import gc, balloon_daemon.cli.run, balloon_daemon.cli.own_device
classes = [cls for cls in gc.get_objects() if isinstance(cls, type) and issubclass(cls, tuple)]
ours = [cls for cls in classes if cls.__module__.startswith("balloon_daemon.")]
theirs = [cls for cls in ours if "_replace" in vars(cls)]
print(len(ours), *(cls.__qualname__ for cls in theirs))
"""
    made, *by_typing = run(program).split()
    assert int(made) > 200
    # Python 3.14's own know how to ask a class for its annotations (named_tuple.py).
    most = MOST_OF_TYPING if sys.version_info < (3, 14) else int(made)
    assert len(by_typing) <= most, by_typing
