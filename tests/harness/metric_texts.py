"""The text of metrics, read by Prometheus' own client library, which the daemon does not load."""

from typing import NamedTuple

from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Found(NamedTuple):
    """A text's content.

    Attributes:
        kinds: the type of each family, by the family's name.
        samples: each sample's value, by its name and its labels.
    """

    kinds: dict[str, str]
    samples: Samples

    def value(self, name: str, **labels: str) -> float | None:
        """A sample's value; None: there is no such sample."""
        return self.samples.get((name, frozenset(labels.items())))

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of all samples of a name."""
        return [dict(labels) for found, labels in self.samples if found == name]


def read_metrics(text: str, *, openmetrics: bool = False) -> Found:
    """Reads a text.

    Raises:
        ValueError: it is none, a family is there twice, or a sample is.
    """
    parse = openmetrics_families if openmetrics else text_string_to_metric_families
    kinds: dict[str, str] = {}
    samples: Samples = {}
    for family in parse(text):
        if family.name in kinds:
            raise ValueError(f"the family {family.name} is there twice")
        kinds[family.name] = family.type
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            if key in samples:
                raise ValueError(f"the sample {key} is there twice")
            samples[key] = sample.value
    return Found(kinds, samples)
