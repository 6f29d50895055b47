"""Which system a FHIR server's ids are unique in: records of two servers under one name would mix up patients.

A hospital with one EHR, whose records came as files first, expects `Patient/7` by REST to be the `Patient/7` of the
files: both are of MEDFLOW_SOURCE. A second server's `Patient/7` is somebody else, and so it needs a name of its own;
that two addresses are one system has to be said, by ``source``.
"""

from __future__ import annotations

from medflow.config import Settings
from medflow.connections.endpoints import FhirSource
from medflow.errors import ConfigurationError
from medflow.store import Store, watermarks

KIND = "records"  # of the mark that says which server's records a system's are


def record_source(store: Store, settings: Settings, source: FhirSource, name: str) -> str:
    """The system that records of this server are stored under; notes that they are.

    Raises
    ------
    ConfigurationError
        Records of another server are stored under it, or would be, and nothing says that the two are one system.
    """
    system = source.source or settings.source
    if source.source is None:
        others = [
            other
            for other, item in settings.sources.items()
            if isinstance(item, FhirSource)
            and not _one_server(item, source.url)
            and (item.source or settings.source) == system
        ]
        if others:
            raise ConfigurationError(_collision(system, name, f"{others[0]} is of {system!r} too"))
    with store.writing() as connection:
        known = watermarks.read_mark(connection, system, KIND).state
        before = known.get("url")
        if source.source is None and isinstance(before, str) and not _one_server(source, before):
            raise ConfigurationError(_collision(system, name, f"those of {system!r} came from {before} so far"))
        if before != source.url:
            watermarks.set_mark(connection, system, KIND, watermarks.Watermark(state={"url": source.url}))
    return system


def server_bases(settings: Settings, origin: str) -> frozenset[str]:
    """The base URLs of the FHIR server that a reject came from; none where it came from a file."""
    for name, item in settings.sources.items():
        if isinstance(item, FhirSource) and origin.startswith(f"{name}/"):
            return frozenset((item.url, *item.also))
    if origin.startswith(("http://", "https://")):
        base, export, _ = origin.partition("/$export/")
        return frozenset((base if export else origin.rsplit("/", 2)[0],))
    return frozenset()


def _one_server(source: FhirSource, url: str) -> bool:
    return url in (source.url, *source.also)


def _collision(system: str, name: str, why: str) -> str:
    return (
        f"records of {name} cannot be told from others': {why}, and ids are unique within one system only. Give {name} "
        f"a `source` of its own (--source), or the same one, {system!r}, if both are one system"
    )
