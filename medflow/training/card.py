"""A version's model card: what it was made of and how good it is, for whoever decides whether it is to be served.

Aggregates only: no group of fewer than ten, no identifier, no single case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

from medflow.config import Cohort
from medflow.drawing import data_uri
from medflow.evaluation.report import COLUMNS, NAMES
from medflow.evaluation.result import SMALLEST, Evaluation, Group, Interval
from medflow.plugin import Channel, ModelCard, TimeSeriesInput
from medflow.training.plots import LEARNING, plots
from medflow.training.result import CohortTold, Trained, event_1

PICTURES = {
    LEARNING: "Learning curve",
    "reliability": "Reliability",
    "roc": "ROC curve",
    "precision-recall": "Precision against recall",
}
SHARES = ("accuracy", "recall", "precision", "f1")  # of a group, told to two digits
UNKNOWN_TO_SERVED = (
    "Whether the version served was trained on some of these test patients is not known here: if it was, its figures "
    "are better than it is."
)


def card_of(base: ModelCard, trained: Trained) -> ModelCard:
    """The card that goes with the spec: the plugin's, with this training's data and figures in the place of its own."""
    told = trained.cohort
    parts = told.parts
    fitted = parts["training"].patients + parts["validation"].patients
    metrics = {}
    for name, metric in trained.test.metrics.items():
        if metric.value is not None:
            metrics[NAMES[name]] = f"{_with_interval(metric.value, metric.interval)}, on {_test_words(trained.test)}"
    return ModelCard(
        intended_use=base.intended_use,
        training_data=f"trained here from {trained.base_version} on {fitted} patients of the cohort {told.name} "
        f"({cohort_words(told.asked)}), tested on {parts['test'].patients} others",
        licence=base.licence,
        metrics=metrics,
        limits=base.limits,
    )


def cohort_words(cohort: Cohort) -> str:
    """What a cohort asks for, in words."""
    words = []
    if cohort.since is not None:
        words.append(f"begun on or after {cohort.since.isoformat()}")
    if cohort.until is not None:
        words.append(f"begun before {cohort.until.isoformat()}")
    if cohort.encounter_classes:
        words.append(f"of class {' or '.join(cohort.encounter_classes)}")
    if cohort.encounter_types:
        words.append(f"of type {' or '.join(cohort.encounter_types)}")
    if cohort.min_age is not None:
        words.append(f"of patients of {cohort.min_age} years or more")
    if cohort.max_age is not None:
        words.append(f"of patients of {cohort.max_age} years or less")
    return f"stays {', '.join(words)}" if words else "all stays in the store"


def page(trained: Trained) -> str:
    """The card with its plots inside, as one text."""
    return markdown(trained, {name: data_uri(picture) for name, picture in plots(trained).items()})


def markdown(trained: Trained, pictures: Mapping[str, str]) -> str:
    """The card; ``pictures`` says where each plot is."""
    spec = trained.spec
    parts = [
        f"# {spec.title}: {spec.name} {spec.version}",
        f"Trained here from version {trained.base_version}. Nothing serves it but after "
        f"`medflow models promote {spec.name} {spec.version}`; what answers now is told by "
        f"`medflow models versions {spec.name}`.",
        "## Intended use",
        spec.card.intended_use,
        "## Data",
        *_data(trained),
        "## How good it is",
        *_figures(trained),
        "## By group",
        _groups(trained.test),
        "## Calibration",
        _calibration(trained.test),
        "## How it was trained",
        *_training(trained),
        *(f"![{PICTURES[name]}]({pictures[name]})" for name in PICTURES if name in pictures),
        "## Limits",
        "Trained and tested on this site's stays alone: nothing here says how it does elsewhere, or on other patients "
        "than the cohort's.",
        f"Of {trained.base_version}: {spec.card.limits}" if spec.card.limits else "",
        f"Licence: {spec.card.licence}",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _data(trained: Trained) -> Iterable[str]:
    told = trained.cohort
    (series,) = trained.spec.accepts
    assert isinstance(series, TimeSeriesInput)  # noqa: S101 - nothing else is trained
    source = "the records that came later" if told.labels_sha256 is None else "a table of labels"
    yield (
        f"The cohort `{told.name}`: {cohort_words(told.asked)}; {told.encounters} encounters are in the store. "
        f"Outcomes are from {source}. Every case is what was known at its prediction time"
        f"{_asked(told, series)}; no patient is in two parts."
    )
    rows = [[name, part.cases, part.patients, part.events] for name, part in told.parts.items()]
    yield _table(["part", "cases", "patients", "with the outcome"], rows)
    if told.left_out:
        yield _table(["left out", "how many"], sorted(told.left_out.items()))
    names = ", ".join(item.name for item in series.channels)
    statics = ", ".join(item.name if isinstance(item, Channel) else item for item in series.statics) or "none"
    yield f"Inputs, in steps of {_hours(series.step)} over {_hours(series.window)}: {names}. Statics: {statics}."


def _asked(told: CohortTold, series: TimeSeriesInput) -> str:
    if series.anchor == "admission":
        return f", {_hours(series.window)} after admission"
    return f", every {told.asked.every:g} hours of the stay"


def _hours(span: timedelta) -> str:
    return f"{span / timedelta(hours=1):g} h"


def _figures(trained: Trained) -> Iterable[str]:
    test, served = trained.test, trained.served
    others = [] if served is None else [served.evaluation]
    yield f"On {_test_words(test)}, who were shown neither to the model nor to the search."
    head = ["metric", test.version, *(f"served now ({item.version})" for item in others)]
    rows = [
        [
            NAMES[name],
            *(_with_interval(item.metrics[name].value, item.metrics[name].interval) for item in (test, *others)),
        ]
        for name in test.metrics
    ]
    rows.append(["min(recall, precision)", *(_figure(event_1(item)) for item in (test, *others))])
    rows.append(["threshold", *(_figure(item.threshold) for item in (test, *others))])
    yield _table(head, rows)
    yield f"Intervals: 95 %, {test.draws} bootstrap draws of whole patients (seeded)."
    if served is not None:
        if served.gain is not None:
            gain = _with_interval(served.gain.value, served.gain.interval)
            yield f"AUROC above that of the version served, on the same draws: {gain}. {UNKNOWN_TO_SERVED}"
    elif trained.unserved is not None:
        yield f"Not compared with the version served: {trained.unserved}."
    yield from (f"> {note}." for note in test.notes)
    lines = [[name, *counts] for name, counts in zip(test.events, test.confusion, strict=True)]
    yield _table(["outcome", *(f"said {name}" for name in test.events)], lines)


def _training(trained: Trained) -> Iterable[str]:
    plan, found, trials = trained.plan, trained.found, trained.trials()
    ended = ", ".join(f"{count} {name}" for name, count in trials.items() if isinstance(count, int))
    yield (
        f"Trials: {ended} ({plan.sampler} sampler, seed {plan.seed}). Trial {found.best.number + 1} was kept, with the "
        f"least log loss on the validation part ({found.loss:.4f}). The first has the model's own defaults."
    )
    if found.best.chosen:
        yield _table(["hyperparameter", "value"], [[name, _brief(value)] for name, value in found.best.chosen.items()])
    made = ", ".join(f"{name} {version}" for name, version in trained.versions.items())
    weights = ", ".join(f"`{name}` {digest}" for name, digest in trained.weights_sha256.items())
    yield f"Made with {made}. Weights (SHA-256): {weights}."


def _brief(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _groups(evaluation: Evaluation) -> str:
    parts = []
    for dimension in dict.fromkeys(group.dimension for group in evaluation.groups):
        groups = [group for group in evaluation.groups if group.dimension == dimension]
        shown = list(groups[0].metrics)
        rows = [[group.name, group.cases, *(_cell(group, name) for name in shown)] for group in groups]
        parts.append(_table([dimension, "cases", *(COLUMNS[name] for name in shown)], rows))
    if evaluation.hidden:
        parts.append(f"Not shown, with fewer than {SMALLEST} cases each: {', '.join(evaluation.hidden)}.")
    return "\n\n".join(parts) or "None."


def _metric(evaluation: Evaluation, name: str) -> str:
    metric = evaluation.metrics[name]
    return _with_interval(metric.value, metric.interval)


def _cell(group: Group, name: str) -> str:
    metric = group.metrics[name]
    return _with_interval(metric.value, metric.interval, digits=2 if name in SHARES else 3)


def _calibration(evaluation: Evaluation) -> str:
    rows = [[item.cases, f"{item.mean_score:.3f}", f"{item.observed:.3f}"] for item in evaluation.calibration]
    return _table(["cases", "mean score", "share with the outcome"], rows)


def _test_words(test: Evaluation) -> str:
    return f"{test.cases} test cases of {test.patients} patients, {test.events['yes']} with the outcome"


def _with_interval(value: float | None, interval: Interval, digits: int = 3) -> str:
    told = "" if interval is None else f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"
    return f"{_figure(value, digits)}{told}"


def _figure(value: float | None, digits: int = 3) -> str:
    return "not defined" if value is None else f"{value:.{digits}f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
