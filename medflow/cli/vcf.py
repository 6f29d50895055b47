"""`medflow ingest vcf` and `medflow withdraw vcf`: files of variants, and one that takes another's place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medflow import steps
from medflow.cli.output import finish, progress_bar
from medflow.cli.site import Json, here
from medflow.errors import ConfigurationError
from medflow.ingest.genomics import VcfTerms
from medflow.ingest.genomics import ingest_vcf as take_vcf
from medflow.ingest.withdrawing import replace_vcf
from medflow.ingest.withdrawing import withdraw_vcf as take_back

FILE = "Its id as `medflow samples` lists it (variant_file/N), its SHA-256, or the file itself."


def withdraw_vcf(file: Annotated[str, typer.Argument(help=FILE, show_default=False)], as_json: Json = False) -> None:
    """Take back a stored VCF file: its results are entered in error, its samples are not scored again."""
    site = here()
    with steps.recorded(site, "withdraw vcf") as run:
        taken = take_back(site.store, file, run_id=run.id)
        run.counts = {"samples": taken.samples, "results": taken.results, "jobs": taken.jobs}
    finish(run.counts, as_json=as_json, title="withdraw vcf")


def ingest_vcf(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.", show_default=False)],
    reference: Annotated[Path | None, typer.Option(help="FASTA of the assembly; checks every REF allele.")] = None,
    samples: Annotated[Path | None, typer.Option(help="CSV sheet that says whose each sample is.")] = None,
    replaces: Annotated[
        str | None, typer.Option(metavar="FILE", help=f"Withdraw this file, which the one given stands for. {FILE}")
    ] = None,
    restore: Annotated[bool, typer.Option("--restore", help="Take in files again that were withdrawn.")] = False,
    as_json: Json = False,
) -> None:
    """VCF files, plain or compressed."""
    site = here()
    source = steps.source_of("vcf", paths, reference=reference, samples=samples)
    if replaces is not None and len(paths) > 1:
        raise ConfigurationError("--replaces goes with one VCF file at a time")
    with progress_bar("ingesting vcf") as advance, steps.recorded(site, "ingest vcf") as run:
        terms = VcfTerms(
            reference=source.reference, samples=source.samples, restore=restore, run_id=run.id, progress=advance
        )
        if replaces is None:
            tally = take_vcf(site.store, site.settings, source.paths, **terms)
        else:
            tally = replace_vcf(site.store, site.settings, source.paths[0], replaces, **terms)
        tally.check()
        run.counts = tally.as_json()
    finish(run.counts, as_json=as_json, title="ingest vcf")
