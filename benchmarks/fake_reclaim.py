"""What a GiB costs end to end: device and controller, with a driver that waits for each buffer.

The fake guest does what Linux's driver does: it asks for the target, sends 256 PFNs, waits for
them, writes ``actual``. So each MiB costs a kick, a call, a GET_CONFIG and a SET_CONFIG.
"""

from collections.abc import Iterator

from balloon_daemon.fake_guest.client import FakeGuestProcess
from balloon_daemon.units import GIB
from benchmarks import c_programs
from benchmarks.figures import Figure, at_most, missing, of_samples, ratios
from benchmarks.guest_file import GuestFile
from benchmarks.processes import Balloond, cpu_s
from benchmarks.traces import GUEST_BYTES, RECORDED, Trace, every_trace

RUNS = 5
SPEED = ("--speed", "1000")
"""All sixteen levels in 16 ms, so that the target is never what is waited for."""


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    name = "1 GiB from the fake guest"
    try:
        floor = c_programs.floor()
    except c_programs.CompilerError as err:
        yield missing(f"{name}: CPU to the floor's", "×", str(err), at_most(1.3))
        return
    trace = next(trace for trace in every_trace() if trace.fresh).first(GIB >> 20)
    path = sorted(RECORDED.glob("k61*fresh*.npz"))[0]
    device, controller, back, floors = [], [], [], []
    file = GuestFile.in_memory(GUEST_BYTES)
    for _ in range(RUNS):
        with Balloond([*SPEED], woken=True) as daemon:
            arguments = ["--socket", str(daemon.socket), "--mem", "2G", "--touched", "1G"]
            with FakeGuestProcess([*arguments, "--order", str(path)]) as guest:
                costs = take_and_give_back(daemon, guest)
        device.append(costs[0])
        controller.append(costs[1])
        back.append(costs[2])
        floors.append(floor_cpu(floor, file, trace))
    file.close()
    both = [one + other for one, other in zip(device, controller, strict=True)]
    yield of_samples(f"{name}: CPU, device", "s/GiB", device)
    yield of_samples(f"{name}: CPU, controller", "s/GiB", controller)
    yield of_samples(f"{name}: CPU, floor in C", "s/GiB", floors)
    yield of_samples(f"{name}: CPU to the floor's", "×", ratios(both, floors), at_most(1.3))
    yield of_samples("1 GiB back to the fake guest: CPU of both", "s/GiB", back)


def take_and_give_back(daemon: Balloond, guest: FakeGuestProcess) -> tuple[float, float, float]:
    """CPU seconds of device and controller for taking 1 GiB, and of both for giving it back."""
    (device,) = daemon.wait_devices(1)
    device_s, controller_s = take(daemon, guest)
    begun = cpu_s(device), cpu_s(daemon.pid)
    daemon.host.set_plenty()
    guest.wait_status(lambda status: status["actual_bytes"] == 0, "an empty balloon")
    given = cpu_s(device), cpu_s(daemon.pid)
    return device_s, controller_s, sum(given) - sum(begun)


def take(daemon: Balloond, guest: FakeGuestProcess) -> tuple[float, float]:
    """CPU seconds of device and controller for taking 1 GiB."""
    (device,) = daemon.wait_devices(1)
    begun = cpu_s(device), cpu_s(daemon.pid)
    daemon.host.set_low()
    daemon.wait_target(GIB)
    daemon.host.set_enough()
    guest.wait_status(lambda status: status["actual_bytes"] == GIB, "1 GiB in the balloon")
    taken = cpu_s(device), cpu_s(daemon.pid)
    return taken[0] - begun[0], taken[1] - begun[1]


def floor_cpu(floor: c_programs.CProgram, file: GuestFile, trace: Trace) -> float:
    """CPU seconds in which C takes a trace's pages."""
    file.touch()
    return floor.run(file, trace.ranges())[1]
