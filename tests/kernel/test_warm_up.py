"""What the template does before it forks: a device's work, over memory of its own."""

import gc
import os
import resource
import subprocess
import sys
from pathlib import Path

import _prctl
import pytest

from balloon_daemon.device import template as template_module
from balloon_daemon.device.gathered_code import code_run_by, gather
from balloon_daemon.device.template import Template
from balloon_daemon.device.warm_up import ROUNDS, warm_up
from tests.fakes.another_template import another_template
from tests.harness.short_host import limited

ADAPTED = """
import dis
from balloon_daemon.device import balloon, loop, request, start, warm_up
from balloon_daemon.virtio import split_queue
functions = (
    loop.DeviceLoop.turn, loop.DeviceLoop._obey, balloon.BalloonDevice.process,
    split_queue.SplitQueue.pop, request.decode_spec, start.assemble,
)
def adapted():
    return [
        [one.opname for one in dis.get_instructions(function, adaptive=True)]
        != [one.opname for one in dis.get_instructions(function)]
        for function in functions
    ]
print(any(adapted()))
warm_up.warm_up()
print(all(adapted()))
"""


def test_all_queues_are_served_and_nothing_stays_open() -> None:
    gc.collect()  # What other tests have left open would be closed by the warm-up's collection.
    before = set(os.listdir("/proc/self/fd"))
    assert warm_up() == ROUNDS * 4 * 2
    assert set(os.listdir("/proc/self/fd")) == before


def test_process_that_may_open_nothing_goes_on() -> None:
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with limited(os.getpid(), resource.RLIMIT_NOFILE, lowest_free):
        answered = warm_up()
    assert answered == 0


def test_what_a_device_runs_is_adapted_to_it_before_the_fork() -> None:
    done = subprocess.run([sys.executable, "-c", ADAPTED], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


GATHERED = """
import gc, sys
sys.path += {path!r}
from types import FunctionType
from balloon_daemon.device import small_modules, forker, gathered_code, warm_up
def gather(codes, modules):
    functions = [
        thing
        for thing in gc.get_objects()
        if type(thing) is FunctionType and thing.__code__ in set(codes)
    ]
    def pages():
        return len({{id(function.__code__) // 4096 for function in functions}})
    before = pages()
    gathered_code.gather(codes, modules)
    print(len(functions), before, pages())
warm_up.gather = gather
warm_up.warm_up()
"""


def test_code_that_a_device_runs_is_on_fewer_pages_after_it() -> None:
    path = [str(Path(_prctl.__file__).parent), str(Path(__file__).parents[2])]
    command = [sys.executable, "-I", "-S", "-c", GATHERED.format(path=path)]
    done = subprocess.run(command, capture_output=True, text=True)
    functions, before, after = map(int, done.stdout.split())
    assert functions > 80
    assert after < before


def test_code_is_gathered_in_the_order_given_and_does_what_it_did() -> None:
    def outer(numbers: list[int]) -> list[int]:
        return [number + len(numbers) for number in numbers]

    def run() -> None:
        assert outer([1, 2]) == [3, 4]

    ran = code_run_by(run)
    assert ran[:2] == [run.__code__, outer.__code__]
    before = outer.__code__
    gather(ran, ())
    assert outer.__code__ is not before
    assert outer.__code__ == before
    run()


def test_template_warms_up_before_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = "from balloon_daemon.device import forker\nforker.warm_up = lambda: os._exit(1)"
    monkeypatch.setattr(template_module, "PROGRAM", another_template(f"import os\n{ends}"))
    template = Template()
    with pytest.raises(OSError, match="it ended at once"):
        template.wait_until_ready()
    template.close()
