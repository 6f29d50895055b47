"""The files of a Bulk Data export, onto the disk: resumed where the server allows it, and credentials kept at home.

HL7 Bulk Data Access IG, STU 2, "Output File Request". Files often lie in an object store at another host. A token goes
with a request only where the manifest says requiresAccessToken, and only to the server's own origin or to a host that
the configuration names: an address in a manifest, or a redirect, leads no credential astray. Where requiresAccessToken
is false no token may be sent at all.

A break is resumed by Range with If-Range (RFC 9110 sections 13.1.5 and 14), so that two versions of a file are never
joined; without a validator to tell them apart it begins anew.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from medflow.connections import http
from medflow.connections.endpoints import FhirSource, HttpServer
from medflow.connections.patience import retry_after_s, tries
from medflow.errors import ConfigurationError, SourceUnavailable
from medflow.fhir.bulk import NDJSON, BulkServer
from medflow.fhir.bulk_manifest import ExportFile, address, origin

HEADWAY = 1 << 20  # bytes after which a break is no failure: a long file may break more often than patience allows
HOPS = 5  # redirects of one file
GONE = frozenset({401, 403, 404, 410})  # what object stores and servers say of an address that has expired


@dataclass(frozen=True, kw_only=True, slots=True)
class _Beginning:
    """What is known of a file that lies here in part: how to ask for the rest of the same."""

    validator: str | None = None
    encoding: str = ""
    total: int | None = None


class _Headway(Exception):
    """An answer broke, after enough of it came."""


class FileFetcher:
    """Fetches files of one server's exports into one folder. Thread-safe.

    Parameters
    ----------
    server
        Whose exports they are; it is not closed here.
    source
        Who we are to it, and which other hosts may know.
    folder
        Where files are kept, named after their `ExportFile.key`: ``.ndjson`` when they are whole.
    until
        When to give up, by `time.monotonic`.
    max_bytes
        Of one file: more does not come to the disk.
    """

    def __init__(self, server: BulkServer, source: FhirSource, folder: Path, *, until: float, max_bytes: int) -> None:
        self.source, self.folder, self._until, self._max_bytes = source, folder, until, max_bytes
        self._server = server

    def path(self, file: ExportFile) -> Path:
        """Where it lies when it is whole."""
        return self.folder / f"{file.key}.ndjson"

    def fetch(self, file: ExportFile, *, requires_token: bool, stopping: Callable[[], bool]) -> str | None:
        """Have a file whole at `path`: None; or else why its address does not lead to it (any more).

        Raises
        ------
        ServerUnavailable
            Its server failed as often as patience allows, or time is up. What came stays, for another try.
        ConfigurationError
            Its server wants credentials that it is not to have, or the disk is full.
        """
        if self.path(file).exists():
            return None
        part = self.folder / f"{file.key}.part"
        for attempt in tries(self._server.patience, stopping=stopping):
            with attempt:
                while True:
                    with suppress(_Headway):
                        gone = self._pull(file, part, requires_token, stopping)
                        break
                if gone is None:
                    self._settle(part, self.path(file))
                return gone
        raise AssertionError  # the last attempt returns or raises

    def _pull(self, file: ExportFile, part: Path, requires_token: bool, stopping: Callable[[], bool]) -> str | None:
        """One request for what is missing; as `fetch`, and _Headway where it broke after so much that it counts."""
        known = _beginning(part)
        had = part.stat().st_size if known.validator and part.exists() else 0
        if known.total is not None and had > known.total:
            had, known = _anew(part), _Beginning()
        try:
            with self._opened(file.url, had, known, requires_token) as response:
                status = response.status_code
                if status == 416 and had == known.total:
                    return None
                if status == 416:
                    _anew(part)
                    raise SourceUnavailable(f"a file of {self.source.public} changed while it was fetched")
                if status in GONE:
                    return f"gone (HTTP {status})"
                self._check(response)
                if "html" in response.headers.get("Content-Type", ""):
                    return "a web page"
                self._write(response, part, had, known, stopping)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if part.exists() and part.stat().st_size - had >= HEADWAY and _beginning(part).validator:
                raise _Headway from None
            scheme, host, port = origin(file.url)
            raise http.unanswered(error, HttpServer.model_construct(url=f"{scheme}://{host}:{port}")) from None
        return None

    def _write(
        self, response: httpx.Response, part: Path, had: int, known: _Beginning, stopping: Callable[[], bool]
    ) -> None:
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity", "gzip"):
            raise ConfigurationError(f"{self.source.public} compresses files in a way that was not asked for")
        if response.status_code == 206:
            if not _continues(response, had, known, encoding):
                _anew(part)
                raise SourceUnavailable(f"{self.source.public} did not give the rest of a file that was asked for")
        else:
            had = _anew(part)
            known = _Beginning(validator=_validator(response), encoding=encoding, total=_length(response))
            with _disk(self.folder):
                _sidecar(part).write_text(json.dumps(asdict(known)))
        size = had
        with _disk(self.folder), part.open("ab") as out:
            for block in response.iter_raw():
                out.write(block)
                out.flush()  # what came outlives us
                size += len(block)
                if size > self._max_bytes:
                    raise ConfigurationError(
                        f"a file of the export of {self.source.public} is larger than MEDFLOW_MAX_INPUT_BYTES: allow "
                        "larger ones"
                    )
                if size != known.total and (stopping() or time.monotonic() > self._until):
                    raise SourceUnavailable(
                        f"the files of the export of {self.source.public} did not come in the time there is "
                        "(export_hours): what came is kept, and the next run goes on"
                    )
        if known.total is not None and size != known.total:
            if size > known.total:
                _anew(part)
            raise SourceUnavailable(f"{self.source.public} broke off in the middle of a file")

    def _settle(self, part: Path, whole: Path) -> None:
        with _disk(self.folder):
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, whole)
        _sidecar(part).unlink(missing_ok=True)

    # --- requests --------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, url: str, had: int, known: _Beginning, requires_token: bool) -> Iterator[httpx.Response]:
        """The answer of whoever has the file, redirects followed, each with what its host may know."""
        headers = {"Accept": NDJSON, "Accept-Encoding": "gzip"}
        if had and known.validator:
            headers |= {"Range": f"bytes={had}-", "If-Range": known.validator}
        for _ in range(HOPS):
            with self._request(url, headers, requires_token) as response:
                location = response.headers.get("Location")
                if not (response.is_redirect and location):
                    yield response
                    return
            url = address(url, location, self.source.public)
        raise SourceUnavailable(f"a file of {self.source.public} is redirected without end")

    @contextmanager
    def _request(self, url: str, headers: dict[str, str], requires_token: bool) -> Iterator[httpx.Response]:
        ours = origin(url) == origin(self.source.url)
        trusted = ours or self._is_trusted(url)
        auth = self.source.auth
        # basic credentials open a server as a whole; a token must not be sent where none is required
        if trusted and auth is not None and (requires_token or (ours and auth.type == "basic")):
            with self._server.http.stream("GET", url, headers=headers) as response:
                if response.status_code == 401 and ours:
                    http.check_status(response, self.source)
                yield response
            return
        client = self._server.http if trusted else self._server.stranger()
        with client.stream("GET", url, headers=headers, auth=None) as response:
            if requires_token and not trusted and response.status_code in (401, 403):
                _, host, port = origin(url)
                raise ConfigurationError(
                    f"{self.source.public} keeps files of its export at {host}:{port}, which wants our access token: "
                    "if that host may have it, name it in file_hosts of this source"
                )
            yield response

    def _is_trusted(self, url: str) -> bool:
        scheme, host, port = origin(url)
        if scheme != origin(self.source.url)[0]:
            return False
        return bool({host, f"{host}:{port}"} & {item.lower() for item in self.source.file_hosts})

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in http.OVERLOADED or status >= 500:
            wait = retry_after_s(response.headers.get("Retry-After"))
            raise SourceUnavailable(
                f"a file of the export of {self.source.public} cannot be had now (HTTP {status})", retry_after_s=wait
            )
        if status not in (200, 206):
            raise SourceUnavailable(f"{self.source.public} does not give a file of its export (HTTP {status})")


# --- what lies here in part --------------------------------------------------------------------------------------


def _sidecar(part: Path) -> Path:
    return part.with_suffix(".json")


def _beginning(part: Path) -> _Beginning:
    try:
        return _Beginning(**json.loads(_sidecar(part).read_text()))
    except (OSError, ValueError, TypeError):
        return _Beginning()


def _anew(part: Path) -> int:
    _sidecar(part).unlink(missing_ok=True)  # first: what is left of a file is no beginning of another
    part.unlink(missing_ok=True)
    return 0


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"the folder {folder} cannot be written ({error.strerror}): free space or mend its permissions, then run "
            "the same command again; it goes on where it was"
        ) from None


# --- headers -----------------------------------------------------------------------------------------------------


def _validator(response: httpx.Response) -> str | None:
    """What If-Range may hold: a strong ETag, or else a date; None where ranges are not served."""
    if response.headers.get("Accept-Ranges", "").strip().lower() == "none":
        return None
    tag = response.headers.get("ETag", "").strip()
    if tag:
        return tag if tag.startswith('"') else None
    return response.headers.get("Last-Modified")


def _length(response: httpx.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _continues(response: httpx.Response, had: int, known: _Beginning, encoding: str) -> bool:
    """Whether a 206 is the rest of what lies here."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != had or encoding != known.encoding:
        return False
    return found[2] == "*" or known.total is None or int(found[2]) == known.total
