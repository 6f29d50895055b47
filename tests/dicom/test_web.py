"""Searching a DICOMweb server that pages, and lists, in ways of its own: nothing it has is passed over."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from medflow.config import Settings
from medflow.connections.endpoints import DicomWebSource
from medflow.dicom.web import DicomWeb, text_of
from medflow.errors import ConfigurationError, InputRejected
from medflow.ingest.dicomweb import DicomWebArchive
from medflow.ingest.landing import Landing
from medflow.ingest.retrieval import Lacking, Listed

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
Answer = Callable[[str, int], tuple[int, Any]]  # by path and offset: the status, and what is told


@contextmanager
def serving(answer: Answer) -> Iterator[DicomWebSource]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            status, found = answer(url.path, int(parse_qs(url.query).get("offset", ["0"])[0]))
            body = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            kind = "application/dicom" if isinstance(found, bytes) else "application/dicom+json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield DicomWebSource.model_validate({"kind": "dicomweb", "url": url, "days": None})
        server.shutdown()


def result(**uids: str) -> dict[str, Any]:
    tags = {"study": STUDY, "series": SERIES, "instance": INSTANCE}
    return {tags[level]: {"vr": "UI", "Value": [uid]} for level, uid in uids.items()}


def studies(source: DicomWebSource) -> list[str]:
    web = DicomWeb(source, timeout_s=5)
    try:
        return [text_of(found, STUDY) for found in web.studies({})]
    finally:
        web.close()


def test_a_page_that_only_repeats_others_is_not_taken_for_the_end() -> None:
    pages = {0: ["1.1", "1.2"], 2: ["1.2"], 3: ["1.3", "1.4"]}  # one came in meanwhile

    with serving(lambda _path, offset: (200, [result(study=uid) for uid in pages.get(offset, ())])) as source:
        assert studies(source) == ["1.1", "1.2", "1.3", "1.4"]


def test_a_server_that_knows_no_offset_is_not_asked_for_ever() -> None:
    with serving(lambda _path, _offset: (200, [result(study="1.1")])) as source:
        assert studies(source) == ["1.1"]


def test_a_page_that_is_refused_after_full_ones_is_not_taken_for_the_end() -> None:
    def answer(_path: str, offset: int) -> tuple[int, Any]:
        found = [result(study=f"1.{offset + number}") for number in range(2)]
        return (400, []) if offset >= 4 else (200, found)

    with serving(answer) as source, pytest.raises(ConfigurationError, match="HTTP 400"):
        studies(source)


def test_what_is_listed_without_a_uid_is_not_passed_over(settings: Settings) -> None:
    listed = {
        "/studies/1.5/series": [result(series="2.1"), result(series="2.2"), result()],
        "/studies/1.5/instances": [result(series="2.1", instance="3.1"), result(series="2.1")],
    }

    with serving(lambda path, offset: (200, [] if offset else listed.get(path, []))) as source:
        archive = DicomWebArchive(source, settings)
        found = archive.series("1.5", ())
        archive.close()

    assert found == [
        Listed(series_uid="", instances=("",)),
        Listed(series_uid="2.1", instances=("3.1", "")),
        Listed(series_uid="2.2", instances=("",)),
    ]


def test_what_an_archive_gives_may_not_fill_the_disk(settings: Settings) -> None:
    settings = settings.model_copy(update={"max_input_bytes": 1000})
    landing = Landing(settings.home, "archive")
    landing.prepare()
    wanted = Lacking(series_uid="2.1", instances=("3.1",), whole=True)

    with serving(lambda _path, _offset: (200, bytes(1001))) as source:
        archive = DicomWebArchive(source, settings)
        with pytest.raises(InputRejected, match="MEDFLOW_MAX_INPUT_BYTES"):
            archive.retrieve("1.5", [wanted], landing)
        archive.close()

    assert [path.name for path in landing.root.iterdir()] == [".lock"]
    landing.close()
