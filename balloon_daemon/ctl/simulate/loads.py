"""The loads of the recorded guests, as ``fit`` finds them. Pure."""

from balloon_daemon.ctl.simulate.load import Load

LOADS = {
    "idle": Load(39.0),
    "coldcache": Load(137.0, 750.0),
    "stream": Load(30.0, 140.0, stream_rate=15.0),
    "coldstart": Load(39.0, stream_rate=10.0, stream_at_s=22.0, stream_mib=250.0),
    "read": Load(44.0, 603.0, 603.0, 25.0),
    "mmapr": Load(37.0, 603.0, 603.0, 70.0, faults_per_mib=9.0),
    "anon": Load(738.0),
    "zram": Load(752.0, swap_mib=512.0, swap_touches=1200.0),
    "burst": Load(39.0, grow_mib=500.0, grow_at_s=24.0, grow_rate=110.0),
}
