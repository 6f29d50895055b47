"""What there is to be tried in an installation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from medflow.config import Settings
from medflow.connections.endpoints import (
    AnySource,
    AnyTarget,
    Bearer,
    DicomWebSource,
    DicomWebTarget,
    FhirSource,
    FhirTarget,
    Files,
    FolderTarget,
)
from medflow.doctor import dicom, fhir, genomes, here, web
from medflow.doctor.finding import Check, Finding, Said, run_checks
from medflow.errors import ConfigurationError

PATIENCE = 4  # answers, each of which may take its time, that one check may need


def examine(
    settings: Settings,
    origins: Mapping[str, str],
    *,
    names: Collection[str] = (),
    prefect: tuple[str, str | None] | None = None,
    timeout_s: float = 10.0,
) -> list[Finding]:
    """Try everything that is configured, or only the sources and targets of these names.

    Parameters
    ----------
    settings, origins
        As `medflow.config.load_with_origins` gives them.
    names
        Of sources and targets; empty means all, and what is here besides.
    prefect
        The address of its API and what is shown there ("user:password"), where one is configured.
    timeout_s
        How long an answer may take; a check as a whole may take four times as long.

    Raises
    ------
    ConfigurationError
        A name is no source's and no target's.
    """
    checks = [
        *(
            Check(name=f"source {name}", run=_of_source(source, settings, timeout_s))
            for name, source in settings.sources.items()
            if not names or name in names
        ),
        *(
            Check(name=f"target {name}", run=_of_target(target, settings, timeout_s))
            for name, target in _targets(settings).items()
            if not names or name in names
        ),
    ]
    if unknown := sorted(set(names) - settings.sources.keys() - _targets(settings).keys()):
        known = ", ".join(sorted({*settings.sources, *_targets(settings)})) or "none"
        raise ConfigurationError(f"no source or target is called {', '.join(unknown)}; there are: {known}")
    if not names:
        checks = [*_here(settings, origins, prefect, timeout_s), *checks]
    return run_checks(checks, deadline_s=PATIENCE * timeout_s)


def _here(
    settings: Settings, origins: Mapping[str, str], prefect: tuple[str, str | None] | None, timeout_s: float
) -> list[Check]:
    checks = [
        Check(name="configuration", run=partial(here.configuration, settings, origins)),
        Check(name="database", run=partial(here.database, settings)),
        Check(name="objects", run=partial(here.objects, settings)),
    ]
    if dicom.is_received(settings):
        checks.append(Check(name="receiver", run=partial(dicom.receiver, settings, timeout_s)))
    checks += _of_genomes(settings)
    if prefect is not None:
        checks.append(Check(name="prefect", run=partial(here.prefect, *prefect, timeout_s)))
    return checks


def _of_genomes(settings: Settings) -> list[Check]:
    checks = [
        Check(name=f"reference {assembly}", run=partial(genomes.reference, assembly, path))
        for assembly, path in settings.references.items()
    ]
    if settings.references or settings.regions or settings.genes or settings.gene_bed:
        checks.append(Check(name="regions", run=partial(genomes.regions, settings)))
    if settings.sample_sheet is not None:
        checks.append(Check(name="sample sheet", run=partial(genomes.sample_sheet, settings)))
    return checks


def _targets(settings: Settings) -> dict[str, AnyTarget]:
    """Those that have a name, and the default one where it is given directly."""
    given = [settings.target(name) for name in settings.default_targets if name not in settings.targets]
    return {**settings.targets, **{target.public: target for target in given}}


def _of_source(source: AnySource, settings: Settings, timeout_s: float) -> Callable[[], Iterable[Said]]:
    if isinstance(source, Files):
        return partial(here.files, source)
    if isinstance(source, FhirSource):
        return partial(fhir.source, source, timeout_s)
    if isinstance(source, DicomWebSource):
        return partial(web.dicomweb, source, timeout_s)
    return partial(dicom.archive, source, settings, timeout_s)


def _of_target(target: AnyTarget, settings: Settings, timeout_s: float) -> Callable[[], Iterable[Said]]:
    if isinstance(target, FolderTarget):
        return partial(here.folder, target)
    if isinstance(target, FhirTarget):
        if target.auth is None and settings.fhir_token is not None:
            target = target.model_copy(update={"auth": Bearer(type="bearer", token=settings.fhir_token)})
        return partial(fhir.target, target, timeout_s)
    if isinstance(target, DicomWebTarget):
        return partial(web.dicomweb, target, timeout_s)
    return partial(dicom.archive, target, settings, timeout_s)
