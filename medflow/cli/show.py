"""`medflow show`: what a model saw of one case, and what it said, as a picture; `medflow explain`: why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medflow import steps
from medflow.cli.output import out, show_table
from medflow.cli.site import Json, here
from medflow.cli.variants import as_json as results_json
from medflow.cli.variants import show_variants, view_of
from medflow.contributions import label
from medflow.errors import CaseError, ConfigurationError
from medflow.registry import load_spec


def show(
    job: Annotated[int, typer.Argument(help="A job's id, as `medflow jobs` lists it.")],
    to: Annotated[Path | None, typer.Option(help="The PNG file to write; job-<id>.png here otherwise.")] = None,
    output: Annotated[
        str | None, typer.Option(help="The output whose explanation is drawn; the first otherwise.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in whatever shows pictures here.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as one JSON object, draw nothing.")
    ] = False,
) -> None:
    """What a model saw of one case, what it said, and what explains it if that was kept, as a PNG file."""
    if as_json:
        typer.echo(json.dumps(results_json(view_of(job))))
        return
    from medflow.pictures import picture_of  # with what reads images and draws: no other command is to wait for it

    path = to or Path(f"job-{job}.png")
    if path.suffix.lower() != ".png":
        raise ConfigurationError(f"--to {path.name} is no PNG file: give it a name that ends with .png")
    try:
        picture = picture_of(here().store, job, output=output)
    except CaseError as error:
        raise ConfigurationError(f"job {job} cannot be shown ({error.code}): {error.message}") from None
    try:
        path.write_bytes(picture.png)
    except OSError as error:
        raise ConfigurationError(f"{path.name} cannot be written ({error.strerror}): name another place") from None
    out.print(f"{picture.title}: {picture.answer}", markup=False, soft_wrap=True)
    if picture.of_variants:
        view = view_of(job)
        show_variants(load_spec(view.spec), view.results)
    if picture.explained is not None:
        rows = [
            (label(item), f"{item.value:+#.3g}", f"{100 * item.share:.0f} %")
            for item in picture.explained.contributions
        ]
        head = "top positions of" if picture.explained.mutagenesis else "what moved"
        show_table((f"{head} {picture.explained.output}", picture.scale, "of all"), rows)
    out.print(f"written to {path}", markup=False, soft_wrap=True)
    if open_it and typer.launch(str(path)):
        raise ConfigurationError(f"nothing here opens pictures: look at {path} with a program of your own")


def explain(
    job: Annotated[
        int, typer.Argument(help="The id of a job that was scored, as `medflow jobs --state done` lists it.")
    ],
    as_json: Json = False,
) -> None:
    """Have the model show what led to an answer that it gave: its case goes through it once more."""
    try:
        outputs = steps.explain(here(), job)
    except CaseError as error:
        raise ConfigurationError(f"job {job} cannot be explained ({error.code}): {error.message}") from None
    if as_json:
        typer.echo(json.dumps({"job": job, "explained": outputs}))
    elif outputs:
        out.print(f"explained: {', '.join(outputs)}; medflow show {job} draws it", markup=False, soft_wrap=True)
    else:
        out.print("the model has nothing to say of this case", markup=False, soft_wrap=True)
