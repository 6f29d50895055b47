"""Result objects to an archive by STOW-RS (PS3.18 10.5): several in a request, each with an answer of its own.

202 and 409 say that some or all were not stored; which, and why, is in the answer's FailedSOPSequence. Some servers
say 400 instead, with the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import requests

from medflow.config import Settings
from medflow.connections.endpoints import DicomWebTarget
from medflow.delivery.archive import Outcome, ResultFile
from medflow.dicom.multipart import PartFile
from medflow.dicom.web import DicomWeb, Result, text_of, values_of
from medflow.errors import DeliveryRefused

ANSWERED = (200, 202, 409)  # with a Store Instances Response (PS3.18 Annex I)
FAILED, REFERENCED, OTHERS = "00081198", "00081199", "0008119A"
UNTAKEN = (FAILED.encode(), OTHERS.encode(), b"FailedSOPSequence")
INSTANCE_UID, FAILURE_REASON, WARNING_REASON = "00081155", "00081197", "00081196"
PROCESSING_FAILURE, DUPLICATE = 0x0110, 0x0111
DETAIL = 2000  # characters of an answer that are kept, in SQL


class Stow:
    """A DICOMweb server that takes objects; see `medflow.delivery.archive.Sender`."""

    def __init__(self, settings: Settings, target: DicomWebTarget) -> None:
        self._web = DicomWeb(target, timeout_s=settings.http_timeout_s, stow_prefix=target.stow_prefix)
        self.public = target.public

    def check(self) -> None:
        """See that it answers; whether it can be searched does not matter."""
        self._web.check(searching=False)

    def send(self, files: Sequence[ResultFile]) -> Sequence[Outcome]:
        """One request."""
        response = self._web.store([PartFile(open=file.open, size=file.size) for file in files])
        answer, text = answer_of(response), response.text[:DETAIL]
        if answer is None:  # such as a sign-in page with status 200: it confirms nothing
            reason = f"HTTP {response.status_code}, and no answer that can be read"
            raise DeliveryRefused(f"{self.public} refuses the request ({reason})", reason=reason, detail=text)
        if response.status_code not in ANSWERED and not answer.keys() & {FAILED, REFERENCED}:
            reason = f"HTTP {response.status_code}"
            raise DeliveryRefused(f"{self.public} refuses the request ({reason})", reason=reason, detail=text)
        return outcomes_of(files, response.status_code, answer, text)

    def close(self) -> None:
        """Close connections."""
        self._web.close()


def outcomes_of(files: Sequence[ResultFile], status: int, answer: Result, text: str = "") -> list[Outcome]:
    """What a Store Instances Response says of each file; ``text`` is kept with what was not taken.

    Where it names no object at all, 200 says that all were stored; else only what it names so was.
    """
    failed = {text_of(item, INSTANCE_UID): _number(item, FAILURE_REASON) for item in _items(answer, FAILED)}
    stored = {text_of(item, INSTANCE_UID): _number(item, WARNING_REASON) for item in _items(answer, REFERENCED)}
    found: list[Outcome] = []
    for file in files:
        uid = file.sop_instance_uid
        if uid in failed:
            told = Outcome(file=file, status=failed[uid] or PROCESSING_FAILURE, detail=text)
            if told.taken and told.status != DUPLICATE:  # a warning's number among the failures
                told = replace(told, status=PROCESSING_FAILURE)
            found.append(told)
        elif uid in stored or (status == 200 and not failed and not stored and not _items(answer, OTHERS)):
            found.append(Outcome(file=file))
        else:
            found.append(Outcome(file=file, reason=f"HTTP {status}", detail=text))
    return found


def answer_of(response: requests.Response) -> Result | None:
    """The Store Instances Response of an answer; empty where it has none, None where it cannot be read.

    One in XML, which some servers give unasked, counts where it tells of no failure.
    """
    try:
        answer = response.json() if response.content else {}
    except ValueError:
        xml = b"NativeDicomModel" in response.content and not any(tag in response.content for tag in UNTAKEN)
        return {} if xml or response.status_code not in ANSWERED else None
    if isinstance(answer, list) and answer:
        answer = answer[0]
    return answer if isinstance(answer, dict) else {}


def _items(answer: Result, tag: str) -> list[Mapping[str, Any]]:
    return [item for item in values_of(answer, tag) if isinstance(item, Mapping)]


def _number(item: Mapping[str, Any], tag: str) -> int:
    said = text_of(item, tag)
    return int(said) if said.isdigit() else 0
