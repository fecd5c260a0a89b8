"""Cloud Hypervisor's API for tests, after its published description.

Source: vmm/src/api/openapi/cloud-hypervisor.yaml, API 0.3.0, of 2026-08.
"""

from dataclasses import dataclass, field

from tests.fakes.http_vmm import HttpVmm, Reply


@dataclass
class FakeCloudHypervisor(HttpVmm):
    """A VM whose balloon follows at once, once it runs.

    Attributes:
        state: one of VmState; "" before vm.create.
        memory: the configuration's ``memory``.
        config: the rest of the configuration.
        actual_bytes: the balloon's size; anything, from a VMM that lies.
        balloon_stats: what vm.balloon-stats answers; None: the version has none, 500: its driver
            has not acknowledged statistics.
    """

    state: str = "Running"
    memory: dict[str, object] = field(default_factory=lambda: {"size": 1 << 30})
    config: dict[str, object] = field(
        default_factory=lambda: {"balloon": {"size": 0, "deflate_on_oom": True}}
    )
    actual_bytes: int = 0
    balloon_stats: object = None

    def reply(self, method: str, target: str, body: object) -> Reply:
        match method, target.removeprefix("/api/v1/"), body:
            case "GET", "vm.info", None if self.state:
                size = self.memory["size"]
                assert isinstance(size, int)
                return 200, {
                    "config": self.config | {"memory": self.memory},
                    "state": self.state,
                    "memory_actual_size": size - self.actual_bytes,
                    "device_tree": {"_balloon": {"id": "_balloon", "resources": []}},
                }
            case "PUT", "vm.resize", {"desired_balloon": int(desired)} if self.state:
                if self.config.get("balloon") is None:
                    return 500, ["Error from API", "Virtio-balloon does not exist"]
                self.actual_bytes = desired
                return 204, None
            case "GET", "vm.balloon-stats", None if self.balloon_stats == 500:
                return 500, ["Error from API", "Feature not negotiated"]
            case "GET", "vm.balloon-stats", None if self.balloon_stats is not None:
                return 200, self.balloon_stats
        return 404, None
