"""Metrics of the user's own: what the manifest says of them, and their code where it may run."""

from __future__ import annotations

from collections.abc import Sequence

from echelon.config.run import RunSettings
from echelon.errors import ConfigError
from echelon.laws.metrics import allowed_metrics
from echelon.laws.rules import Allowed
from echelon.messages.manifest import MetricTerms, RunManifest
from echelon.training.metrics import MetricCode
from echelon.wiring.plugins import metric_rules


def metric_terms(settings: RunSettings) -> tuple[MetricTerms, ...]:
    """What the manifest says of the metrics that a run file lists.

    Raises:
        ConfigError: as `read_rule`.
    """
    return _terms(settings, named_metrics(settings))


def _terms(settings: RunSettings, code: Allowed) -> tuple[MetricTerms, ...]:
    return tuple(
        MetricTerms(
            name=metric.name,
            rule=metric.rule,
            sha256=code[metric.rule].sha256.hex(),
            low=metric.bounds()[0],
            high=metric.bounds()[1],
        )
        for metric in settings.metrics
    )


def named_metrics(settings: RunSettings) -> Allowed:
    """The functions of metrics that a run file names, for whoever runs it on devices of his own: he decided to.

    Raises:
        ConfigError: as `read_rule`.
    """
    return metric_rules(metric.rule for metric in settings.metrics)


def own_metrics(settings: RunSettings) -> tuple[MetricCode, ...]:
    """The metrics of a run file with their code, where its author runs it."""
    code = named_metrics(settings)
    return metric_code(_terms(settings, code), code)


def check_agreed(manifest: RunManifest, found: Sequence[MetricTerms]) -> None:
    """Check that what is computed here is what the manifest lists.

    Args:
        manifest: of the run.
        found: the metrics that are computed here.

    Raises:
        ConfigError: it is not.
    """
    if manifest.metrics != tuple(found):
        names = ", ".join(metric.name for metric in manifest.metrics) or "none"
        raise ConfigError(
            f"the run's signed metrics ({names}) are not those of its run file: a metric's function or its bounds were "
            "changed after the run began; put them back, or begin another run"
        )


def metric_code(terms: Sequence[MetricTerms], allowed: Allowed) -> tuple[MetricCode, ...]:
    """The code of a run's metrics, where all of them may run.

    Args:
        terms: the manifest's.
        allowed: what may run here, by name.

    Raises:
        RuleRefused: a metric's code was not allowed, or in another version.
    """
    codes = allowed_metrics(terms, allowed)
    return tuple(MetricCode(metric, code.make) for metric, code in zip(terms, codes, strict=True))
