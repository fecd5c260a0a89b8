"""The search for wall clocks: what it must find, and what it must not."""

import pytest

from tests.fakes.wall_clocks import wall_clocks
from tests.harness.faults import fault


@fault("wall clock jumps")
@pytest.mark.parametrize(
    "source",
    [
        "import time; time.time()",
        "import time; time.time_ns()",
        "import time as t; t.time()",
        "import time; clock = time.time",
        "from time import time",
        "from time import time_ns as ns; ns()",
        "import time; time.clock_gettime(time.CLOCK_REALTIME)",
        "from time import CLOCK_REALTIME, clock_gettime; clock_gettime(CLOCK_REALTIME)",
        "import time; time.clock_gettime(0)",
        "import time; time.clock_gettime_ns(which)",
        "import time; time.strftime('%H')",
        "import datetime; datetime.datetime.now()",
        "import datetime; datetime.date.today()",
        "import datetime as dt; dt.datetime.utcnow()",
        "from datetime import datetime; datetime.now()",
        "from datetime import datetime as when; when.now()",
        "from datetime import date; date.today()",
        "def f():\n    import time\n    return time.time()",
    ],
)
def test_wall_clock_is_found_whatever_it_is_called(source: str) -> None:
    assert wall_clocks(source)


@pytest.mark.parametrize(
    "source",
    [
        "import time; time.monotonic()",
        "import time; time.clock_gettime(time.CLOCK_BOOTTIME)",
        "loop.time()",
        "self.time.time()",
        "from datetime import datetime; datetime.fromtimestamp(record.created)",
    ],
)
def test_other_clocks_are_not_taken_for_a_wall_clock(source: str) -> None:
    assert wall_clocks(source) == set()
