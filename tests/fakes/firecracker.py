"""Firecracker's API for tests, after its published description and what 1.12.1 really answers.

Source: src/firecracker/swagger/firecracker.yaml of 1.12.1 and 1.17.0-dev.
"""

from dataclasses import dataclass, field

from tests.fakes.http_vmm import HttpVmm, Reply

NOT_STARTED = "The requested operation is not supported before starting the microVM."
NO_BALLOON = "Balloon config error: No balloon device found."
NOT_ACTIVE = "Balloon config error: Error creating the balloon device: Device not activated yet."

BALLOON: dict[str, object] = {
    "amount_mib": 0,
    "deflate_on_oom": True,
    "stats_polling_interval_s": 1,
}
"""A balloon as PUT /balloon takes it."""


@dataclass
class FakeFirecracker(HttpVmm):
    """A microVM whose balloon follows at once, once its driver listens.

    Attributes:
        state: "Not started", "Running" or "Paused".
        mem_size_mib: its memory.
        huge_pages: "None" or "2M".
        balloon: what PUT /balloon has configured; None: no balloon.
        driver: whether its driver listens.
        actual_pages: the balloon's size, as the driver says; anything, from a guest that lies.
        stats: the guest's last statistics.
        plugged_size_mib: of virtio-mem; None: it has none, or is too old to have one.
    """

    state: str = "Running"
    mem_size_mib: object = 1024
    huge_pages: str = "None"
    balloon: dict[str, object] | None = field(default_factory=lambda: dict(BALLOON))
    driver: bool = True
    actual_pages: object = 0
    stats: dict[str, object] = field(default_factory=dict)
    plugged_size_mib: object = None

    def reply(self, method: str, target: str, body: object) -> Reply:
        match method, target, body:
            case "GET", "/", None:
                return 200, {"id": "vm", "state": self.state, "vmm_version": "1.12.1"}
            case "GET", "/vm/config", None:
                machine = {"mem_size_mib": self.mem_size_mib, "huge_pages": self.huge_pages}
                return 200, {"balloon": self.balloon, "drives": [], "machine-config": machine}
            case "GET", "/hotplug/memory", None if self.plugged_size_mib is not None:
                return 200, {"plugged_size_mib": self.plugged_size_mib}
            case _, _, _ if self.balloon is None:
                return _fault(NO_BALLOON)
            case _, _, _ if self.state == "Not started":
                return _fault(NOT_STARTED)
            case "GET", "/balloon/statistics", None if self.balloon["stats_polling_interval_s"]:
                sizes = {
                    "target_mib": self.balloon["amount_mib"],
                    "actual_pages": self.actual_pages,
                }
                return 200, sizes | self.stats
            case "PATCH", "/balloon/statistics", {"stats_polling_interval_s": int(interval)} if (
                interval and self.balloon["stats_polling_interval_s"]
            ):
                self.balloon["stats_polling_interval_s"] = interval
                return 204, None
            case "PATCH", "/balloon", {"amount_mib": int(amount_mib)}:
                if not self.driver:
                    return _fault(NOT_ACTIVE)
                self.balloon["amount_mib"] = amount_mib
                self.actual_pages = amount_mib * 256
                return 204, None
        return _fault(f"Invalid request method and/or path: {method} {target}.")


def _fault(message: str) -> Reply:
    return 400, {"fault_message": message}
