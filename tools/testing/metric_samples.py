"""Parses an exposition as Prometheus does."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from testing.simnode import SimulatedNode

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]
"""By name, then by sorted labels."""


def parsed(text: str) -> Samples:
    """All samples of an exposition; fails for a sample that occurs twice."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in samples.setdefault(sample.name, {}), f"{sample.name} {labels} comes twice"
            samples[sample.name][labels] = sample.value
    return samples


def scraped(node: SimulatedNode) -> Samples:
    """The samples that the agent exposes now."""
    status, text = node.get("/metrics")
    assert status == 200
    return parsed(text)


def values(samples: Samples, name: str, label: str = "gpu", **wanted: str) -> dict[str, float]:
    """The values of a metric by one label, of the samples that have the wanted labels."""
    found = {}
    for labels, value in samples.get(name, {}).items():
        have = dict(labels)
        if wanted.items() <= have.items():
            found[have.get(label, "")] = value
    return found
