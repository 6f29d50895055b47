"""What a manifest's files are, read from its pages."""

import pytest

from medflow.errors import ConfigurationError, SourceUnavailable
from medflow.fhir.bulk_manifest import ExportFile, Section, address, files_of, origin

BASE = "https://ehr.example/fhir/status/7"


def key(url: str, section: Section = Section.OUTPUT) -> str:
    return ExportFile(section=section, type="Patient", url=url).key


@pytest.mark.parametrize(
    ("once", "again"),
    [
        ("?X-Amz-Date=1&X-Amz-Signature=a", "?X-Amz-Date=2&X-Amz-Signature=b"),
        ("?sv=1&sp=r&sig=a&se=1", "?sv=1&sp=r&sig=b&se=2"),
        ("?Expires=1&Signature=a&Key-Pair-Id=k", "?Expires=2&Signature=b&Key-Pair-Id=k"),
    ],
)
def test_a_file_is_the_same_when_its_address_is_signed_anew(once, again):
    assert key(f"https://s3.example/a/1.ndjson{once}") == key(f"https://s3.example/a/1.ndjson{again}")


@pytest.mark.parametrize("query", ["?file=2", "?token=2", "?signature=2", "?sp=2&se=2", "?expires=2"])
def test_files_that_differ_in_their_query_are_different(query):
    assert key("https://ehr.example/file" + query) != key("https://ehr.example/file" + query.replace("2", "1"))


def test_the_files_of_a_page_are_what_it_lists_with_relative_addresses_resolved():
    page = {
        "output": [{"type": "Patient", "url": "/files/1", "count": 3}, {"type": "Jane Doe", "url": "../2"}],
        "deleted": [{"type": "Bundle", "url": "https://s3.example/d"}],
        "error": [],
    }

    found = files_of(page, BASE, "ehr")

    assert [(item.section, item.type, item.url, item.count) for item in found] == [
        ("deleted", "Bundle", "https://s3.example/d", None),
        ("output", "Patient", "https://ehr.example/files/1", 3),
        ("output", "", "https://ehr.example/fhir/2", None),
    ]
    assert "s3.example" not in repr(found)


@pytest.mark.parametrize("url", ["http://ehr.example/1", "http://s3.example/1"])
def test_what_is_asked_for_over_tls_does_not_come_without(url):
    with pytest.raises(ConfigurationError, match="not https"):
        address(BASE, url, "ehr")


@pytest.mark.parametrize(
    "url", ["ftp://ehr.example/1", "file:///etc/passwd", "https://[x/SECRET", "https://SECRET:99999/1"]
)
def test_what_is_no_http_address_is_said_so_and_not_quoted(url):
    with pytest.raises(SourceUnavailable) as caught:
        address(BASE, url, "ehr")

    assert "SECRET" not in str(caught.value)


def test_an_origin_is_scheme_host_and_port():
    assert origin("https://EHR.example/a") == origin("https://ehr.example:443/b")
    assert origin("https://ehr.example") != origin("https://ehr.example:8443") != origin("http://ehr.example:8443")
