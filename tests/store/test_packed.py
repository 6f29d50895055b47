"""What is handed to the writer."""

from __future__ import annotations

from medflow.records import FhirResource, Identifier, Patient
from medflow.store.packed import pack, with_raw


def resource(**changes: object) -> FhirResource:
    content = {"source": "local", "type": "Patient", "id": "p1", "raw": b'{"a": 1}', "sha256": "5" * 64, "version": "3"}
    return FhirResource(**content | {"patient": Patient(identifiers=(Identifier(system="s", value="1"),))} | changes)  # type: ignore[arg-type]


def test_bytes_left_behind_are_put_back() -> None:
    light = pack(resource(), with_raw=False)

    assert light.raw == b""
    assert with_raw(light, b'{"a": 1}') == pack(resource())


def test_a_deletion_has_no_content() -> None:
    found = pack(resource(deleted=True, patient=None))

    assert (found.raw, found.sha256, found.version) == (b"", "", "3")
