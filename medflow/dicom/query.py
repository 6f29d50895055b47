"""C-FIND: what an archive has, by study, series and instance (PS3.4 C, Study Root), over one association.

What is found is turned into small records as it comes, for an archive may find many. Nothing of it is text that was
written by people, so that no character set matters; what is asked for may be, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]  # from a table

from medflow.connections.endpoints import DicomNode
from medflow.dicom.association import closed, lost, opened, undisturbed
from medflow.dicom.elements import first_of, number_of, text_of
from medflow.errors import ConfigurationError, InputRejected, RejectCode, ServerUnavailable

FIND = StudyRootQueryRetrieveInformationModelFind
UNCOMPRESSED: tuple[str, ...] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
UID_FORM = re.compile(r"[0-9.]{1,64}")
PENDING = (0xFF00, 0xFF01)
OUT_OF_RESOURCES, NOT_SUPPORTED, REFUSED, DOES_NOT_FIT = 0xA700, 0x0122, 0x0124, 0xA900
TOGETHER = 100  # Study Instance UIDs in one question


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesFound:
    """A series; None for what the archive does not tell."""

    series_uid: str
    modality: str | None
    count: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceFound:
    """An instance; None for what the archive does not tell."""

    sop_instance_uid: str
    sop_class_uid: str | None


class Query:
    """Questions to one archive; what loses its association meanwhile gets another."""

    def __init__(self, node: DicomNode, calling_aet: str) -> None:
        self._node, self._calling_aet = node, calling_aet
        self._association: Association | None = None

    def studies(self, matching: Mapping[str, str]) -> tuple[list[str], int]:
        """Study Instance UIDs of what matches these keys, and how many answers name none.

        Raises
        ------
        ServerUnavailable, ConfigurationError
            The archive is away, or takes no such question.
        """
        asked = {"StudyInstanceUID": "", "ModalitiesInStudy": "", "StudyDate": "", **matching}
        wanted = matching.get("ModalitiesInStudy")
        found: dict[str, None] = {}
        unnamed = 0
        for answer in self._ask("STUDY", asked):
            uid = uid_of(answer, "StudyInstanceUID")
            if uid is None:
                unnamed += 1
            elif not wanted or wanted in (text_of(answer, "ModalitiesInStudy") or wanted).split("\\"):
                found[uid] = None  # some archives pass over this key: what they say is looked at
        return list(found), unnamed

    def series(self, study_uid: str) -> list[SeriesFound]:
        """The series of a study; errors as for `studies`, and InputRejected (NOT_RETRIEVED) for this study alone."""
        asked = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": "", "Modality": ""}
        answers = self._ask("SERIES", {**asked, "NumberOfSeriesRelatedInstances": ""})
        return [
            SeriesFound(
                series_uid=_named(answer, "SeriesInstanceUID"),
                modality=first_of(answer, "Modality"),
                count=number_of(answer, "NumberOfSeriesRelatedInstances"),
            )
            for answer in answers
        ]

    def instances(self, study_uid: str, series_uid: str) -> list[InstanceFound]:
        """The instances of a series; errors as for `series`."""
        asked = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid, "SOPInstanceUID": ""}
        try:
            return [_instance(answer) for answer in self._ask("IMAGE", {**asked, "SOPClassUID": ""})]
        except InputRejected:  # for this key some archives look into the files, of which they may have lost one
            found = [_instance(answer) for answer in self._ask("IMAGE", asked)]
        return [self._classified(one, asked) for one in found]

    def _classified(self, found: InstanceFound, asked: Mapping[str, str]) -> InstanceFound:
        keys = {**asked, "SOPInstanceUID": found.sop_instance_uid, "SOPClassUID": ""}
        try:
            return next((_instance(answer) for answer in self._ask("IMAGE", keys)), found)
        except InputRejected:
            return found

    def close(self) -> None:
        """End the association."""
        if self._association is not None:
            closed(self._association)
            self._association = None

    def _ask(self, level: str, keys: Mapping[str, str]) -> list[Dataset]:
        reused = self._association is not None and self._association.is_established
        try:
            return list(self._answers(level, keys))
        except ServerUnavailable:
            self.close()
            if not reused:
                raise
            return list(self._answers(level, keys))  # an archive may end what lay idle

    def _answers(self, level: str, keys: Mapping[str, str]) -> Iterator[Dataset]:
        if self._association is None or not self._association.is_established:
            self.close()
            context = build_context(FIND, list(UNCOMPRESSED))
            self._association = opened(self._node, self._calling_aet, [context])
        undisturbed(self._association)
        for status, answer in self._association.send_c_find(identifier(level, keys), FIND):
            code = status.get("Status")
            if code is None:
                raise lost(self._node)
            if code not in PENDING:
                if code != 0:
                    raise failure(code, self._node, "C-FIND", level)
                return
            yield answer if answer is not None else Dataset()
        raise lost(self._node)


def identifier(level: str, keys: Mapping[str, str]) -> Dataset:
    """The data set of a question or retrieval: keys by DICOM keyword, empty for what is to be told."""
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    if not all(value.isascii() for value in keys.values()):
        asked.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in keys.items():
        setattr(asked, keyword, value or None)
    return asked


def failure(code: int, node: DicomNode, service: str, level: str) -> Exception:
    """What a status that is neither success nor pending means (PS3.4 C.4; PS3.7 C)."""
    said = f"status 0x{code:04X}"
    if code >> 8 == OUT_OF_RESOURCES >> 8:
        return ServerUnavailable(f"{node.public} is out of resources for {service} ({said})")
    if code in (NOT_SUPPORTED, REFUSED):
        return ConfigurationError(f"{node.public} does not allow {service} ({said}): have it allowed in the archive")
    if level == "STUDY" and service == "C-FIND":
        if code == DOES_NOT_FIT:
            return ConfigurationError(f"{node.public} takes no question like this one ({said}): ask by other keys")
        return ServerUnavailable(f"{node.public} could not answer which studies it has ({said})")
    return InputRejected(RejectCode.NOT_RETRIEVED, f"the archive failed at {service} of this study ({said})")


def date_windows(since: date | None, until: date | None, today: date) -> list[str]:
    """Ranges of StudyDate (PS3.4 C.2.2.2.5), one after the other, each small enough to have few matches."""
    if since is None:
        return [f"-{until:%Y%m%d}"] if until is not None else [""]
    last = until if until is not None else max(today, since)
    days = (last - since).days + 1
    step = 1 if days <= 31 else 7 if days <= 366 else 31
    starts = [since + timedelta(days=offset) for offset in range(0, days, step)]
    windows = [f"{start:%Y%m%d}-{min(start + timedelta(days=step - 1), last):%Y%m%d}" for start in starts]
    if until is None and windows:
        windows[-1] = windows[-1][:9]  # whatever has a later date, too
    return windows


def batches(values: Sequence[str], size: int = TOGETHER) -> Iterator[Sequence[str]]:
    """Parts of a list of UIDs, each for one question."""
    return (values[start : start + size] for start in range(0, len(values), size))


def uid_of(answer: Dataset, keyword: str) -> str | None:
    """A UID as it is told; None where there is none that could be asked for."""
    value: Any = first_of(answer, keyword)
    return value if value is not None and UID_FORM.fullmatch(value) else None


def _instance(answer: Dataset) -> InstanceFound:
    uid = _named(answer, "SOPInstanceUID")
    return InstanceFound(sop_instance_uid=uid, sop_class_uid=uid_of(answer, "SOPClassUID"))


def _named(answer: Dataset, keyword: str) -> str:
    uid = uid_of(answer, keyword)
    if uid is None:
        raise InputRejected(RejectCode.NOT_RETRIEVED, f"the archive lists something of this study without {keyword}")
    return uid
