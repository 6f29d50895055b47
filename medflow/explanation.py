"""Explaining one answer that was given before: the case goes through its model again, and what explains it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from medflow.config import Settings
from medflow.contexts import context_of, identity_of, maker_of, read_about
from medflow.errors import ConfigurationError, InputNotUsable, PredictionInvalid
from medflow.evidence import ExplainedCase, told_of, with_contributions
from medflow.fhir.write import result_resources
from medflow.genomics.site import GenomeSite
from medflow.heat_maps import keep_heat_maps
from medflow.inference.loaded import LoadedModel
from medflow.inference.resident import LoadedModels
from medflow.inference.results import results_of
from medflow.inference.runner import Outcome, Runner
from medflow.inputs import open_cases, unchanged
from medflow.records import Instant, Outgoing, Result
from medflow.registry import RegisteredModel, Registry
from medflow.store import Connection, Store, history, jobs, outbox, result_objects
from medflow.store.history import JobView
from medflow.store.ledger import now_us
from medflow.store.predictions import write_results


def explainable(store: Store, registry: Registry, job_id: int) -> tuple[JobView, RegisteredModel]:
    """A done job that can be explained here, and its model.

    Raises
    ------
    ConfigurationError
        There is no such job, it has no answer or a later one has taken its place, or its very model is not installed.
    """
    with store.reading() as connection:
        view = history.job_view(connection, job_id)
    if view is None:
        raise ConfigurationError(f"there is no job {job_id}: `medflow jobs --state done` lists those that were scored")
    if view.state != "done":
        raise ConfigurationError(f"job {job_id} is {view.state} and has no answer to explain")
    if view.superseded:
        raise ConfigurationError(f"job {job_id} was superseded by a later one of {view.job.unit}: explain that one")
    model = registry.get(view.model)
    if model.digest != view.digest:
        raise ConfigurationError(
            f"job {job_id} was scored by another {view.model} than the one installed ({model.spec.version}): install "
            f"the {view.version} that scored it, or score with --explain"
        )
    return view, model


def explain_done(
    store: Store, settings: Settings, view: JobView, model: RegisteredModel, loaded: LoadedModels
) -> list[str]:
    """Explain a done job; returns the outputs that are explained now, in place of what was kept before.

    Raises
    ------
    ConfigurationError
        The model explains nothing.
    MedflowError
        The case can no longer be read, or its explanation failed; nothing changes.
    """
    with loaded.using(model) as ready:
        if not ready.explains:
            raise ConfigurationError(f"{model.name} explains none of its answers")
        outcome = _again(store, settings, view, ready)
    assert outcome.case is not None and outcome.prediction is not None  # noqa: S101 - an error would have been raised
    _check_same(model, view, results_of(model.spec, outcome.case, outcome.prediction))
    issued = Instant(utc_us=now_us())
    maker = maker_of(model, settings, view.job, issued)
    made = keep_heat_maps(store, model.spec, view.job, outcome.case, outcome.explanation, maker)
    explained = ExplainedCase(job=view.job, case=outcome.case, explanation=outcome.explanation)
    (told,) = told_of(store, model.spec, [explained])
    results = with_contributions(view.results, told)
    with store.writing() as connection:
        if not jobs.is_live(connection, view.job.id):  # what is queued now would undo what was told of it
            raise InputNotUsable("input-changed", f"job {view.job.id} was superseded or withdrawn meanwhile")
        others = [item for item in result_objects.of_job(connection, view.job.id) if item.kind != "heat-map"]
        about = read_about(connection, settings, model, [view.job])
        context = context_of(identity_of(model), settings, view.job, about, issued, [*others, *made])
        resources = result_resources(context, results)
        _check_same_ids(connection, view, resources)
        result_objects.record(connection, {view.job.id: [*others, *made]})
        write_results(connection, {view.job.id: results})
        files = [result_objects.outgoing(item, context.envelope) for item in made]
        outbox.queue(connection, view.job.id, [*resources, *files])
    return [
        *(output for item in made for output in item.outputs),
        *(name for name, its in told.items() if its.contributions),
    ]


def _again(store: Store, settings: Settings, view: JobView, ready: LoadedModel) -> Outcome:
    with store.reading() as connection:
        (same,) = unchanged(connection, ready.spec, [view.job])
    if not same:
        raise InputNotUsable(
            "input-changed",
            f"the records of {view.job.unit} changed after the job was made: the next selection makes another of them",
        )
    runner = Runner(ready, threads=settings.threads, explain=True)
    (outcome,) = chain.from_iterable(
        runner.run(open_cases(store, ready.spec, [view.job], genomes=GenomeSite.of(settings)))
    )
    if error := outcome.error or outcome.unexplained:
        raise error
    return outcome


def _check_same(model: RegisteredModel, view: JobView, found: list[Result]) -> None:
    """What is explained must be the answer that was given, as near as the model says it comes to itself."""
    given = {result.output: result for result in view.results}
    for result in found:
        before = given[result.output].value if result.output in given else None
        if before is None or result.value is None:
            same = before is result.value
        else:
            same = abs(before - result.value) <= model.spec.tolerance * max(1.0, abs(before))
        if not same:
            raise PredictionInvalid("answer-changed", f"{model.name} gives another answer for {result.output} now")


def _check_same_ids(connection: Connection, view: JobView, resources: Sequence[Outgoing]) -> None:
    """What is explained must replace what was sent: under other ids there would be two answers."""
    # The Provenance is every job's own; a variant may have been queued by another model's.
    if {(item.type, item.id) for item in resources if item.type == "Provenance"} - outbox.ids_of(
        connection, view.job.id
    ):
        raise InputNotUsable(
            "patient-changed",
            f"{view.job.unit} is of another patient, or of one named otherwise, than when it was scored",
        )
