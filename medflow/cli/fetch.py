"""`medflow ingest dicomweb` and `medflow ingest pacs`: images from where they live.

What is asked for may name a patient: it goes into the query, and neither into a log nor into the run's record.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import ValidationError

from medflow import steps
from medflow.cli.output import finish, progress_bar
from medflow.cli.site import Json, here
from medflow.connections.endpoints import DicomWebSource, PacsSource, Wanted
from medflow.errors import ConfigurationError
from medflow.steps import Site

Since = Annotated[str | None, typer.Option(help="First date of studies (2026-01-31).", show_default=False)]
Until = Annotated[str | None, typer.Option(help="Last date of studies.", show_default=False)]
Days = Annotated[int | None, typer.Option(help="How many days back from now; 7 if no study is named.", min=0)]
Modalities = Annotated[
    list[str] | None, typer.Option("--modality", help="Only series of this modality (CT); repeatable.")
]
Accession = Annotated[str | None, typer.Option(help="Only the study of this accession number.", show_default=False)]
PatientId = Annotated[str | None, typer.Option(help="Only studies of this Patient ID.", show_default=False)]
Studies = Annotated[list[str] | None, typer.Option("--study", help="A Study Instance UID; repeatable.")]
Found = TypeVar("Found", DicomWebSource, PacsSource)


def ingest_dicomweb(
    where: Annotated[str, typer.Argument(help="A base URL, or the name of a configured source.")],
    since: Since = None,
    until: Until = None,
    days: Days = None,
    modality: Modalities = None,
    accession: Accession = None,
    patient: PatientId = None,
    study: Studies = None,
    as_json: Json = False,
) -> None:
    """What a DICOMweb archive has and the store lacks (QIDO-RS, WADO-RS)."""
    site = here()
    source, name = _source(site, DicomWebSource, where, {"kind": "dicomweb", "url": where})
    wanted = _wanted(since, until, days, modality, accession, patient, study)
    _fetch(site, source.model_copy(update=wanted), name, as_json)


def ingest_pacs(
    where: Annotated[str, typer.Argument(help="AET@host:port, or the name of a configured source.")],
    since: Since = None,
    until: Until = None,
    days: Days = None,
    modality: Modalities = None,
    accession: Accession = None,
    patient: PatientId = None,
    study: Studies = None,
    retrieve: Annotated[str | None, typer.Option(help="get (C-GET, the default) or move (C-MOVE).")] = None,
    move_to: Annotated[
        str | None, typer.Option(help="AE title that C-MOVE sends to (MEDFLOW_RECEIVE_AET).", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """What a PACS has and the store lacks (C-FIND, and C-GET or C-MOVE)."""
    site = here()
    source, name = _source(site, PacsSource, where, {"kind": "pacs", "address": where})
    given = {"retrieve": retrieve, "move_to": move_to}
    how = _checked(PacsSource, {"kind": "pacs", "address": source.address, **_given(given)})
    changes = {key: getattr(how, key) for key in _given(given)}
    wanted = _wanted(since, until, days, modality, accession, patient, study)
    _fetch(site, source.model_copy(update={**wanted, **changes}), name, as_json)


def _fetch(site: Site, source: DicomWebSource | PacsSource, name: str | None, as_json: bool) -> NoReturn:
    with progress_bar(f"fetching from {name or source.public}") as advance:
        tally = steps.ingest(site, source, name=name, progress=advance)
    finish(tally.as_json(), as_json=as_json, title=f"ingest {source.kind}")


def _source(site: Site, kind: type[Found], where: str, direct: dict[str, Any]) -> tuple[Found, str | None]:
    """The configured source of this name or address, with its name; or what the address describes."""
    found = {name: source for name, source in site.settings.sources.items() if isinstance(source, kind)}
    for name, source in found.items():
        if where == name or where.strip().rstrip("/") == source.public:
            return source, name
    configured = site.settings.sources.get(where)
    if configured is not None:
        raise ConfigurationError(f"the source {where!r} is of kind {configured.kind}, not {direct['kind']}")
    try:
        return _checked(kind, direct), None
    except ConfigurationError as error:
        known = ", ".join(found) or "none"
        raise ConfigurationError(f"{error.message}; configured sources of kind {direct['kind']}: {known}") from None


def _wanted(
    since: str | None,
    until: str | None,
    days: int | None,
    modalities: list[str] | None,
    accession: str | None,
    patient: str | None,
    studies: list[str] | None,
) -> dict[str, Any]:
    """What the options change of what is wanted: whoever names a study, patient or date means it whenever it was."""
    given = _given(
        {
            "since": _day(since, "--since"),
            "until": _day(until, "--until"),
            "days": days,
            "modalities": tuple(modalities) if modalities else None,
            "accession_number": accession,
            "patient_id": patient,
            "studies": tuple(studies) if studies else None,
        }
    )
    checked = _checked(Wanted, given)
    changes = {key: getattr(checked, key) for key in given}
    if "days" in given:
        return changes | {"since": None, "until": None}
    return changes | ({"days": None} if given.keys() - {"modalities"} else {})


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _day(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        raise ConfigurationError(f"{option} takes a date, for example 2026-01-31") from None


Model = TypeVar("Model", Wanted, DicomWebSource, PacsSource)


def _checked(kind: type[Model], fields: dict[str, Any]) -> Model:
    """Validated; a ConfigurationError quotes no value."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
        said = problem["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{problem['loc'][-1]}: {said}") from None
