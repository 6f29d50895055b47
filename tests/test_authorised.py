"""Fetching from and delivering to servers behind an authorisation server: tokens end, and keys are wrong."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import ECKey

from medflow import delivery
from medflow.config import load_settings
from medflow.connections.assertion import public_key
from medflow.connections.endpoints import AnySource, DicomWebSource, FhirSource, FhirTarget, SmartBackend
from medflow.errors import ConfigurationError
from medflow.ingest.fetch import fetch
from medflow.ingest.tally import Tally
from medflow.store import Store
from tests.factories_dicom import volume_of, write_series
from tests.services.oauth import AuthorisationServer, Client, authorisation_server, protect
from tests.services.orthanc import Orthanc

KEY = json.dumps(ECKey.generate_key("P-384", {"kid": "ours"}).as_dict(private=True))
TYPES = ("Patient", "Observation", "Condition")


@pytest.fixture
def oauth() -> Iterator[AuthorisationServer]:
    with authorisation_server() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(load_settings(home=tmp_path)).open()
    yield opened
    opened.close()


def smart(oauth: AuthorisationServer, **more: Any) -> SmartBackend:
    auth = SmartBackend.model_validate(
        {"type": "smart-backend", "client_id": "me", "alg": "ES384", "key": KEY, "token_url": oauth.token_url, **more}
    )
    scope = "system/*.read system/*.write"
    oauth.clients.setdefault("me", Client(jwks={"keys": [public_key(auth)]}, scope=scope))
    return auth


def taken(store: Store, tmp_path: Path, source: AnySource) -> Tally:
    assert isinstance(source, FhirSource | DicomWebSource)
    return fetch(store, load_settings(home=tmp_path), source, "the-source")


def filled(fhir_server: str) -> int:
    """Patients on the real server; returns how many."""
    for number in range(3):
        patient = {"resourceType": "Patient", "identifier": [{"system": "urn:x", "value": str(number)}]}
        httpx.post(f"{fhir_server}/Patient", json=patient, timeout=10).raise_for_status()
    return 3


def test_records_are_fetched_with_tokens_that_end_on_the_way(
    store: Store, tmp_path: Path, oauth: AuthorisationServer, fhir_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = filled(fhir_server)
    monkeypatch.setattr(oauth, "is_good", lambda token: oauth.tokens.pop(token, None) is not None)  # for one request
    with protect(fhir_server, oauth) as guarded:
        source = FhirSource(kind="fhir-server", url=guarded.url, types=TYPES, auth=smart(oauth, token_url=None))
        tally = taken(store, tmp_path, source)

    assert (tally.stored, dict(tally.broken)) == (count, {})
    assert len(oauth.assertions) >= len(TYPES)


def test_images_are_fetched_with_a_token_that_is_taken_back_on_the_way(
    store: Store, tmp_path: Path, oauth: AuthorisationServer, orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    orthanc.upload(*write_series(tmp_path / "in", volume_of(3)))
    with protect(orthanc.dicomweb, oauth) as guarded:
        good = oauth.is_good
        monkeypatch.setattr(oauth, "is_good", lambda token: guarded.requests != 3 and good(token))
        source = DicomWebSource(kind="dicomweb", url=guarded.url, days=None, auth=smart(oauth))
        tally = taken(store, tmp_path, source)

    assert (tally.stored, tally.rejected) == (3, 0)
    assert len(oauth.tokens) == 2


def test_results_are_delivered_with_leave_to_write(
    store: Store, tmp_path: Path, oauth: AuthorisationServer, fhir_server: str
) -> None:
    with protect(fhir_server, oauth) as guarded:
        target = FhirTarget(kind="fhir", url=guarded.url, auth=smart(oauth))
        assert delivery.deliver(store, load_settings(home=tmp_path), target).failed == 0

    assert guarded.requests > 0 and "" not in guarded.seen


def test_no_secret_reaches_the_database(
    store: Store, tmp_path: Path, oauth: AuthorisationServer, fhir_server: str
) -> None:
    filled(fhir_server)
    with protect(fhir_server, oauth) as guarded:
        source = FhirSource(kind="fhir-server", url=guarded.url, types=TYPES, auth=smart(oauth))
        taken(store, tmp_path, source)
        oauth.clients["me"].jwks = {"keys": [ECKey.generate_key("P-384", {"kid": "ours"}).as_dict(private=False)]}
        oauth.end_all()
        with pytest.raises(ConfigurationError, match="invalid_client"):
            taken(store, tmp_path, source)
        given = [header.removeprefix("Bearer ") for header in guarded.seen]
    with closing(sqlite3.connect(tmp_path / "medflow.db")) as connection:
        dump = "\n".join(connection.iterdump())

    assert "invalid_client" in dump
    for secret in (json.loads(KEY)["d"], *filter(None, given)):
        assert secret not in dump
