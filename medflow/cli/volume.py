"""`medflow volume`: a stored series as the NIfTI file of what a model would be given."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medflow.cli.output import err, out
from medflow.cli.site import Json, here
from medflow.errors import ConfigurationError, InputNotUsable
from medflow.plugin import Image, ImagingInput
from medflow.records import Instance, UnitKind
from medflow.series_rule import imaging_inputs, unmet
from medflow.steps import Site
from medflow.store.imaging import series_instances
from medflow.store.selection import series_pages

MORE = ("mosaic", "several-volumes")  # refusals of a series that holds more than was asked for


class Which(StrEnum):
    """Which volumes of a series that holds several."""

    ALL = "all"
    ONLY = "only"
    FIRST = "first"
    LAST = "last"


def volume(
    series: Annotated[str, typer.Argument(help="A series by its id here: series/12, or 12.")],
    to: Annotated[Path, typer.Option("--out", help="The file to write: .nii.gz or .nii.")],
    model: Annotated[str | None, typer.Option("--model", help="As this model would be given it.")] = None,
    named: Annotated[str | None, typer.Option("--input", help="Which input of the model, if it has several.")] = None,
    which: Annotated[
        Which | None, typer.Option("--volume", help="Of a series of several volumes; without --model. All by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a series as NIfTI, exactly as a model would be given it, so that any viewer can check it."""
    from medflow.dicom.nifti import write_nifti  # with pydicom, for which no other command is to wait

    site = here()
    series_id = _series_id(series)
    with site.store.reading() as connection:
        instances = series_instances(connection, series_id)
    if not instances:
        raise ConfigurationError(f"there is no series {series_id}: `medflow select --explain --model NAME` lists them")
    specs = _as_asked(instances, which) if model is None else [_of_model(site, model, named, which)]
    image = _read(site, series_id, instances, specs)
    write_nifti(image, to)
    told = _told(image)
    notes = [] if model is None else _notes(site, model, specs[0], series_id)
    if as_json:
        typer.echo(json.dumps({"series": series_id, "file": str(to), **told, "notes": notes}))
        return
    for note in notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    for name, value in told.items():
        for line in value if name == "volumes" and isinstance(value, list) else [value]:
            out.print(f"{name}: {_words(line)}", markup=False, soft_wrap=True)
    out.print(f"written to {to}", markup=False, soft_wrap=True)


def _series_id(text: str) -> int:
    match = re.fullmatch(r"(?:series/)?(\d{1,18})", text)
    if match is None:
        raise ConfigurationError("a series is named by its id here, for example series/12 or 12")
    return int(match[1])


def _as_asked(instances: Sequence[Instance], which: Which | None) -> list[ImagingInput]:
    """Without a model: as a picture, a volume or several volumes, whichever it is first."""
    picture = ImagingInput(modality=(), dimensions=2)
    several = ImagingInput(modality=(), dimensions=4)
    if which is None:
        single = len(instances) == 1 and instances[0].frames == 1
        return [*([picture] if single else []), ImagingInput(modality=()), several]
    if which is Which.ALL:
        return [several]
    return [ImagingInput(modality=(), take=which.value)]


def _read(site: Site, series_id: int, instances: Sequence[Instance], specs: Sequence[ImagingInput]) -> Image:
    """As the first of ``specs`` that does not find more in it than it takes."""
    from medflow.dicom.volume import read_image

    try:
        return read_image(instances, site.store.objects, specs[0])
    except InputNotUsable as error:
        if len(specs) == 1 or error.code not in MORE:
            reason = f"series/{series_id} cannot be given to a model ({error.code}): {error.message}"
            raise ConfigurationError(reason) from None
    return _read(site, series_id, instances, specs[1:])


def _of_model(site: Site, model: str, named: str | None, which: Which | None) -> ImagingInput:
    if which is not None:
        raise ConfigurationError("--volume goes without --model: a model says itself which volume it takes")
    inputs = {item.name: item for item in imaging_inputs(site.registry.get(model).spec)}
    if not inputs:
        raise ConfigurationError(f"{model} takes no images")
    if named is None and len(inputs) == 1:
        return next(iter(inputs.values()))
    if named not in inputs:
        raise ConfigurationError(f"--input says which input of {model} is meant: {', '.join(inputs)}")
    return inputs[named]


def _notes(site: Site, model: str, spec: ImagingInput, series_id: int) -> list[str]:
    """Why the model would never be given the series that was written as it would have it."""
    with site.store.reading() as connection:
        pages = series_pages(connection, UnitKind.SERIES, size=1, only=series_id)
        reasons = [reason for page in pages for series in page for reason in unmet(spec, series)]
    return [f"{model} does not take series/{series_id} ({reason.code}): {reason.words}" for reason in reasons]


def _told(image: Image) -> dict[str, object]:
    from medflow.dicom.nifti import ras_affine

    affine = None if image.affine is None else ras_affine(image.affine).round(6).tolist()
    return {
        "shape": list(image.array.shape),
        "spacing_mm": None if image.spacing_mm is None else [round(value, 6) for value in image.spacing_mm],
        "affine": affine,
        "modality": image.modality,
        "range": [float(image.array.min()), float(image.array.max())],
        "volumes": [dict(labels) for labels in image.volumes],
    }


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number:g}" for name, number in value.items()) or "the only one"
    return "unknown" if value is None else str(value)
