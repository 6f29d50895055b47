"""What a run did, as Prefect artifacts and a final state: counts, timings and reasons, never anything of a patient.

Each artifact has a key of its own that stays the same, so that the UI's page of it shows its history.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prefect import State
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.states import Completed, Failed

from medflow.drawing import data_uri
from medflow.errors import MedflowError, place_of
from medflow.evaluation.result import InputDrift
from medflow.flows import drift, pages, plots, timings
from medflow.flows.drift import Drift
from medflow.flows.timings import Stage
from medflow.pictures import picture_of
from medflow.status import Link, look_at_links
from medflow.steps import Site
from medflow.store import history, outbox
from medflow.store.history import ChunkLine, RunLine
from medflow.store.ledger import now_us

log = logging.getLogger(__name__)
Counts = Mapping[str, Any]
# maps whose names are not counts of a run
DETAILS = ("reasons", "notes", "errors", "seconds", "models", "sources", "targets")
NIGHTS = 30
PICTURES = 6
VERDICTS = {
    "Completed": "All is well, after",
    "CompletedWithProblems": "Somebody should look, after",
    "Failed": "Not everything got through, after",
}


def named(what: str) -> Callable[[], str]:
    """A flow's run names: what it does and when it began, so that a list of runs can be read."""
    return lambda: f"{what} {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def key_of(*words: str) -> str:
    """An artifact's key: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(("medflow", *words)).lower()).strip("-")


def report(key: str, title: str, counts: Counts) -> None:
    """A page of one step, by what it counted; a table of its models besides, where it has any."""
    create_markdown_artifact(key=key_of(key), markdown=pages.step(title, counts), description=title)
    if models := pages.model_rows(counts):
        create_table_artifact(key=key_of("models"), table=models, description="What was scored, by model")


# --- a whole night -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """What the store has on record of this night and those before."""

    runs: Sequence[RunLine] = ()
    chunks: Sequence[ChunkLine] = ()
    nights: Sequence[RunLine] = ()
    drifts: Sequence[Drift] = ()
    inputs: Mapping[str, InputDrift] = field(default_factory=dict)
    targets: Mapping[str, Counts] = field(default_factory=dict)
    links: Sequence[Link] = ()


def report_night(here: Site, counts: Mapping[str, Counts], started_us: int) -> None:
    """The pages, tables, plots and, if enabled, pictures of the night that began at ``started_us``.

    What the store cannot tell now is left out: the night's own account is in ``counts``.
    """
    try:
        found = _look_back(here, started_us)
    except MedflowError as error:
        log.warning("the night's report is short: %s", error.message)
        found = _Record()
    score = dict(counts.get("score", {}))
    if "done" in score and not pages.models_of(score):
        score["models"] = history.totals(found.chunks)
    stages = timings.stages(found.runs, found.chunks, int(score.get("selected", 0)))
    page = pages.night(
        {**counts, "score": score},
        verdict=f"{VERDICTS[str(final_state(counts).name)]} {_duration(now_us() - started_us)}.",
        waiting=found.targets,
        silent=pages.silent(found.links, now_us()),
        more=[pages.timings(stages), pages.drifts(found.drifts), pages.inputs(found.inputs)],
    )
    create_markdown_artifact(key=key_of("night"), markdown=page, description=summary(counts))
    _tables(stages, found.drifts)
    _plots(here, found, started_us)
    if here.settings.pictures:
        with _spared("no pictures"):
            _pictures(here, started_us)


def _duration(us: int) -> str:
    minutes, seconds = divmod(round(us / timings.SECOND_US), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _look_back(here: Site, started_us: int) -> _Record:
    with here.store.reading() as connection:
        targets = outbox.counts(connection)
        found = _Record(
            runs=history.runs(connection, since_us=started_us),
            chunks=history.chunks(connection, since_us=started_us),
            nights=history.nights(connection, last=NIGHTS),
            targets=_named_targets(here, targets),
            links=[link for link in look_at_links(connection, here.settings) if link.watched and not link.up],
            drifts=drift.drifts(connection, since_us=started_us),
        )
    models = [item.model for item in found.drifts]
    return replace(found, inputs=drift.input_drifts(here, models, since_us=started_us))


def _named_targets(here: Site, counts: Mapping[str, Counts]) -> dict[str, Counts]:
    """By configured name: a path or address is nothing for Prefect."""
    names = {where.public: name for name, where in here.settings.targets.items()}
    for name in here.settings.default_targets:
        names.setdefault(here.settings.target(name).public, "the default")
    return {names[where]: found for where, found in counts.items() if where in names}


def _tables(stages: Sequence[Stage], drifts: Sequence[Drift]) -> None:
    if stages:
        rows = pages.timing_rows(stages)
        create_table_artifact(key=key_of("timings"), table=rows, description="How long each stage took")
    if drifts:
        rows = drift.as_rows(drifts)
        create_table_artifact(key=key_of("drift"), table=rows, description="Scores beside those of the nights before")


def _plots(here: Site, found: _Record, started_us: int) -> None:
    zone = here.settings.zone or UTC
    _show("throughput", "Cases per second by model", lambda: plots.throughput(found.chunks, started_us))
    _show("nights", f"The last {NIGHTS} nights", lambda: plots.nights(found.nights, zone))
    for model in dict.fromkeys(item.model for item in found.drifts):
        mine = [item for item in found.drifts if item.model == model]
        _show(f"scores-{model}", f"Scores of {model}, tonight and before", partial(plots.spread, mine))


def _pictures(here: Site, started_us: int) -> None:
    """The last cases with an image, each under a key of its own."""
    with here.store.reading() as connection:
        jobs = history.scored_series(connection, since_us=started_us, last=PICTURES)
    for number, job in enumerate(jobs, 1):
        with _spared(f"no picture of job {job}"):
            picture = picture_of(here.store, job, published=True)
            address = data_uri(picture.png)
            create_image_artifact(key=key_of("picture", str(number)), image_url=address, description=picture.title)


def _show(name: str, said: str, draw: Callable[[], bytes | None]) -> None:
    with _spared(f"no plot of {name}"):
        if (png := draw()) is not None:
            create_image_artifact(key=key_of(name), image_url=data_uri(png), description=said)


@contextmanager
def _spared(otherwise: str) -> Iterator[None]:
    """A picture less must not fail a night that is done; a foreign error's own text may quote what it was given."""
    try:
        yield
    except MedflowError as error:
        log.warning("%s: %s", otherwise, error.message)
    except Exception as error:  # noqa: BLE001
        log.error("%s: %s at %s", otherwise, type(error).__name__, place_of(error))


# --- how a run ended ---------------------------------------------------------------------------------------------


def final_state(counts: Counts) -> State:
    """How a run ended, said by its state.

    Completed; Completed as "CompletedWithProblems" when inputs were rejected or cases cannot be scored (a person has
    to look, running again does not help); Failed when something did not get through that should have.
    """
    failed, problems = _sum(counts, "failed", "broken", "undelivered"), _sum(counts, "rejected", "dead", "refused")
    said = summary(counts)
    if failed:
        return Failed(message=said, data=dict(counts))
    if problems:
        return Completed(name="CompletedWithProblems", message=said, data=dict(counts))
    return Completed(message=said, data=dict(counts))


def summary(counts: Counts) -> str:
    """One line: every count that is not zero."""
    return ", ".join(_said(counts)) or "nothing to do"


def _said(counts: Counts) -> list[str]:
    said: list[str] = []
    for name, value in counts.items():
        if name in DETAILS:
            continue
        if not isinstance(value, Mapping):
            said += [f"{value} {name}"] if value else []
        elif inner := _said(value):
            said.append(f"{name}: {', '.join(inner)}")
    return said


def _sum(counts: Counts, *names: str) -> int:
    total = 0
    for name, value in counts.items():
        if name in DETAILS:
            continue
        if name in names:
            total += len(value) if isinstance(value, Mapping) else int(value)
        elif isinstance(value, Mapping):
            total += _sum(value, *names)
    return total
