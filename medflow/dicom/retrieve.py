"""C-GET and C-MOVE: objects of one study out of an archive (PS3.4 C.4.2, C.4.3, Study Root), their bytes as they came.

For C-GET the archive sends over the association that asks. Each storage class is proposed once for every transfer
syntax, so that the archive can send each object as it keeps it: with all syntaxes in one context it would have to
choose one for the whole class, and transcode or fail at the rest. Some archives take one of those contexts for the
whole class even so, and cannot send what they keep in another syntax: that is asked for again, syntax by syntax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import ALL_TRANSFER_SYNTAXES, StoragePresentationContexts, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelGet,  # type: ignore[attr-defined]  # made from a table
    StudyRootQueryRetrieveInformationModelMove,  # type: ignore[attr-defined]  # made from a table
)

from medflow.connections.endpoints import DicomNode
from medflow.dicom.association import lost, opened, undisturbed
from medflow.dicom.lane import file_meta
from medflow.dicom.query import PENDING, UNCOMPRESSED, failure, identifier
from medflow.errors import ConfigurationError

GET, MOVE = StudyRootQueryRetrieveInformationModelGet, StudyRootQueryRetrieveInformationModelMove
SUCCESS, SOME_FAILED, NONE_SENT, NO_DESTINATION = 0x0000, 0xB000, 0xA702, 0xA801
OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0xA700, 0xC000
CONTEXTS = 128  # in one association (PS3.8 9.3.2.2)
USUAL = (  # those that archives keep most objects in come first: where there are many classes, not all fit
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, first-order prediction
    "1.2.840.10008.1.2.4.90",  # JPEG 2000, lossless only
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "1.2.840.10008.1.2.4.57",  # JPEG Lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-Lossless
    "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
    "1.2.840.10008.1.2.1.99",  # Deflated
)
SYNTAXES = (*USUAL, *(str(uid) for uid in ALL_TRANSFER_SYNTAXES if uid not in USUAL))
PLAIN = tuple(uid for uid in USUAL if not UID(uid).is_encapsulated)
LOSSLESS = (
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.57",
)
APART = (PLAIN, *((uid,) for uid in LOSSLESS))  # nothing that an archive might compress with loss for us

Keep = Callable[[Sequence[bytes | memoryview]], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What an archive says of one retrieval, in sub-operations; None for what it does not say."""

    status: int
    completed: int | None
    failed: int | None
    warning: int | None

    @property
    def claimed(self) -> int | None:
        """How many objects it says that it has sent."""
        return None if self.completed is None else self.completed + (self.warning or 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What is retrieved at once: a series, or ``instances`` of it."""

    study_uid: str
    series_uid: str
    instances: tuple[str, ...] = ()

    @property
    def level(self) -> str:
        """The level of the retrieval."""
        return "IMAGE" if self.instances else "SERIES"

    @property
    def identifier(self) -> Dataset:
        """The unique keys."""
        keys = {"StudyInstanceUID": self.study_uid, "SeriesInstanceUID": self.series_uid}
        return identifier(self.level, keys | ({"SOPInstanceUID": "\\".join(self.instances)} if self.instances else {}))


class Getting:
    """Retrieval by C-GET; every object goes to ``keep``, as the parts of a whole file, before the archive is answered.

    What ``keep`` raises ends the retrieval and is raised by it.
    """

    def __init__(
        self,
        node: DicomNode,
        calling_aet: str,
        classes: Iterable[str],
        keep: Keep,
        *,
        max_bytes: int,
        syntaxes: Sequence[str] = SYNTAXES,
    ) -> None:
        self._node, self._keep, self._max_bytes = node, keep, max_bytes
        self._error: Exception | None = None
        storage = storage_contexts(classes, syntaxes)
        self._association: Association = opened(
            node,
            calling_aet,
            [build_context(GET, list(UNCOMPRESSED)), *storage],
            negotiation=[build_role(uid, scp_role=True) for uid in dict.fromkeys(_class_of(one) for one in storage)],
            handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_PDU_RECV, self._bounded)],
        )

    @property
    def association(self) -> Association:
        """The association, to be closed by whoever made this."""
        return self._association

    @property
    def declined(self) -> set[str]:
        """The transfer syntaxes that were proposed by themselves, and in which the archive never sends."""
        accepted = {str(context.transfer_syntax[0]) for context in self._storage(self._association.accepted_contexts)}
        asked = self._storage(self._association.requestor.requested_contexts)
        return {str(one.transfer_syntax[0]) for one in asked if len(one.transfer_syntax) == 1} - accepted

    def _storage(self, contexts: Iterable[PresentationContext]) -> list[PresentationContext]:
        return [context for context in contexts if context.abstract_syntax != GET]

    def retrieve(self, part: Part) -> Sent:
        """Have a part sent.

        Raises
        ------
        ServerUnavailable, ConfigurationError
            The archive is away, or does not allow C-GET.
        InputRejected
            NOT_RETRIEVED: it failed at this part.
        """
        undisturbed(self._association)
        sent = _ended(self._association.send_c_get(part.identifier, GET), self._node, "C-GET")
        if self._error is not None:
            raise self._error
        return sent

    def _store(self, event: Event) -> int:
        if self._error is not None:
            return OUT_OF_RESOURCES
        request: Any = event.request
        with request.DataSet.getbuffer() as data:
            if data.nbytes < 8:  # not even one element
                return CANNOT_UNDERSTAND
            if data.nbytes > self._max_bytes:
                return OUT_OF_RESOURCES
            syntax = event.context.transfer_syntax
            try:
                self._keep([file_meta(request.AffectedSOPClassUID, request.AffectedSOPInstanceUID, syntax), data])
            except Exception as error:  # raised where the retrieval was asked for
                self._error = error
                return OUT_OF_RESOURCES
        return SUCCESS

    def _bounded(self, event: Event) -> None:
        """Let no object fill the memory: one past the limit ends the association."""
        association: Any = event.assoc
        message = association.dimse.message
        if message is not None and message.data_set.tell() > self._max_bytes:
            association.dul.socket.close()


class Moving:
    """Retrieval by C-MOVE to an application of ours that takes what the archive sends."""

    def __init__(self, node: DicomNode, calling_aet: str, move_to: str) -> None:
        self._node, self._move_to = node, move_to
        self._association: Association = opened(node, calling_aet, [build_context(MOVE, list(UNCOMPRESSED))])

    @property
    def association(self) -> Association:
        """The association, to be closed by whoever made this."""
        return self._association

    def retrieve(self, part: Part) -> Sent:
        """Have a part sent; errors as for `Getting`."""
        undisturbed(self._association)
        answers = self._association.send_c_move(part.identifier, self._move_to, MOVE)
        return _ended(answers, self._node, "C-MOVE", self._move_to)


def storage_contexts(classes: Iterable[str], syntaxes: Sequence[str] = SYNTAXES) -> list[PresentationContext]:
    """What to propose for these SOP classes beside one context to ask with.

    Where no class is known it is all usual ones, each with a choice of what needs no compression.
    """
    wanted = sorted(set(classes))[: CONTEXTS - 1]
    if not wanted:
        wanted = [_class_of(context) for context in StoragePresentationContexts][: CONTEXTS - 1]
        return [build_context(uid, list(PLAIN if len(syntaxes) > 1 else syntaxes)) for uid in wanted]
    each = (CONTEXTS - 1) // len(wanted)
    if each == 1:
        return [build_context(uid, list(syntaxes)) for uid in wanted]
    return [build_context(uid, syntax) for uid in wanted for syntax in syntaxes[:each]]


def _class_of(context: PresentationContext) -> str:
    return str(context.abstract_syntax)


def _ended(answers: Iterator[tuple[Dataset, Dataset | None]], node: DicomNode, service: str, move_to: str = "") -> Sent:
    """The last answer, once it is there."""
    for status, _ in answers:
        code = status.get("Status")
        if code is None:
            raise lost(node)
        if code in PENDING:
            continue
        if code == NO_DESTINATION:
            raise ConfigurationError(
                f"{node.public} knows no {move_to} to move objects to: have this AE title registered in the archive, "
                "with the address of this host and the port that medflow receives at (move_port)"
            )
        if code in (SUCCESS, SOME_FAILED, NONE_SENT):
            return Sent(
                status=code,
                completed=status.get("NumberOfCompletedSuboperations"),
                failed=status.get("NumberOfFailedSuboperations"),
                warning=status.get("NumberOfWarningSuboperations"),
            )
        raise failure(code, node, service, "SERIES")
    raise lost(node)
