"""What a person reads of a run in the Prefect UI, as Markdown: one sentence, what to do, and the tables behind it.

Names of sources, models, targets and codes, and counts: nothing else gets onto a page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from medflow.evaluation.result import InputDrift
from medflow.flows.drift import Drift, as_rows, input_rows
from medflow.flows.timings import Stage, inner_stages
from medflow.status import Link, said_age

Counts = Mapping[str, Any]
HELD = "held-by-others"


@lru_cache(maxsize=1)
def meanings() -> dict[str, Any]:
    """What each code means: the sentences of docs/users/rejects.md and docs/users/score.md."""
    return json.loads(Path(__file__).with_name("meanings.json").read_text(encoding="utf-8"))


def step(title: str, counts: Counts) -> str:
    """The page of one step, by what it counted."""
    if "offered" in counts:
        parts = [taken_sentence(counts), needs(ingest=counts), taken(counts)]
    elif "selected" in counts:
        inner = inner_stages(counts.get("seconds", {}), counts.get("done", 0))
        parts = [scored_sentence(counts), needs(score=counts), scored(counts), timings(inner)]
    elif "delivered" in counts:
        parts = [
            delivered_sentence(counts),
            needs(deliver=counts),
            delivered(counts.get("targets") or {"this run": counts}),
        ]
    else:
        parts = [plain(counts)]
    return _page(title, parts)


def night(
    counts: Mapping[str, Counts],
    *,
    verdict: str,
    waiting: Mapping[str, Counts],
    silent: str = "",
    more: Sequence[str] = (),
) -> str:
    """The page of a whole night.

    ``verdict`` begins it; ``waiting`` says where each target stands now; ``silent`` is the section of servers that do
    not answer; ``more`` are sections for its end.
    """
    ingest, score, deliver = (counts.get(name, {}) for name in ("ingest", "score", "deliver"))
    said = [taken_sentence(ingest), scored_sentence(score), delivered_sentence(deliver)]
    sections = [
        " ".join([f"**{verdict}**", *filter(None, said)]),
        needs(ingest=ingest, score=score, deliver=deliver),
        silent,
        taken(ingest),
        scored(score),
        delivered(deliver.get("targets") or {"this night": deliver}, waiting),
        *more,
    ]
    return _page("What the night did", sections)


def _page(title: str, parts: Iterable[str]) -> str:
    return "\n\n".join([f"# {title}", *filter(None, parts)]) + "\n"


# --- sentences ---------------------------------------------------------------------------------------------------


def taken_sentence(counts: Counts) -> str:
    """What came in, in one sentence."""
    if "offered" not in counts:
        return f"**Nothing was taken in**: {_stopped(counts)}." if counts else ""
    if not counts["offered"]:
        return "Nothing was offered."
    refused = f", **{counts['rejected']} rejected**" if counts["rejected"] else ""
    return f"Of {_of(counts['offered'], 'input')} {counts['stored']} new, {counts['unchanged']} unchanged{refused}."


def scored_sentence(counts: Counts) -> str:
    """What was scored, in one sentence."""
    if "done" not in counts:
        return f"**Nothing was scored**: {_stopped(counts)}." if counts else ""
    ends = ("failed", "failed, to be tried again"), ("dead", "cannot be scored")
    wrong = [f"**{counts[name]} {said}**" for name, said in ends if counts.get(name)]
    if withdrawn := counts.get("notes", {}).get("withdrawn"):
        wrong.append(f"**{_of(withdrawn, 'earlier result')} withdrawn**")
    if counts.get("broken"):
        wrong.append(f"**{_of(len(counts['broken']), 'model')} could not be run**")
    if not counts["done"] and not wrong:
        return "Nothing was new to a model."
    return f"{', '.join([_of(counts['done'], 'case') + ' scored', *wrong])}."


def delivered_sentence(counts: Counts) -> str:
    """What was sent, in one sentence."""
    if "delivered" not in counts:
        return f"**Nothing was delivered**: {_stopped(counts)}." if counts else ""
    ends = ("failed", "to be sent again"), ("dead", "refused")
    wrong = [f"**{counts[name]} {said}**" for name, said in ends if counts.get(name)]
    if not counts["delivered"] and not wrong:
        return "Nothing was to be sent."
    return f"{', '.join([_of(counts['delivered'], 'resource') + ' delivered', *wrong])}."


def _of(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _stopped(counts: Counts) -> str:
    return "; ".join(map(cell, counts.get("errors", {}))) or "the step did not run"


# --- what a person has to do -------------------------------------------------------------------------------------


def needs(*, ingest: Counts | None = None, score: Counts | None = None, deliver: Counts | None = None) -> str:
    """What does not mend itself, with the command to type for each."""
    rows = [*_needs_ingest(ingest or {}), *_needs_score(score or {}), *_needs_deliver(deliver or {})]
    if not rows:
        return "Nobody has to do anything."
    return "## What needs a person\n\n" + grid(["what", "look", "then"], rows)


def _needs_ingest(counts: Counts) -> Iterable[Sequence[object]]:
    if counts.get("rejected"):
        yield f"{_of(counts['rejected'], 'input')} rejected", "`medflow rejects`", "`medflow retry rejects`"
    if counts.get("failed"):
        yield "a source could not be read", _stopped(counts), "run it again"
    if counts.get("refused"):
        yield f"{_of(counts['refused'], 'part')} of a source refused", _stopped(counts), "`medflow doctor`"
    if counts.get("notes", {}).get("no-source-configured"):
        yield "no source is configured", "MEDFLOW_SOURCES", ""


def _needs_score(counts: Counts) -> Iterable[Sequence[object]]:
    if counts.get("dead"):
        look = "`medflow jobs --state dead`"
        yield f"{_of(counts['dead'], 'case')} that cannot be scored", look, "`medflow retry jobs`, once mended"
    if counts.get("failed"):
        look = "`medflow jobs --state failed`"
        yield f"{_of(counts['failed'], 'case')} failed for the machine's sake", look, "nothing: the next run tries"
    for name, error in counts.get("broken", {}).items():
        yield f"{cell(name)} could not be run", cell(error), "what it says (`medflow doctor`), or tell its author"


def _needs_deliver(counts: Counts) -> Iterable[Sequence[object]]:
    if counts.get("dead"):
        why = ", ".join(map(cell, counts.get("errors", {})))
        yield f"{_of(counts['dead'], 'resource')} refused by the target", why, "`medflow retry deliveries`, once mended"
    if counts.get("failed"):
        why = ", ".join(map(cell, counts.get("errors", {})))
        yield "delivery did not get through", why, "nothing: the next run sends what is left"


def silent(links: Sequence[Link], now_us: int) -> str:
    """Sources and targets that did not do what they were last asked, as a section: why is in `medflow status`."""
    if not links:
        return ""
    rows = [
        [
            link.line.role,
            cell(link.name),
            said_age((now_us - (link.line.failing_since_us or now_us)) / 1e6),
            link.line.failures,
            f"{said_age((now_us - link.line.ok_us) / 1e6)} ago" if link.line.ok_us else "never",
        ]
        for link in links
    ]
    said = "Nothing is lost: the next run that they answer reads on where it was, and sends what waits."
    columns = ["", "name", "fails since", "in a row", "answered last"]
    return "\n\n".join(["## What does not answer", grid(columns, rows), f"`medflow status` says why. {said}"])


# --- tables ------------------------------------------------------------------------------------------------------


def taken(counts: Counts) -> str:
    """Offered, stored, unchanged and rejected by source, and what each reason means."""
    if "offered" not in counts:
        return ""
    names = ("offered", "stored", "unchanged", "rejected")
    rows = [[cell(name), *(part.get(item, 0) for item in names)] for name, part in counts.get("sources", {}).items()]
    if len(rows) != 1:
        rows.append(["**all**", *(counts.get(item, 0) for item in names)])
    parts = ["## Taken in", grid(["source", *names], rows)]
    if reasons := counts.get("reasons"):
        found = [(code, count, *meanings()["rejects"].get(code, ["", ""])) for code, count in _most(reasons)]
        parts += ["### Rejected", grid(["reason", "inputs", "what it means", "what to do"], found)]
    return "\n\n".join([*parts, *_notes(counts)])


def models_of(counts: Counts) -> dict[str, Counts]:
    """Counts by ``model@version``: under "models", or as keys of their own."""
    named = {name: value for name, value in counts.items() if "@" in name and isinstance(value, Mapping)}
    return {**named, **counts.get("models", {})}


def model_rows(counts: Counts) -> list[dict[str, Any]]:
    """One row a model, as Prefect's table artifact takes it."""
    return [
        {
            "model": name,
            "selected": part.get("selected", ""),
            "scored": part.get("done", 0),
            "failed": part.get("failed", 0),
            "dead": part.get("dead", 0),
            "held by others": part.get("notes", {}).get(HELD, 0),
            "why": ", ".join(f"{code} ({count})" for code, count in _most(part.get("reasons", {}))),
        }
        for name, part in sorted(models_of(counts).items())
    ]


def scored(counts: Counts) -> str:
    """Selected, scored, failed and dead by model, and what each reason means."""
    if "done" not in counts:
        return ""
    rows = model_rows(counts)
    if len(rows) != 1:
        rows += model_rows({"models": {"**all**": {**counts, "reasons": {}}}})
    parts = ["## Scored", grid(list(rows[0]), [[_shown(value) for value in row.values()] for row in rows])]
    if reasons := counts.get("reasons"):
        means = "a code of the model's own: its card explains it"
        found = [(code, count, meanings()["cases"].get(code, means)) for code, count in _most(reasons)]
        parts += ["### Not scored", grid(["reason", "cases", "what it means"], found)]
    others = {name: count for name, count in counts.get("notes", {}).items() if name != HELD}
    return "\n\n".join([*parts, *_notes({"notes": others})])


def delivered(sent: Mapping[str, Counts], waiting: Mapping[str, Counts] | None = None) -> str:
    """What was sent, why not, and where every target stands now."""
    sent = {name: counts for name, counts in sent.items() if "delivered" in counts}
    parts = []
    if sent:
        names = ("pending", "delivered", "failed", "dead")
        rows = [[cell(name), *(counts.get(item, 0) for item in names)] for name, counts in sent.items()]
        parts += ["## Delivered", grid(["", "to send", *names[1:]], rows)]
        errors = [item for counts in sent.values() for item in _most(counts.get("errors", {}))]
        parts += ["### Not taken by the target", grid(["answer", "resources"], errors)] if errors else []
    if waiting:
        names = ("delivered", "pending", "failed", "dead")
        rows = [[cell(name), *(counts.get(item, 0) for item in names)] for name, counts in waiting.items()]
        parts += ["### Where each target stands", grid(["target", "has", "waiting", "failed", "dead"], rows)]
    return "\n\n".join(parts)


def timing_rows(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """One row a stage, as Prefect's table artifact takes it."""
    return [
        {
            "stage": stage.name,
            "wall (s)": "" if stage.wall_s is None else round(stage.wall_s, 2),
            "all workers (s)": round(stage.work_s, 2),
            "cases": stage.cases,
            "cases/s": "" if stage.rate is None else float(f"{stage.rate:.3g}"),
        }
        for stage in stages
    ]


def timings(stages: Sequence[Stage]) -> str:
    """The stages as a section."""
    if not stages:
        return ""
    rows = [list(row.values()) for row in timing_rows(stages)]
    said = "Stages within *score* overlap, and their rates are those of one worker."
    return "\n\n".join(["## How long it took", grid(list(timing_rows(stages)[0]), rows), said])


def drifts(found: Sequence[Drift]) -> str:
    """What the scores are like beside those of the nights before, as a section."""
    if not found:
        return ""
    rows = as_rows(found)
    said = "*Distance*: the widest gap between tonight's cumulative curve of scores and that of the nights before."
    return "\n\n".join(
        ["## Scores beside the nights before", grid(list(rows[0]), [row.values() for row in rows]), said]
    )


def inputs(found: Mapping[str, InputDrift]) -> str:
    """What the inputs are like beside those of the training, as a section."""
    if not found:
        return ""
    rows = [{name: _shown(value) for name, value in row.items()} for row in input_rows(found)]
    said = "By the population stability index of each input; `medflow drift MODEL` has the figures."
    return "\n\n".join(["## Inputs beside the training", grid(list(rows[0]), [row.values() for row in rows]), said])


def plain(counts: Counts) -> str:
    """Any counts as a table; nested maps become tables of their own below."""
    single = [(cell(name), _shown(value)) for name, value in counts.items() if not isinstance(value, Mapping)]
    parts = [grid(["what", "count"], single)] if single else []
    for name, value in counts.items():
        if isinstance(value, Mapping) and value:
            parts += [f"**{cell(name)}**", plain(value)]
    return "\n\n".join(parts)


def grid(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; a column of numbers is set to the right."""
    listed = [list(row) for row in rows]
    numbers = [
        all(isinstance(row[place], (int, float)) or row[place] == "" for row in listed)
        and any(row[place] != "" for row in listed)
        for place in range(len(columns))
    ]
    lines = [columns, ["---:" if number else "---" for number in numbers], *listed]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def cell(text: object) -> str:
    """Text that cannot break out of a table's cell, nor be taken for HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _shown(value: object) -> object:
    return cell(value) if isinstance(value, str) else value


def _most(counts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(cell(name), count) for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _notes(counts: Counts) -> list[str]:
    notes = [f"{cell(name)} ({count})" for name, count in _most(counts.get("notes", {}))]
    return [f"Noted: {', '.join(notes)}."] if notes else []
