"""The kinds of guests that were recorded: written by ``write_loads``. Pure."""

from balloon_daemon.ctl.simulate.load import Kernel, Kind, Load

KINDS = {
    "k61-anon": Kind(
        1024,
        Kernel(reserve_mib=66.5, least_mib=47.0),
        Load(anon_mib=738.0, cache_mib=3.0, works=True),
    ),
    "k61-burst": Kind(
        1024,
        Kernel(reserve_mib=66.5),
        Load(
            anon_mib=36.0, cache_mib=3.0, grow_mib=514, grow_at_s=25.0, grow_rate=225.5, works=True
        ),
    ),
    "k61-churn": Kind(
        1024,
        Kernel(reserve_mib=66.5),
        Load(anon_mib=26.5, cache_mib=3.0, works=True),
    ),
    "k61-coldstart": Kind(
        1024,
        Kernel(reserve_mib=66.5, low_mib=56.5),
        Load(anon_mib=36.0, cache_mib=3.0, stream_rate=10.0, stream_at_s=23.0, works=True),
    ),
    "k61-idle": Kind(
        1024,
        Kernel(reserve_mib=66.5),
        Load(anon_mib=36.0, cache_mib=3.0),
    ),
    "k61-mmapr": Kind(
        1024,
        Kernel(keep_mib=67.0),
        Load(
            anon_mib=37.0,
            cache_mib=603.0,
            set_mib=603.0,
            touch_rate=25.1,
            disk_rate=7.4,
            faults_per_mib=9.48,
            works=True,
        ),
    ),
    "k61-stream": Kind(
        1024,
        Kernel(keep_mib=70.0),
        Load(anon_mib=27.0, cache_mib=86.0, stream_rate=15.0, works=True),
    ),
    "k61-streamlate": Kind(
        1024,
        Kernel(reserve_mib=64.5, low_mib=57.5, keep_mib=71.0),
        Load(anon_mib=29.0, cache_mib=869.0, stream_rate=15.0, stream_at_s=23.0, works=True),
    ),
    "k61-zram": Kind(
        1024,
        Kernel(reserve_mib=65.5, least_mib=66.0),
        Load(anon_mib=738.0, cache_mib=3.0, swap_mib=452.5, swap_touches=1306.0, works=True),
    ),
    "k61-zramcold": Kind(
        1024,
        Kernel(reserve_mib=66.5, least_mib=78.0),
        Load(anon_mib=738.0, cache_mib=3.0, swap_mib=448.8),
    ),
    "k72-anon": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=70.5, least_mib=40.0),
        Load(anon_mib=739.0, cache_mib=3.0, works=True),
    ),
    "k72-burst": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=70.5, least_mib=49.0),
        Load(
            anon_mib=37.0,
            cache_mib=3.0,
            grow_mib=515,
            grow_at_s=24.0,
            grow_rate=260.5,
            grow_s=23.0,
            works=True,
        ),
    ),
    "k72-churn": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=70.5),
        Load(anon_mib=86.0, cache_mib=3.0, works=True),
    ),
    "k72-coldanon": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=70.5),
        Load(anon_mib=338.0, cache_mib=3.0),
    ),
    "k72-coldcache": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=67.1, low_mib=59.9, keep_mib=73.0),
        Load(anon_mib=127.0, cache_mib=757.0),
    ),
    "k72-coldstart": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=70.5, low_mib=57.5),
        Load(anon_mib=37.0, cache_mib=3.0, stream_rate=8.0, stream_at_s=23.0, works=True),
    ),
    "k72-idle": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=70.5),
        Load(anon_mib=37.0, cache_mib=3.0),
    ),
    "k72-mmapr": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=67.1, low_mib=59.9, keep_mib=69.0),
        Load(
            anon_mib=42.0,
            cache_mib=611.0,
            set_mib=611.0,
            touch_rate=32.6,
            disk_rate=10.8,
            faults_per_mib=0.21,
            works=True,
        ),
    ),
    "k72-read": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=67.1, low_mib=59.9, keep_mib=70.0),
        Load(
            anon_mib=37.0,
            cache_mib=611.0,
            set_mib=580.4,
            touch_rate=25.1,
            disk_rate=10.1,
            works=True,
        ),
    ),
    "k72-stream": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=67.6, low_mib=60.4, keep_mib=70.0),
        Load(anon_mib=38.0, cache_mib=99.0, stream_rate=16.0, works=True),
    ),
    "k72-streamlate": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=67.1, low_mib=59.9, keep_mib=69.0),
        Load(anon_mib=27.0, cache_mib=867.0, stream_rate=16.0, stream_at_s=23.0, works=True),
    ),
    "k72-zram": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=70.5, least_mib=62.0),
        Load(anon_mib=743.0, cache_mib=3.0, swap_mib=478.8, swap_touches=1029.0, works=True),
    ),
    "k72-zramcold": Kind(
        1024,
        Kernel(own_mib=61.0, reserve_mib=70.5, least_mib=79.0),
        Load(anon_mib=742.0, cache_mib=3.0, swap_mib=463.8),
    ),
}
