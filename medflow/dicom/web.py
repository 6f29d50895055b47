"""DICOMweb (PS3.18): searching (QIDO-RS), retrieving (WADO-RS) and storing (STOW-RS), one request at a time.

dicomweb-client makes the queries. It decodes what it retrieves and encodes what it stores, an instance in memory each
time, and raises where a store succeeded in part; so files go and come here, as bytes in a stream. Nothing is repeated
here. A query may name a patient: no URL is logged or told.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import requests
from dicomweb_client.web import DICOMwebClient

from medflow.connections.endpoints import HttpServer
from medflow.connections.http import check_status, session
from medflow.dicom.multipart import Body, Broken, Part, PartFile, boundary_of, media_type_of, parts
from medflow.errors import ConfigurationError, InputRejected, RejectCode, ServerUnavailable

UID = re.compile(
    r"[0-9.]{1,64}"
)  # a leading zero is wrong (PS3.5 9.1), and yet may be what an archive knows a study by
PAGE = 500  # results asked for at once
BLOCK = 1 << 20
DICOM = "application/dicom"
UNCHANGED = f'multipart/related; type="{DICOM}"; transfer-syntax=*'  # as it is stored there (PS3.18 8.7.3.5.2)
JSON = "application/dicom+json, application/json"

Result = Mapping[str, Mapping[str, Any]]  # one data set in DICOM JSON (PS3.18 Annex F)


def values_of(result: Result, tag: str) -> list[Any]:
    """The values of an element, by its tag in hexadecimal; none where it is not there."""
    element = result.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    return list(values) if isinstance(values, list) else []


def text_of(result: Result, tag: str) -> str:
    """An element's first value as text; "" where there is none."""
    return next((str(value) for value in values_of(result, tag)), "")


class DicomWeb:
    """One server's services.

    Parameters
    ----------
    server
        Where it is, and who we are there.
    timeout_s
        How long it may be silent.
    qido_prefix, wado_prefix, stow_prefix
        Further paths of services that are not at the base URL.

    Raises
    ------
    ConfigurationError
        A TLS file or a secret cannot be read.
    """

    def __init__(
        self,
        server: HttpServer,
        *,
        timeout_s: float,
        qido_prefix: str | None = None,
        wado_prefix: str | None = None,
        stow_prefix: str | None = None,
    ) -> None:
        logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)  # it logs URLs with their queries
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        logging.getLogger("retrying").setLevel(logging.CRITICAL)  # what dicomweb-client asks with: it logs stacks
        self.server = server
        self._session = session(server, timeout_s=timeout_s)
        self._queries = DICOMwebClient(
            server.url,
            session=self._session,
            qido_url_prefix=qido_prefix or None,
            permissive_uid=True,
            timeout=timeout_s,
        )
        self._queries.set_http_retry_params(retry=False)
        self._queries.host = urlsplit(server.url).netloc  # the port belongs into the Host header too
        self._wado = "/".join(filter(None, [server.url, (wado_prefix or "").strip("/")]))
        self._stow = "/".join(filter(None, [server.url, (stow_prefix or "").strip("/")]))

    def close(self) -> None:
        """Close connections."""
        self._session.close()

    # --- QIDO-RS (PS3.18 10.6) ---

    def check(self, *, searching: bool = True) -> None:
        """See that the server is there, and with ``searching`` that it can be searched.

        Raises
        ------
        ServerUnavailable
            It does not answer.
        ConfigurationError
            It wants other credentials, or is no such server.
        """
        try:
            self._page("studies", {}, limit=1, offset=0)
        except _Refused as error:
            if searching or error.status == 403:
                raise ConfigurationError(
                    f"{self.server.public} cannot be searched as a DICOMweb server (HTTP {error.status}): check its "
                    "address, its prefixes and what we may do there"
                ) from None

    def studies(self, filters: Mapping[str, str]) -> Iterator[Result]:
        """Studies that match, by keywords and values; errors as for `check`."""
        try:
            yield from self._search("studies", {"search_filters": dict(filters)})
        except _Refused as error:
            raise ConfigurationError(
                f"{self.server.public} does not answer a search for studies (HTTP {error.status}): check its address, "
                "its prefixes and what we may do there"
            ) from None

    def series(self, study_uid: str) -> list[Result]:
        """The series of a study; none where there is no such study.

        Raises
        ------
        InputRejected
            NOT_RETRIEVED: the server does not list them.
        ServerUnavailable, ConfigurationError
            As for `check`.
        """
        return self._listed("series", study_instance_uid=checked_uid(study_uid))

    def instances(self, study_uid: str, series_uid: str | None = None) -> list[Result]:
        """The instances of a study, or of one series of it; errors as for `series`."""
        of = {"study_instance_uid": checked_uid(study_uid)}
        if series_uid is not None:
            of["series_instance_uid"] = checked_uid(series_uid)
        return self._listed("instances", **of)

    def _listed(self, level: str, **of: str) -> list[Result]:
        try:
            return list(self._search(level, of))
        except _Refused as error:
            if error.status in (404, 410):
                return []
            raise _not_retrieved(f"its {level} cannot be listed (HTTP {error.status})") from None

    def _search(self, level: str, asked: Mapping[str, Any]) -> Iterator[Result]:
        """All pages: servers give fewer than they are asked for, and not all say so (PS3.18 8.3.4.4)."""
        offset, last, most, idle = 0, PAGE, 0, 0
        seen, before = set[str](), set[str]()
        identity = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}[level]
        while True:
            try:
                page = self._page(level, asked, limit=PAGE, offset=offset)
            except _Refused as error:
                short = last < (most if offset > last else PAGE)  # shorter than the others: nothing is beyond it
                if short or (offset and error.status in (404, 410)):
                    return
                raise
            uids = {text_of(item, identity) for item in page}
            new = [item for item in page if (uid := text_of(item, identity)) not in seen and not seen.add(uid)]
            yield from new
            idle = 0 if new else idle + 1  # what comes in meanwhile may push a page on by one
            if not page or uids == before or idle == 2:  # the end, or a server that knows no offset and has said all
                return
            before = uids
            offset, last, most = offset + len(page), len(page), max(most, len(page))

    def _page(self, level: str, asked: Mapping[str, Any], *, limit: int, offset: int) -> list[Result]:
        with self._explained():
            found = getattr(self._queries, f"search_for_{level}")(**asked, limit=limit, offset=offset)
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self._unreadable()
        return found

    # --- WADO-RS (PS3.18 10.4) ---

    @contextmanager
    def retrieving(self, study_uid: str, series_uid: str, instance_uid: str | None = None) -> Iterator[Iterator[Part]]:
        """The files of a series, or one of them, as the server has them: parts to be read within the block.

        Raises
        ------
        InputRejected
            NOT_RETRIEVED: the server does not give them.
        ServerUnavailable
            It does not answer, or broke off.
        ConfigurationError
            It wants other credentials.
        """
        url = f"{self._wado}/studies/{checked_uid(study_uid)}/series/{checked_uid(series_uid)}"
        if instance_uid is not None:
            url += f"/instances/{checked_uid(instance_uid)}"
        with self._explained(), self._session.get(url, headers={"Accept": UNCHANGED}, stream=True) as response:
            self._checked(response)
            if response.status_code not in (200, 206):
                raise _not_retrieved(f"it is not given (HTTP {response.status_code})")
            yield self._parts(response)

    def _parts(self, response: requests.Response) -> Iterator[Part]:
        content_type = response.headers.get("Content-Type", "")
        blocks = response.iter_content(BLOCK)
        if media_type_of(content_type) == DICOM:  # a single file without any envelope: not by the book, but known
            yield Part(content_type=DICOM, blocks=blocks)
        elif media_type_of(content_type) == "multipart/related":
            yield from parts(blocks, boundary_of(content_type))
        else:
            raise _not_retrieved("what is given for it is no DICOM file")

    # --- STOW-RS (PS3.18 10.5) ---

    def store(self, files: Sequence[PartFile]) -> requests.Response:
        """Send files; the answer, whose body is read, whatever was taken of them.

        Raises
        ------
        ServerUnavailable
            It does not answer, or has too much to do.
        ConfigurationError
            It wants other credentials.
        """
        boundary = uuid.uuid4().hex
        headers = {
            "Accept": JSON,
            "Content-Type": f'multipart/related; type="{DICOM}"; boundary={boundary}',
        }
        body = Body(files, content_type=DICOM, boundary=boundary)
        try:
            with self._explained():
                response = self._session.post(f"{self._stow}/studies", data=body, headers=headers)  # type: ignore[arg-type]  # has a length, and can be read
                self._checked(response)
                return response
        finally:
            body.close()

    # --- what goes wrong ---

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """No exception of requests gets out: their texts quote URLs."""
        try:
            yield
        except requests.HTTPError as error:  # raised by dicomweb-client
            response = error.response
            if response is None:
                raise self._unreadable() from None
            self._checked(response)
            raise _Refused(response.status_code) from None
        except requests.Timeout:
            raise ServerUnavailable(f"{self.server.public} did not answer in time (MEDFLOW_HTTP_TIMEOUT_S)") from None
        except requests.exceptions.JSONDecodeError:
            raise self._unreadable() from None
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError, Broken):
            raise ServerUnavailable(f"the answer of {self.server.public} broke off") from None
        except requests.RequestException as error:
            raise ServerUnavailable(
                f"{self.server.public} cannot be reached ({type(error).__name__}): check that the server runs and that "
                "the address is right, then run the same command again"
            ) from None

    def _checked(self, response: requests.Response) -> None:
        """Raise for what concerns the server as a whole."""
        if response.status_code == 501:  # this service is none that it has; others it may have
            return
        headers = {"Retry-After": response.headers["Retry-After"]} if "Retry-After" in response.headers else {}
        check_status(httpx.Response(response.status_code, headers=headers), self.server)

    def _unreadable(self) -> ServerUnavailable:
        return ServerUnavailable(f"the answer of {self.server.public} cannot be read")


class _Refused(Exception):
    """The server understood, and does not do it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def checked_uid(uid: str) -> str:
    """A UID that may stand in a URL; raises InputRejected (NOT_RETRIEVED)."""
    if not UID.fullmatch(uid):
        raise _not_retrieved("what it is called by is no UID")
    return uid


def _not_retrieved(reason: str) -> InputRejected:
    return InputRejected(RejectCode.NOT_RETRIEVED, reason)
