"""Why models of variants are given a sample, or are not: for `medflow samples` and `medflow select --explain`.

What is due is asked of the selection itself; nothing here decides it. What it says has surrogate ids only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from medflow.errors import InputNotUsable, PluginBroken
from medflow.genomics.site import GenomeSite
from medflow.plugin import SequenceInput
from medflow.records import Instant, Unit, UnitKind
from medflow.registry import RegisteredModel
from medflow.samples import Opened, due_samples_of
from medflow.selection import NEXT, NOT_TAKEN, Explanation, Line, became
from medflow.series_rule import Reason
from medflow.store import Connection, Store
from medflow.store.genomics import UNKNOWN_ASSEMBLY, StoredSample, elsewhere
from medflow.store.jobs import known_model
from medflow.store.sample_list import ListedSample, count_samples, sample_pages
from medflow.store.selection import JobNote, job_notes
from medflow.variant_rule import rule_of, variants_of

PAGE = 2000  # samples read at once
LATER = Reason(code="later", words="its file was received after the moment of the selection")
WITHDRAWN = Reason(code="withdrawn", words="its file was withdrawn")
UNSEEN = 0  # the id of no model: one that never selected anything


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleLine:
    """A sample as it is listed, and how it stands with each model of variants that can be run, by name."""

    listed: ListedSample
    models: Mapping[str, Line]


@dataclass(kw_only=True, slots=True)
class SampleList:
    """The first ``lines`` of ``total`` samples; ``broken`` says by name why a model cannot be run."""

    total: int
    lines: list[SampleLine] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def more(self) -> int:
        """How many samples there are beyond those that have a line."""
        return self.total - len(self.lines)


def list_samples(
    store: Store,
    models: Sequence[RegisteredModel],
    genomes: GenomeSite,
    *,
    as_of: Instant,
    limit: int,
    file_id: int | None = None,
) -> SampleList:
    """The samples of variant files, or of one, those stored last first, and how each stands with models of variants."""
    with store.reading() as connection:
        told = SampleList(total=count_samples(connection, file_id))
        first = next(sample_pages(connection, size=limit, file_id=file_id), []) if limit else []
        standings = {}
        for model in models:
            try:
                if variants_of(model.spec) is not None:
                    standings[model.name] = _Standing(connection, model, genomes, as_of)
            except PluginBroken as error:
                told.broken[model.name] = error.message
        found = {name: standing.lines(connection, first) for name, standing in standings.items()}
        for number, listed in enumerate(first):
            told.lines.append(SampleLine(listed=listed, models={name: lines[number] for name, lines in found.items()}))
    return told


def explain_samples(
    store: Store, model: RegisteredModel, genomes: GenomeSite, *, as_of: Instant, limit: int
) -> Explanation:
    """Why a model of variants is given each sample, or is not, those stored last first; changes nothing.

    Raises
    ------
    PluginBroken
        As for `due_samples_of`.
    """
    wanted = _wanted(model)
    told = Explanation(model=model.name, unit=UnitKind.SAMPLE, rules=[rule_of(wanted)])
    with store.reading() as connection:
        standing = _Standing(connection, model, genomes, as_of)
        for page in sample_pages(connection, size=PAGE):
            for line in standing.lines(connection, page):
                told.count(line, limit)
    return told


class _Standing:
    """What a model's selection says at a moment, and the reasons for it, sample by sample."""

    def __init__(self, connection: Connection, model: RegisteredModel, genomes: GenomeSite, as_of: Instant) -> None:
        self._model, self._wanted, self._as_of = model, _wanted(model), as_of
        self._opened = Opened(genomes, self._wanted)
        known = known_model(connection, name=model.name, digest=model.digest) or UNSEEN
        due = due_samples_of(connection, self._wanted, genomes, as_of=as_of, model_id=known)
        self._due = {item.unit.id for item in due}
        self._scope = self._opened.scope

    def lines(self, connection: Connection, page: Sequence[ListedSample]) -> list[Line]:
        """A line for each of these samples, in order."""
        ids = [item.sample.id for item in page]
        found = job_notes(
            connection, name=self._model.name, digest=self._model.digest, kind=UnitKind.SAMPLE, unit_ids=ids
        )
        return [self._line(item.sample, found.get(item.sample.id, ())) for item in page]

    def _line(self, sample: StoredSample, notes: Sequence[JobNote]) -> Line:
        unit = Unit(kind=UnitKind.SAMPLE, id=sample.id)
        if sample.id in self._due:
            return self._of_due(unit, sample, notes)
        reasons = tuple(self._why_not(sample))
        note = next((one for one in notes if one.input_key == self._scope.key(sample)), None)
        if reasons or note is None:
            return Line(unit=unit, verdict=NOT_TAKEN, reasons=reasons)
        return became(unit, note)

    def _of_due(self, unit: Unit, sample: StoredSample, notes: Sequence[JobNote]) -> Line:
        try:
            self._opened.ready(sample)
        except InputNotUsable as error:
            before = next((f"; what job {one.id} said stands" for one in notes if one.state == "done"), "")
            reason = Reason(code=error.code, words=f"would be refused: {error.message}{before}")
            return Line(unit=unit, verdict="refused", reasons=(reason,))
        said = f"whose it is, the reference or the regions changed after job {notes[0].id}" if notes else NEXT
        return Line(unit=unit, verdict="due", reasons=(Reason(code="due", words=said),))

    def _why_not(self, sample: StoredSample) -> Iterator[Reason]:
        if sample.withdrawn_us is not None:
            yield WITHDRAWN
        why = elsewhere(sample.build, {self._wanted.assembly})
        if why is not None:
            unknown = "the header of its file does not tell the assembly"
            other = f"its file is on {sample.build}, the model reads {self._wanted.assembly}"
            yield Reason(code=why, words=unknown if why == UNKNOWN_ASSEMBLY else other)
        if sample.received_us > self._as_of.utc_us:
            yield LATER


def _wanted(model: RegisteredModel) -> SequenceInput:
    wanted = variants_of(model.spec)
    assert wanted is not None  # noqa: S101 - nobody asks this of another model
    return wanted
