"""Sources that are servers: what the store lacks is fetched, and how the server answered is noted.

``name`` is what the source is called: its configured name, or its address where it was given directly. Watermarks and
its standing are kept under it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from medflow.config import Settings
from medflow.connections.endpoints import DicomWebSource, FhirSource, PacsSource
from medflow.errors import ConfigurationError, ServerUnavailable
from medflow.ingest.tally import Progress, Tally
from medflow.store import Store, connections


def fetch(
    store: Store,
    settings: Settings,
    source: DicomWebSource | PacsSource | FhirSource,
    name: str,
    *,
    run_id: int | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Take into the store what a server has and the store lacks; running it again goes on where it was.

    Raises
    ------
    SourceUnavailable
        It does not answer (any more). What came before is stored.
    ConfigurationError
        It wants other credentials, or is no such server.
    """
    with _noted(store, name):
        if isinstance(source, DicomWebSource):
            from medflow.ingest.dicomweb import fetch_dicomweb  # with dicomweb-client

            return fetch_dicomweb(store, settings, source, name, run_id=run_id, progress=progress)
        if isinstance(source, PacsSource):
            from medflow.ingest.pacs import fetch_pacs  # with pynetdicom

            return fetch_pacs(store, settings, source, name, run_id=run_id, progress=progress)
        if isinstance(source, FhirSource) and source.mode == "export":
            from medflow.ingest.bulk import fetch_export

            return fetch_export(store, settings, source, name, run_id=run_id, progress=progress)
        from medflow.ingest.fhir_server import fetch_records

        return fetch_records(store, settings, source, name, run_id=run_id, progress=progress)


@contextmanager
def _noted(store: Store, name: str) -> Iterator[None]:
    try:
        yield
    except (ServerUnavailable, ConfigurationError) as error:
        with store.writing() as connection:
            connections.note_failed(connection, connections.SOURCE, name, error.message)
        raise
    with store.writing() as connection:
        connections.note_answered(connection, connections.SOURCE, name)
