"""How good a fitted model is, by the very path that serves it: its files read, its cases prepared, its answers checked.

What has been measured is what will be served, to the byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from sklearn.metrics import log_loss

from medflow.config import Settings
from medflow.errors import CaseError, PluginBroken
from medflow.evaluation.join import join
from medflow.evaluation.measure import Joined, measured
from medflow.evaluation.result import SMALLEST, Evaluation
from medflow.inference.resident import LoadedModels
from medflow.inference.results import results_of
from medflow.inference.runner import CaseOpener, Outcome
from medflow.plugin import Case, Model, ModelSpec, Risk
from medflow.records import Unit, UnitKind
from medflow.registry import RegisteredModel, model_digest
from medflow.store.outcomes import Scored
from medflow.training.dataset import Dataset
from medflow.training.study import Kept

OUT_OF_SCOPE = "out-of-scope-of-the-model"
SURE = 1e-7  # no answer counts as surer than that: a log loss may be infinite


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A model's answer for each row, NaN where it has none, and why: ``refused`` by row."""

    scores: np.ndarray
    refused: Mapping[int, str]


def candidate(base: RegisteredModel, spec: ModelSpec, folder: Path) -> RegisteredModel:
    """The plugin's model with ``spec`` and the files in ``folder``, as it would be served."""

    def factory() -> Model:
        made = base.factory()
        made.spec = spec  # pyright: ignore[reportAttributeAccessIssue]  # the class has its own: see Model
        made.folder = folder
        return made

    return replace(base, spec=spec, digest=model_digest(base.factory, spec), factory=factory)


def fitted_spec(spec: ModelSpec, output: Risk, kept: Kept) -> ModelSpec:
    """The spec of a fitted model: its own weights, and its threshold."""
    weights = tuple(replace(item, sha256=sha256(kept.files[item.file]).hexdigest()) for item in spec.weights)
    if kept.threshold is None:
        return replace(spec, weights=weights)
    if not 0.0 <= kept.threshold <= 1.0:
        raise PluginBroken(f"{spec.name} was fitted to a threshold that is no probability", kind="threshold")
    threshold = float(kept.threshold)
    outputs = tuple(replace(item, threshold=threshold) if item == output else item for item in spec.outputs)
    return replace(spec, weights=weights, outputs=outputs)


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """A version's files where the model will look for them."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def loss_of(settings: Settings, base: RegisteredModel, output: Risk, kept: Kept, validation: Dataset) -> float:
    """The log loss of a fitted model on the validation rows that it has an answer for.

    Raises
    ------
    PluginBroken
        It has none for any, or cannot be loaded from what it was fitted to.
    """
    with TemporaryDirectory(prefix="medflow-train-") as name:
        folder = Path(name)
        write_files(kept.files, folder)
        model = candidate(base, fitted_spec(base.spec, output, kept), folder)
        scores = answers(settings, model, output, validation).scores
    known = ~np.isnan(scores)
    if not known.any():
        raise PluginBroken(f"{base.name} has no answer for any validation case", kind="no-answer")
    sure = np.clip(scores[known], SURE, 1 - SURE)
    return float(log_loss(validation.members.outcome[known], sure, labels=[0, 1]))


def answers(
    settings: Settings,
    model: RegisteredModel,
    output: Risk,
    data: Dataset,
    *,
    progress: Callable[[int], None] = lambda _count: None,
) -> Answers:
    """What a model says of every row, loaded, prepared and checked as when it is served."""
    scores = np.full(len(data), np.nan)
    refused: dict[int, str] = {}
    loaded = LoadedModels(settings)
    try:
        with loaded.running(model, threads=settings.threads) as runner:
            with closing(runner.run([_opener(model.spec, data, row) for row in range(len(data))])) as batches:
                for batch in batches:
                    for outcome in batch:
                        found = _answer(model.spec, output, outcome)
                        if isinstance(found, str):
                            refused[outcome.index] = found
                        else:
                            scores[outcome.index] = found
                    progress(len(batch))
    finally:
        loaded.close()
    return Answers(scores=scores, refused=refused)


def evaluation_of(spec: ModelSpec, output: str, digest: str, found: Answers, data: Dataset) -> Evaluation:
    """Metrics, intervals, subgroups and calibration of these answers, as `medflow evaluate` counts them."""
    members = data.members
    scored = [
        Scored(
            unit_id=item.encounter_id,
            time_us=item.time_us,
            version=spec.version,
            digest=digest,
            value=float(score),
            probabilities=(),
            out_of_scope=False,
        )
        for item, score in zip(members.moments, found.scores, strict=True)
    ]
    outcomes = [found.refused.get(row, int(outcome)) for row, outcome in enumerate(members.outcome)]
    patients = {item.encounter_id: item.patient_id for item in members.moments}
    cases, left_out = join(scored, outcomes, patients, members.people, classes=False)
    if len(cases.truth) < SMALLEST:
        raise PluginBroken(f"{spec.name} has an answer for fewer than {SMALLEST} of the {len(data)} test cases")
    chosen = spec.output(output)
    assert isinstance(chosen, Risk)  # noqa: S101 - seen to before anything was fitted
    return measured(
        spec,
        chosen,
        Joined(
            cases=cases,
            left_out=Counter(left_out),
            predictions=len(data),
            digests=(digest,),
            labels_sha256=members.labels_sha256,
            labels_unmatched=0,
        ),
    )


def _opener(spec: ModelSpec, data: Dataset, row: int) -> CaseOpener:
    (series,) = spec.accepts
    moment = data.members.moments[row]

    def opened() -> Case:
        return Case(
            unit=Unit(kind=UnitKind.ENCOUNTER, id=moment.encounter_id),
            prediction_time=moment.time.datetime(),
            inputs={series.name: data.series(row)},
        )

    return opened


def _answer(spec: ModelSpec, output: Risk, outcome: Outcome) -> float | str:
    """The checked risk, or why there is none; infrastructure that fails is raised."""
    try:
        if outcome.error is not None:
            raise outcome.error
        assert outcome.case is not None and outcome.prediction is not None  # noqa: S101 - the other two outcomes
        results = {item.output: item for item in results_of(spec, outcome.case, outcome.prediction)}
    except CaseError as error:
        return str(error.code)
    result = results[output.name]
    return OUT_OF_SCOPE if result.out_of_scope is not None or result.value is None else result.value
