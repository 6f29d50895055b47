"""How long each stage of a run took: on the clock, and summed over all who worked at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medflow.store.history import ChunkLine, RunLine

SECOND_US = 1_000_000
# of scoring, in the order of the path
WITHIN = ("select", "load", "read", "wait", "prepare", "predict", "explain", "commit")
NO_RATE = ("load", "wait")  # a model is loaded once, whatever the cases
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage. ``wall_s`` counts a second once, ``work_s`` for each worker; a stage within scoring has no wall time.

    ``cases`` are what the stage counts: inputs, cases or resources.
    """

    name: str
    wall_s: float | None
    work_s: float
    cases: int

    @property
    def rate(self) -> float | None:
        """Cases per second on the clock; of a stage within scoring, per second of a worker."""
        seconds = self.work_s if self.wall_s is None else self.wall_s
        if self.name in NO_RATE:
            return None
        return self.cases / seconds if seconds > 0 and self.cases else None


def stages(runs: Sequence[RunLine], chunks: Sequence[ChunkLine], selected: int) -> list[Stage]:
    """The stages that something is on record of, in the order of the path. ``selected`` are cases new to a model."""
    scoring = [run for run in runs if run.command == "score"]
    found = [
        _of_spans("ingest", _spans(runs, "ingest"), _counted(runs, "ingest", "offered")),
        _of_spans("select", [_selecting(run, chunks) for run in scoring if run.finished_us is not None], selected),
        *_scoring(chunks),
        _of_spans("deliver", _spans(runs, "deliver"), _counted(runs, "deliver", "delivered")),
    ]
    return [stage for stage in found if stage is not None]


def _spans(runs: Sequence[RunLine], command: str) -> list[Span]:
    ended = [run for run in runs if run.command.partition(" ")[0] == command]
    return [(run.started_us, run.finished_us) for run in ended if run.finished_us is not None]


def _counted(runs: Sequence[RunLine], command: str, name: str) -> int:
    return sum(int(run.counts.get(name, 0)) for run in runs if run.command.partition(" ")[0] == command)


def _selecting(run: RunLine, chunks: Sequence[ChunkLine]) -> Span:
    """A run selects for all its models, and then asks for its first chunk."""
    end = run.finished_us or run.started_us
    asked = [chunk.asked_us for chunk in chunks if run.started_us <= chunk.asked_us <= end]
    return run.started_us, min(asked, default=end)


def _of_spans(name: str, spans: Sequence[Span], cases: int) -> Stage | None:
    return Stage(name=name, wall_s=wall_s(spans), work_s=_sum_s(spans), cases=cases) if spans else None


def _scoring(chunks: Sequence[ChunkLine]) -> list[Stage | None]:
    spent: Counter[str] = Counter()
    for chunk in chunks:
        spent.update(within(chunk.seconds))
    cases = sum(chunk.cases for chunk in chunks)
    whole = _of_spans("score", [(chunk.started_us, chunk.finished_us) for chunk in chunks], cases)
    return [whole, *inner_stages(spent, cases)]


def inner_stages(seconds: Mapping[str, float], cases: int) -> list[Stage]:
    """The stages within scoring, from their summed seconds."""
    spent = within(seconds)
    return [Stage(name=name, wall_s=None, work_s=spent[name], cases=cases) for name in _in_order(spent)]


def within(seconds: Mapping[str, float]) -> dict[str, float]:
    """The stages inside scoring, without the whole that they are part of."""
    return {name: value for name, value in seconds.items() if name != "score"}


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (WITHIN.index(name) if name in WITHIN else len(WITHIN), name))


def wall_s(spans: Iterable[Span]) -> float:
    """Seconds during which at least one of these was at work."""
    total = reached = 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total / SECOND_US


def _sum_s(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans) / SECOND_US
