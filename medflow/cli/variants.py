"""`medflow scores`: the file with the scores of all variants of a sample; and what `medflow show` says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from medflow.cli.output import out, show_table
from medflow.cli.site import here
from medflow.errors import ConfigurationError
from medflow.plugin import ModelSpec, VariantEffect
from medflow.records import Result, VariantScore
from medflow.store import history
from medflow.store.history import JobView
from medflow.variant_scores import scores_file

LISTED = 50  # reported variants in a table; --json has all


def scores(
    job: Annotated[int, typer.Argument(help="The id of a job of a model of variants, as `medflow jobs` lists it.")],
    to: Annotated[Path | None, typer.Option(help="The file to write; job-<id>-scores.tsv.gz here otherwise.")] = None,
    output: Annotated[str | None, typer.Option(help="The output, where the model has several.")] = None,
) -> None:
    """Write the scores of all variants of a sample, those not reported too: gzipped text, tab-separated."""
    site = here()
    found, data = scores_file(site.store, view_of(job).results, output)
    path = to or Path(f"job-{job}-scores.tsv.gz")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigurationError(f"{path.name} cannot be written ({error.strerror}): name another place") from None
    out.print(f"{found.output}: {found.counts.get('scored', 0)} variants, written to {path}", markup=False)


def view_of(job: int) -> JobView:
    """A job with its model's declaration and its results; raises ConfigurationError where there is none."""
    with here().store.reading() as connection:
        view = history.job_view(connection, job)
    if view is None:
        raise ConfigurationError(f"there is no job {job}: `medflow jobs --state done` lists those that were scored")
    return view


def as_json(view: JobView) -> dict[str, Any]:
    """A job and its results, as `medflow show --json` prints them."""
    job = {"job": view.job.id, "unit": str(view.job.unit), "model": view.model, "version": view.version}
    return job | {"state": view.state, "error": view.error, "results": [_result_json(item) for item in view.results]}


def _result_json(result: Result) -> dict[str, Any]:
    said: dict[str, Any] = {"output": result.output, "value": result.value, "out_of_scope": result.out_of_scope}
    if result.probabilities:
        said["probabilities"] = list(result.probabilities)
    if result.scores is None:
        return said
    variants = [{**asdict(item.variant), "score": item.score, "effects": item.effects} for item in result.variants]
    return said | {"build": result.build, "counts": dict(result.counts), "scores": result.scores, "variants": variants}


def show_variants(spec: ModelSpec, results: Sequence[Result]) -> None:
    """The counts of a sample's variants, and those that are reported, as tables."""
    for result in results:
        output = spec.output(result.output)
        if not isinstance(output, VariantEffect) or result.scores is None:
            continue
        show_table(("variants", "count"), _counted(result.counts), title=f"{output.name} on {result.build}")
        if result.variants:
            effects = [effect.name for effect in output.effects]
            columns = ("contig", "position", "ref", "alt", "gene", "zygosity", "score", *effects)
            show_table(columns, [_row(item) for item in result.variants[:LISTED]], title="reported")
        if (more := len(result.variants) - LISTED) > 0:
            out.print(f"and {more} more: --json has them all")


def _counted(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """What was scored and reported first, then what was left out, most first."""
    first = [(name, counts[name]) for name in ("scored", "reported") if name in counts]
    return first + sorted((item for item in counts.items() if item not in first), key=lambda item: (-item[1], item[0]))


def _row(item: VariantScore) -> tuple[object, ...]:
    variant = item.variant
    numbers = (f"{number:.3f}" for number in (item.score, *item.effects))
    return (variant.contig, variant.position, variant.ref, variant.alt, variant.gene, variant.zygosity, *numbers)
