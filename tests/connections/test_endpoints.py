"""Servers as the configuration names them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from medflow.config import parsed_target
from medflow.connections.endpoints import DicomWebSource, FhirTarget, FolderTarget, PacsSource, PacsTarget, Source
from medflow.errors import ConfigurationError

SOURCE: TypeAdapter[Source] = TypeAdapter(Source)


def test_a_base_url_has_one_name_and_its_credentials_are_no_part_of_it() -> None:
    target = parsed_target("https://me:pass%40word@fhir.example:8443/r4/")

    assert isinstance(target, FhirTarget)
    assert target.public == "https://fhir.example:8443/r4"
    assert target.auth is not None and target.auth.type == "basic"
    assert target.auth.password.get_secret_value() == "pass@word"
    assert "pass" not in repr(target).replace("password", "")


@pytest.mark.parametrize(
    "url", ["ftp://x/fhir", "http://", "https://x/fhir?token=SECRET", "http://x:port/", "http://x/#a", "", " "]
)
def test_what_is_no_target_is_said_so_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed_target(url)

    assert "SECRET" not in str(caught.value)


def test_text_is_a_folder_or_a_dicom_application() -> None:
    pacs = parsed_target("ARCHIVE ONE@[fd00::1]:11112")

    assert isinstance(pacs, PacsTarget)
    assert (pacs.aet, pacs.host, pacs.port, pacs.public) == (
        "ARCHIVE ONE",
        "fd00::1",
        11112,
        "ARCHIVE ONE@[fd00::1]:11112",
    )
    assert parsed_target("/results") == FolderTarget(kind="folder", path=Path("/results"))


def test_a_source_is_known_by_its_kind() -> None:
    web = SOURCE.validate_python({"kind": "dicomweb", "url": "https://pacs/dicom-web/", "modalities": ["CT"]})
    pacs = SOURCE.validate_python({"kind": "pacs", "address": "PACS@host:104", "patient_id": "SECRET"})

    assert isinstance(web, DicomWebSource) and web.public == "https://pacs/dicom-web"
    assert isinstance(pacs, PacsSource) and pacs.retrieve == "get"
    assert "SECRET" not in repr(pacs)


@pytest.mark.parametrize(
    "address", ["PACS", "PACS@host", "PACS@host:0", "PACS@host:70000", "@host:104", "A" * 17 + "@h:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="AET@host:port"):
        SOURCE.validate_python({"kind": "pacs", "address": address})
