"""`medflow demo`: the nightly run on sample data, with every figure told."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import typer

from medflow.cli.flows import run_nightly
from medflow.cli.output import OK, PROBLEMS, err, out, show_table
from medflow.config import load_settings
from medflow.delivery.folder import DICOM_FOLDER
from medflow.records import Instant
from medflow.registry import installed
from medflow.steps import deliver, open_site, score
from medflow.store import jobs, ledger

SHOWN = 4  # scores shown of each model
ROLLING = "early-warning"  # the model that looks at whoever is there tonight; the sample's stays are long over


def run(home: Path | None, *, as_json: bool) -> NoReturn:
    """Write the sample data, run the nightly flow over it, and say what happened."""
    from medflow.sample import write_sample  # with pydicom, for which no other command is to wait

    started = time.monotonic()
    root = (home or Path(tempfile.mkdtemp(prefix="medflow-demo-"))).absolute()
    results = root / "results"
    with err.status("writing sample data"):
        sample = write_sample(root / "sample")
    _configure(root, results, sample)
    with err.status("running the nightly flow (Prefect's temporary server takes some seconds to start)"):
        counts = run_nightly(sources=None, models=None, as_of=None, target=None)
    with err.status("two nights of the sample's March"):
        nights = _nights(sample.nights)
    seconds = time.monotonic() - started
    if as_json or not all({"offered", "done", "delivered"} & part.keys() for part in counts.values()):
        told = {"home": str(root), "results": str(results), "seconds": round(seconds, 1)}
        typer.echo(json.dumps({**told, **counts, **nights}))
    else:
        _tell(root, results, counts, nights, seconds)
    raise typer.Exit(_status(counts))


def _configure(root: Path, results: Path, sample: Any) -> None:
    """The demo's settings, as an operator would set them: environment variables, seen by every process."""
    from medflow.sample import pydicom_files

    wheel = [str(path) for path in pydicom_files()]
    sources = {
        "records": {"kind": "fhir", "paths": [str(sample.fhir)]},
        "imaging": {"kind": "dicom", "paths": [str(sample.dicom)]},
        "odd-imaging": {"kind": "dicom", "paths": wheel},
        "variants": {"kind": "vcf", "paths": [str(sample.vcf)], "reference": str(sample.reference)},
        "sequences": {"kind": "fasta", "paths": [str(sample.fasta)]},
    }
    for name in [name for name in os.environ if name.startswith("MEDFLOW_")]:
        del os.environ[name]  # the demo stands alone
    os.environ |= {
        "MEDFLOW_HOME": str(root),
        "MEDFLOW_SOURCES": json.dumps(sources),
        "MEDFLOW_ISSUER_SYSTEMS": json.dumps(dict(sample.issuer_systems)),
        "MEDFLOW_DELIVER_TO": str(results),
    }


def _nights(moments: Sequence[datetime]) -> dict[str, Any]:
    """Score the stays that were open on two nights in a row, as of each, and deliver after each."""
    site = open_site(load_settings())
    if ROLLING not in site.registry.models:
        return {}
    told = []
    for night in moments:
        tally = score(site, (ROLLING,), as_of=Instant.of(night))
        sent = deliver(site)
        told.append({"as_of": night.isoformat(), **tally.as_json(), "delivered": sent.delivered})
    return {"nights": told}


def _tell_nights(nights: Sequence[dict[str, Any]]) -> None:
    out.print(f"[bold]Two nights[/] of {ROLLING}, which looks at the last 24 hours of whoever is there:")
    for night in nights:
        out.print(f"  as of {night['as_of']}: {night['done']} stays scored, {night['delivered']} resources delivered")
    out.print("  Who was scored on both has the earlier result sent again, as amended.")


def _status(counts: dict[str, Any]) -> int:
    """The sample holds input that must be refused: rejects and dead jobs are what the demo shows, not a failure."""
    failed = any(part.get("failed") or part.get("broken") for part in counts.values())
    failed = failed or "plugin-error" in counts["score"].get("reasons", {})
    return PROBLEMS if failed or not counts["score"].get("done") else OK


def _tell(root: Path, results: Path, counts: dict[str, Any], nights: dict[str, Any], seconds: float) -> None:
    taken, scored, sent = counts["ingest"], counts["score"], counts["deliver"]
    site = open_site(load_settings())
    with site.store.reading() as connection:
        rejects = ledger.list_rejects(connection)
        dead = jobs.list_jobs(connection, states=("dead",))
        scores = {name: jobs.predictions(connection, name) for name in installed().models}
    out.print(f"\n[bold]Taken[/]: {taken['offered']} inputs offered, {taken['stored']} stored, ", end="")
    out.print(f"{taken['unchanged']} unchanged (the same object twice), {taken['rejected']} rejected")
    reasons: Counter[tuple[str, str]] = Counter()
    for item in rejects:
        reasons[item.kind, item.code] += item.seen
    example = {(item.kind, item.code): item.reason for item in rejects}
    rows = [[kind, code, count, example[kind, code]] for (kind, code), count in reasons.most_common()]
    show_table(["rejected", "reason", "count", "for example"], rows)
    out.print(f"[bold]Scored[/]: {scored['done']} cases by {len(scores)} models, {scored['dead']} refused")
    show_table(
        ["model", "case", "output", "value"], [row for name in sorted(scores) for row in _rows(name, scores[name])]
    )
    if dead:
        codes = Counter((job.model, job.error_code) for job in dead)
        reason = {(job.model, job.error_code): job.error for job in dead}
        show_table(
            ["refused by the input gate", "reason", "count", "for example"],
            [[model, code, count, reason[model, code]] for (model, code), count in codes.most_common()],
        )
    if found := nights.get("nights"):
        _tell_nights(found)
    out.print(f"[bold]Delivered[/]: {sent['delivered']} FHIR resources and DICOM objects to {results}", soft_wrap=True)
    for path in sorted(results.glob("*.ndjson")):
        out.print(f"  {path.name}: {sum(1 for _ in path.open('rb'))}")
    out.print(f"  {DICOM_FOLDER}/*.dcm: {sum(1 for _ in (results / DICOM_FOLDER).glob('*.dcm'))}")
    out.print(f"\nAll in {seconds:.0f} s. Try next:")
    for line in (
        f"export MEDFLOW_HOME={root}",
        "medflow status",
        "medflow rejects",
        "medflow score            # nothing is new: nothing is scored",
        "medflow plugin check medflow-risk",
        f"head -n 1 {results}/RiskAssessment.ndjson",
    ):
        out.print(f"  {line}", markup=False, soft_wrap=True)  # to be copied whole


def _rows(name: str, found: list[tuple[str, str, float | None, str | None]]) -> list[list[object]]:
    rows: list[list[object]] = [
        [name, unit, output, f"{value:.3f}" if value is not None else f"no answer: {out_of_scope}"]
        for unit, output, value, out_of_scope in found[:SHOWN]
    ]
    if len(found) > SHOWN:
        rows.append(["", "", f"... and {len(found) - SHOWN} more", ""])
    return rows
