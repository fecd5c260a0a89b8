"""Where metrics may be sent, and what is said of other places."""

from pathlib import Path

import pytest

from balloon_daemon.config.metrics_place import MetricsPlace, parse_metrics
from balloon_daemon.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("127.0.0.1:9710", MetricsPlace(None, "127.0.0.1", 9710)),
        ("0.0.0.0:0", MetricsPlace(None, "0.0.0.0", 0)),
        ("[::1]:65535", MetricsPlace(None, "::1", 65535)),
        ("/var/lib/a b/balloond.prom", MetricsPlace(Path("/var/lib/a b/balloond.prom"))),
    ],
)
def test_place_is_a_port_or_a_file(value: str, place: MetricsPlace) -> None:
    assert parse_metrics(value) == place
    assert str(place) == value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("9710", "is neither ADDRESS:PORT nor a path"),
        (9710, "is neither ADDRESS:PORT nor a path"),
        ("", "is neither ADDRESS:PORT nor a path"),
        ("127.0.0.1:", "is neither ADDRESS:PORT nor a path"),
        ("127.0.0.1:65536", "is neither ADDRESS:PORT nor a path"),
        ("127.0.0.1:" + "9" * 5000, "is neither ADDRESS:PORT nor a path"),
        ("127.0.0.1:\u0662", "is neither ADDRESS:PORT nor a path"),
        ("balloond.prom", "is neither ADDRESS:PORT nor a path"),
        (":9710", "has no IP address"),
        ("localhost:9710", "has no IP address"),
        ("::1:9710", "has no IP address"),
        ("[127.0.0.1]:9710", "has no IP address"),
        ("a\0b:9710", "has no IP address"),
        ("/var/lib/metrics", "does not end in .prom, and node_exporter reads no other file"),
    ],
)
def test_other_place_is_refused_with_an_example(value: object, said: str) -> None:
    with pytest.raises(ConfigError) as err:
        parse_metrics(value)
    assert said in str(err.value)
    assert "\n" not in str(err.value)
