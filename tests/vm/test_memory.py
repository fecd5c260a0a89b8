"""Guest memory in several pieces: several memfds, and one memfd in several regions."""

from pathlib import Path

import pytest

from tests.harness.low_mem_dir import LowMemDir
from tests.vm.ballooned_vm import VmConfig
from tests.vm.qemu import MIB
from tests.vm.running import Running

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("config", "file_mib"),
    [
        # The guest takes pages from its first memfd before it takes any from its second.
        pytest.param(VmConfig("bookworm", memory_backends=2, cpus=2), 96, id="two memfds"),
        # q35 maps what lies beyond 2 GiB at 4 GiB, from the same memfd with an offset.
        pytest.param(VmConfig("forky", memory_mib=3072), 128, id="two regions"),
    ],
)
def test_balloon_takes_pages_of_every_piece_and_no_others(
    vms: Running, tmp_path: Path, config: VmConfig, file_mib: int
) -> None:
    vm = vms.own(config, "pieces", LowMemDir(tmp_path / "low_mem", margin_mib=400))
    before = vm.write_file(file_mib)
    vm.fill_page_cache(min(config.memory_mib, 1280))
    filled_bytes = vm.host_bytes()

    vm.inflate()
    inflated_bytes = vm.host_bytes()
    inflated = vm.checksum()
    vm.deflate()
    deflated = vm.checksum()

    kept_bytes = config.memory_mib * MIB - vm.max_bytes
    assert filled_bytes > 1.25 * kept_bytes
    assert inflated_bytes < 1.02 * kept_bytes
    assert (inflated, deflated) == (before, before)
