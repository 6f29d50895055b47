"""A result as a row of ``prediction``, and back: what has no column of its own lies in ``detail``, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection

from medflow.records import CalledVariant, Contribution, Mutagenesis, Result, VariantScore
from medflow.store.ledger import upsert
from medflow.store.tables import PredictionRow


def write_results(connection: Connection, results: Mapping[int, Iterable[Result]]) -> None:
    """The results of jobs, by id, in place of those there were."""
    rows = [_columns(job_id, result) for job_id, items in results.items() for result in items]
    if not rows:
        return
    statement = upsert(connection, PredictionRow)
    values = {name: statement.excluded[name] for name in ("value", "detail", "mask", "out_of_scope")}
    connection.execute(statement.on_conflict_do_update(index_elements=["job_id", "output"], set_=values), rows)


def result_of(row: Any) -> Result:
    """The result that a row of ``prediction`` holds."""
    detail: Mapping[str, Any] = row.detail
    return Result(
        output=row.output,
        value=row.value,
        probabilities=tuple(detail.get("probabilities") or ()),
        voxels=detail.get("voxels"),
        mean=detail.get("mean"),
        mean_unit=detail.get("mean_unit"),
        mask=row.mask,
        out_of_scope=row.out_of_scope,
        contributions=tuple(_contribution(item) for item in detail.get("contributions", ())),
        mutagenesis=_mutagenesis(detail.get("mutagenesis")),
        variants=tuple(_score(item) for item in detail.get("variants", ())),
        build=detail.get("build"),
        scores=detail.get("scores"),
        counts=detail.get("counts", {}),
    )


def _columns(job_id: int, result: Result) -> dict[str, Any]:
    detail: dict[str, Any] = {"probabilities": list(result.probabilities), "voxels": result.voxels}
    if result.mean is not None:
        detail |= {"mean": result.mean, "mean_unit": result.mean_unit}
    if result.contributions:
        detail["contributions"] = [_json(item) for item in result.contributions]
    if result.mutagenesis is not None:
        detail["mutagenesis"] = {"of": result.mutagenesis.of, "changes": list(map(list, result.mutagenesis.changes))}
    if result.scores is not None:
        detail |= {"build": result.build, "scores": result.scores, "counts": dict(result.counts)}
        detail["variants"] = [_score_json(item) for item in result.variants]
    return {
        "job_id": job_id,
        "output": result.output,
        "value": result.value,
        "detail": detail,
        "mask": result.mask,
        "out_of_scope": result.out_of_scope,
    }


def _json(item: Contribution) -> dict[str, Any]:
    named = ("kind", "name", "value", "share", "measured", "basis")
    return {**{name: getattr(item, name) for name in named}, "steps": list(item.steps)}


def _contribution(found: Mapping[str, Any]) -> Contribution:
    return Contribution(**{**found, "steps": tuple(found["steps"])})


def _mutagenesis(found: Mapping[str, Any] | None) -> Mutagenesis | None:
    return Mutagenesis(of=found["of"], changes=tuple(map(tuple, found["changes"]))) if found else None


def _score_json(item: VariantScore) -> dict[str, Any]:
    named = ("contig", "position", "ref", "alt", "zygosity", "phase", "gene")
    variant = {name: value for name in named if (value := getattr(item.variant, name)) is not None}
    if item.variant.depths is not None:
        variant["depths"] = list(item.variant.depths)
    return {"variant": variant, "score": item.score, "effects": list(item.effects)}


def _score(found: Mapping[str, Any]) -> VariantScore:
    given: dict[str, Any] = {**found["variant"]}
    if "depths" in given:
        reference, alternate = given["depths"]
        given["depths"] = (reference, alternate)
    return VariantScore(variant=CalledVariant(**given), score=found["score"], effects=tuple(found["effects"]))
