"""Why a model was given a series or study, or was not: for `medflow select --explain`, and for nothing that scores.

It goes by the same rule as the selection (`medflow.series_rule`), over everything that is stored, page by page. What it
says has surrogate ids and the model's own patterns only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from medflow.errors import ConfigurationError
from medflow.plugin import ImagingInput
from medflow.records import Instant, Unit, UnitKind
from medflow.registry import RegisteredModel
from medflow.series_rule import Reason, SeriesFacts, choose, imaging_inputs, rules_of, unmet, why_preferred
from medflow.store import Connection, Store
from medflow.store.selection import JobNote, job_notes, series_key, series_pages, study_key

PAGE = 2000  # series or studies read at once
NOT_TAKEN = "not-taken"
VERDICTS = {"done": "scored", "dead": "refused"}  # by a job's state; any other waits
NEXT = "the next `medflow score` takes it"
NO_PATIENT = Reason(code="no-patient", words="no known patient")
LATER = Reason(code="later", words="acquired after the moment of the selection")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A series, study or sample: ``verdict`` due, waiting, scored, refused or not-taken.

    ``series`` are a study's, each with why it was taken (their verdict) or not.
    """

    unit: Unit
    verdict: str
    reasons: tuple[Reason, ...] = ()
    job: int | None = None
    series: tuple[Line, ...] = ()


@dataclass(kw_only=True, slots=True)
class Explanation:
    """What a model asks for, and what that means for what is stored.

    ``verdicts`` and ``reasons`` (by code, of what was not taken) count everything; ``lines`` are the first of it.
    """

    model: str
    unit: UnitKind
    rules: Sequence[str]
    lines: list[Line] = field(default_factory=list)
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def more(self) -> int:
        """How many units are counted beyond those that have a line."""
        return self.verdicts.total() - len(self.lines)

    def count(self, line: Line, limit: int) -> None:
        """Count one unit, and keep its line while there are fewer than ``limit``."""
        self.verdicts[line.verdict] += 1
        if line.verdict == NOT_TAKEN:
            self.reasons.update({reason.code for reason in line.reasons})
        if len(self.lines) < limit:
            self.lines.append(line)


def explain_selection(
    store: Store, model: RegisteredModel, *, as_of: Instant, limit: int, series: int | None = None
) -> Explanation:
    """Why each series (or study) is taken or not, those stored last first; changes nothing.

    Parameters
    ----------
    store, model
        What is stored, and who is to be given it.
    as_of
        The moment to select at.
    limit
        How many get a line of their own; all are counted.
    series
        Only this one (of a model of studies: its study, with this series' line), by its id.

    Raises
    ------
    ConfigurationError
        The model reads no images, or there is no such series.
    """
    inputs = imaging_inputs(model.spec)
    if not inputs:
        raise ConfigurationError(
            f"--explain tells why images or samples are taken; {model.name} reads {model.spec.accepts[0].kind} input"
        )
    told = Explanation(model=model.name, unit=model.spec.unit, rules=rules_of(model.spec))
    with store.reading() as connection:
        for page in series_pages(connection, model.spec.unit, size=PAGE, only=series):
            for line in _Page(connection, model, inputs, as_of, page).lines(only=series):
                told.count(line, limit)
    if series is not None and not told.verdicts:
        raise ConfigurationError(f"there is no series {series}: `medflow select --explain` lists those that are stored")
    return told


def became(unit: Unit, note: JobNote, parts: tuple[Line, ...] = ()) -> Line:
    """What became of a unit that has a job of what it is made of now."""
    verdict = VERDICTS.get(note.state, "waiting")
    words = {
        "scored": f"scored already: job {note.id} is done",
        "refused": f"refused: {note.error_code} (job {note.id})",
        "waiting": f"job {note.id} is {note.state}" + (f" ({note.error_code})" if note.error_code else ""),
    }[verdict]
    reason = Reason(code=(note.error_code if verdict == "refused" else None) or verdict, words=words)
    return Line(unit=unit, verdict=verdict, reasons=(reason,), job=note.id, series=parts)


class _Page:
    """Some series, or whole studies, and the jobs that a model has of them."""

    def __init__(
        self,
        connection: Connection,
        model: RegisteredModel,
        inputs: Sequence[ImagingInput],
        as_of: Instant,
        series: Sequence[SeriesFacts],
    ) -> None:
        self._inputs, self._as_of, self._series = inputs, as_of, series
        self._kind = model.spec.unit
        ids = {one.study_id if self._kind is UnitKind.STUDY else one.id for one in series}
        self._jobs = job_notes(connection, name=model.name, digest=model.digest, kind=self._kind, unit_ids=sorted(ids))

    def lines(self, *, only: int | None) -> Iterator[Line]:
        if self._kind is not UnitKind.STUDY:
            yield from map(self._of_series, self._series)
            return
        for study_id, its in groupby(self._series, key=lambda series: series.study_id):
            yield self._of_study(study_id, list(its), only)

    def _of_series(self, series: SeriesFacts) -> Line:
        reasons = [*unmet(self._inputs[0], series), *self._unmet_by_all(series)]
        if not series.has_patient:
            reasons.append(NO_PATIENT)
        unit = Unit(kind=UnitKind.SERIES, id=series.id)
        if reasons:
            return Line(unit=unit, verdict=NOT_TAKEN, reasons=tuple(reasons))
        return self._taken(unit, series_key(series.content))

    def _of_study(self, study_id: int, series: Sequence[SeriesFacts], only: int | None) -> Line:
        unit = Unit(kind=UnitKind.STUDY, id=study_id)
        chosen, missing = choose(self._inputs, [one for one in series if not self._unmet_by_all(one)])
        parts = tuple(self._part(one, chosen) for one in series if only in (None, one.id))
        reasons = [Reason(code="incomplete", words=f"no series for {name}") for name in missing]
        if not chosen and not missing:
            reasons.append(Reason(code="incomplete", words="no series for any input"))
        if not series[0].has_patient:
            reasons.append(NO_PATIENT)
        if reasons:
            return Line(unit=unit, verdict=NOT_TAKEN, reasons=tuple(reasons), series=parts)
        key = study_key({name: one.content for name, one in chosen.items()})
        return self._taken(unit, key, parts)

    def _taken(self, unit: Unit, key: str, parts: tuple[Line, ...] = ()) -> Line:
        """A unit that fits, and what became of it."""
        notes: Sequence[JobNote] = self._jobs.get(unit.id, ())
        note = next((one for one in notes if one.input_key == key), None)
        if note is None:
            said = f"its images changed after job {notes[0].id}" if notes else NEXT
            return Line(unit=unit, verdict="due", reasons=(Reason(code="due", words=said),), series=parts)
        return became(unit, note, parts)

    def _part(self, series: SeriesFacts, chosen: Mapping[str, SeriesFacts]) -> Line:
        """One series of a study: which inputs take it, else why none does."""
        unit = Unit(kind=UnitKind.SERIES, id=series.id)
        names = [name for name, one in chosen.items() if one.id == series.id]
        if names:
            reasons = tuple(Reason(code="taken", words=f"as {name}") for name in names)
            return Line(unit=unit, verdict="taken", reasons=reasons)
        reasons = tuple(
            Reason(code=reason.code, words=f"{item.name}: {reason.words}")
            for item in self._inputs
            for reason in self._unmet_by(item, series, chosen)
        )
        return Line(unit=unit, verdict=NOT_TAKEN, reasons=reasons)

    def _unmet_by(self, item: ImagingInput, series: SeriesFacts, chosen: Mapping[str, SeriesFacts]) -> list[Reason]:
        reasons = [*unmet(item, series), *self._unmet_by_all(series)]
        if reasons:
            return reasons
        taken = chosen[item.name]  # the input has one, or this series would be it
        words = f"series/{taken.id} of the study is preferred: {why_preferred(item, taken, series)}"
        return [Reason(code="not-preferred", words=words)]

    def _unmet_by_all(self, series: SeriesFacts) -> list[Reason]:
        return [LATER] if series.moment.utc_us > self._as_of.utc_us else []
