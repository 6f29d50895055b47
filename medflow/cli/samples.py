"""`medflow samples`: the samples of variant files, whose each is, and which models were given it, or why not."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from medflow import steps
from medflow.cli.output import iso, out, show_table
from medflow.cli.site import Json, here
from medflow.sample_selection import SampleLine
from medflow.selection import Line

COLUMNS = ("sample", "file", "patient", "linked by", "assembly", "models of variants")
UNKNOWN, NOBODY = "unknown", "nobody"


def samples(
    file: Annotated[
        str | None, typer.Option(help="Only those of this file: variant_file/N, its SHA-256, or the file itself.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many to list; those stored last come first.")] = 50,
    as_json: Json = False,
) -> None:
    """The samples of variant files: whose each is, and how it stands with each model of variants."""
    told = steps.list_samples(here(), limit=limit, file=file)
    if as_json:
        lines = [_as_json(line) for line in told.lines]
        typer.echo(json.dumps({"samples": lines, "more": told.more, "broken": told.broken}))
        return
    if told.lines:
        show_table(COLUMNS, [_row(line) for line in told.lines])
    elif not told.total:
        out.print("none")
    if told.more:
        out.print(f"and {told.more} more (--limit)")
    for model, error in told.broken.items():
        out.print(f"{model} cannot be run: {error}", markup=False, soft_wrap=True)


def _row(line: SampleLine) -> list[object]:
    sample, patient = line.listed.sample, line.listed.sample.patient_id
    return [
        sample.id,
        line.listed.file_id,
        NOBODY if patient is None else patient,
        line.listed.linked,
        sample.build or UNKNOWN,
        "\n".join(f"{name} {_in_short(found)}" for name, found in line.models.items()),
    ]


def _in_short(line: Line) -> str:
    """The verdict, the reasons by code where it is not the model's, and the job; in words by `select --explain`."""
    codes = [reason.code for reason in line.reasons if reason.code != line.verdict]
    job = [] if line.job is None else [f"(job {line.job})"]
    return " ".join([line.verdict + (f": {', '.join(codes)}" if codes else ""), *job])


def _as_json(line: SampleLine) -> dict[str, Any]:
    sample = line.listed.sample
    return {
        "sample": sample.id,
        "file": line.listed.file_id,
        "sha256": sample.sha256,
        "patient": sample.patient_id,
        "linked": line.listed.linked,
        "assembly": sample.build,
        "records": sample.records,
        "received": iso(line.listed.received_us),
        "withdrawn": iso(line.listed.withdrawn_us),
        "models": {name: _model_json(found) for name, found in line.models.items()},
    }


def _model_json(line: Line) -> dict[str, Any]:
    reasons = [{"code": reason.code, "words": reason.words} for reason in line.reasons]
    return {"verdict": line.verdict, "job": line.job, "reasons": reasons}
