"""What is free in the per-CPU lists, from a file as Linux 6.18 prints it, and from none."""

import mmap
from pathlib import Path

import psutil
import pytest

from balloon_daemon.host.zoneinfo import ZONEINFO, per_cpu_free_bytes

PAGE = mmap.PAGESIZE

# Two zones with two CPUs each, and one without pages, which has no lists.
CONTENT = """\
Node 0, zone    DMA32
  per-node stats
      nr_inactive_anon 372079
  pages free     772808
        managed  772808
        cma      0
      nr_free_pages 772808
  pagesets
    cpu: 0
              count:    7
              high:     1753
              batch:    63
              high_min: 1753
              high_max: 48300
  vm stats threshold: 24
    cpu: 1
              count:    0
              high:     1753
  node_unreclaimable:  0
Node 0, zone   Normal
  pages free     5000000
        managed  227192
  pagesets
    cpu: 0
              count:    12700
              high:     13104
    cpu: 1
              count:    300
Node 0, zone  Movable
  pages free     0
        managed  0
"""
TOTAL_BYTES = 1_000_000 * PAGE


@pytest.fixture
def zoneinfo(tmp_path: Path) -> Path:
    path = tmp_path / "zoneinfo"
    path.write_text(CONTENT)
    return path


@pytest.mark.parametrize("total_bytes", [TOTAL_BYTES, TOTAL_BYTES - 9000 * PAGE, 2 * TOTAL_BYTES])
def test_counts_of_all_lists_are_added(zoneinfo: Path, total_bytes: int) -> None:
    assert per_cpu_free_bytes(total_bytes, zoneinfo) == (7 + 12700 + 300) * PAGE


@pytest.mark.parametrize("total_bytes", [TOTAL_BYTES * 98 // 100, TOTAL_BYTES // 2, 0])
def test_lists_of_another_host_count_for_nothing(zoneinfo: Path, total_bytes: int) -> None:
    assert per_cpu_free_bytes(total_bytes, zoneinfo) == 0


@pytest.mark.parametrize("content", [b"", b"managed\xff\0count: many\n"])
def test_what_is_no_zoneinfo_gives_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "zoneinfo"
    path.write_bytes(content)

    assert per_cpu_free_bytes(TOTAL_BYTES, path) == 0
    assert per_cpu_free_bytes(TOTAL_BYTES, tmp_path / "none") == 0


def test_this_kernels_file_is_understood() -> None:
    total_bytes = psutil.virtual_memory().total
    # Of an idle host some are 0; of all zones and CPUs together they never are, nor above a half.
    assert 0 < per_cpu_free_bytes(total_bytes, ZONEINFO) < total_bytes // 2
