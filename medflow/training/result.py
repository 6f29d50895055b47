"""What a training came to: aggregates only, ready to be kept with the version, printed, or made a card of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medflow.config import Cohort
from medflow.evaluation.bootstrap import Gain
from medflow.evaluation.result import Evaluation
from medflow.plugin import Epoch, ModelSpec, Risk
from medflow.training.asked import Plan
from medflow.training.study import Found


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part of the cohort: prediction times, patients, and how many of the times the outcome followed."""

    cases: int
    patients: int
    events: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortTold:
    """The cohort in its counts: ``encounters`` in the store, ``left_out`` by reason, ``parts`` by name."""

    name: str
    asked: Cohort
    encounters: int
    left_out: Mapping[str, int]
    labels_sha256: str | None
    labels_unmatched: int
    digest: str
    parts: Mapping[str, Part]

    def as_json(self) -> dict[str, Any]:
        """For the store and ``--json``."""
        return {
            "name": self.name,
            "asked": self.asked.model_dump(mode="json", exclude_defaults=True),
            "outcomes": "store" if self.labels_sha256 is None else "labels",
            "labels_sha256": self.labels_sha256,
            "labels_unmatched": self.labels_unmatched,
            "encounters": self.encounters,
            "left_out": dict(sorted(self.left_out.items())),
            "cases": sum(part.cases for part in self.parts.values()),
            "patients": sum(part.patients for part in self.parts.values()),
            "parts": {
                name: {"cases": part.cases, "patients": part.patients, "events": part.events}
                for name, part in self.parts.items()
            },
            "digest": self.digest,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The version that is served now, on the same test cases; ``gain``: the new version's AUROC less its own."""

    evaluation: Evaluation
    gain: Gain | None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A new version: its spec, what it was made of, and how good it is on patients it has never seen."""

    spec: ModelSpec
    base_version: str
    output: Risk
    cohort: CohortTold
    plan: Plan
    found: Found
    test: Evaluation
    served: Served | None
    unserved: str | None
    versions: Mapping[str, str]
    weights_sha256: Mapping[str, str]
    reference: bytes
    card: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def epochs(self) -> Sequence[Epoch]:
        """How the chosen trial learnt."""
        return self.found.best.epochs

    def numbered(self, version: str) -> Trained:
        """The same, under the version's name."""
        spec, test = replace(self.spec, version=version), replace(self.test, version=version)
        return replace(self, spec=spec, test=test)

    def metrics(self) -> dict[str, Any]:
        """What the store keeps beside the version: its figures on the test part, and those of the version served."""
        told: dict[str, Any] = {"test": figures(self.test), "validation_log_loss": self.found.loss}
        if self.served is not None:
            gain = self.served.gain
            told["served"] = {
                "version": self.served.evaluation.version,
                "digest": self.served.evaluation.digests[0],
                "test": figures(self.served.evaluation),
            }
            if gain is not None:
                told["auroc_gain"] = {"value": gain.value} | _interval(gain.interval)
        return told

    def trials(self) -> dict[str, Any]:
        """How the trials ended."""
        found = self.found
        ended: dict[str, Any] = {"complete": found.complete, "stopped": found.stopped}
        return ended | ({"failed": sum(found.failed.values()), "reasons": dict(found.failed)} if found.failed else {})

    def as_json(self) -> dict[str, Any]:
        """What ``medflow train --json`` prints."""
        return {
            "model": self.spec.name,
            "version": self.spec.version,
            "base_version": self.base_version,
            "state": "candidate",
            "output": self.output.name,
            "cohort": self.cohort.as_json(),
            "trials": self.trials(),
            "hyperparameters": dict(self.found.best.chosen),
            "seed": self.plan.seed,
            "threshold": self.test.threshold,
            "metrics": self.metrics(),
            "weights": dict(self.weights_sha256),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }

    def counts(self) -> dict[str, Any]:
        """What a run keeps of it."""
        auroc = self.test.metrics["auroc"].value
        return {
            "version": self.spec.version,
            "cases": sum(part.cases for part in self.cohort.parts.values()),
            "left_out": dict(self.cohort.left_out),
            "trials": self.trials(),
        } | ({} if auroc is None else {"auroc": round(auroc, 6)})


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """The figures of an evaluation, without its groups."""
    told: dict[str, Any] = {
        name: {"value": metric.value} | _interval(metric.interval) for name, metric in evaluation.metrics.items()
    }
    told["event_1"] = {"value": event_1(evaluation)}
    return {"cases": evaluation.cases, "events": evaluation.events.get("yes", 0)} | told


def event_1(evaluation: Evaluation) -> float | None:
    """The lesser of sensitivity and positive predictivity at the threshold (PhysioNet's challenge of 2012)."""
    both = [evaluation.metrics[name].value for name in ("recall", "precision")]
    known = [value for value in both if value is not None]
    return min(known) if len(known) == len(both) else None


def _interval(interval: tuple[float, float] | None) -> dict[str, float]:
    return {} if interval is None else {"low": interval[0], "high": interval[1]}
