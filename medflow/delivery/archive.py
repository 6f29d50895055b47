"""An archive as a target: DICOM objects out of the object store, a few at a time, every one's answer looked at.

How they go is the sender's: STOW-RS or C-STORE. What a status means, what is sent again and when an archive is given
up is the same for both. An archive that has an object already and is sent it again keeps one of it: the SOP Instance
UID and the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from medflow.connections.patience import Patience, tries
from medflow.delivery.target import UNANSWERED, Refusal, Sent
from medflow.dicom.elements import quiet
from medflow.errors import DeliveryRefused, ObjectDamaged, ServerUnavailable, TargetUnavailable
from medflow.store.objects import ObjectStore
from medflow.store.outbox import DICOM, PendingResource

TOGETHER = 8  # objects in one request, and told of at once
TOGETHER_BYTES = 64 << 20
MISSING_WAIT_S = 60.0
REFUSED_WAIT_S = 60.0  # before what was refused is sent again; four times as long each time
GIVE_UP_AFTER = 3  # objects in a row that an archive, which answers otherwise, does not answer to
PATIENCE = Patience(longest_retry_after_s=60.0)
AT_START = Patience(attempts=3)

SUCCESS = 0x0000
REASONS = {  # PS3.4 Table B.2-1, PS3.7 Annex C, PS3.18 Table I.2-2; of ranges the first
    0x0110: "processing-failure",
    0x0117: "invalid-uid",
    0x0122: "class-not-supported",
    0x0124: "not-authorized",
    0x0211: "not-recognized",
    0xA700: "out-of-resources",
    0xA900: "class-mismatch",
    0xC000: "cannot-understand",
    0xC122: "transfer-syntax-not-supported",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultFile:
    """A whole DICOM file (PS3.10) that is to be sent. ``open`` gives it from its start; close it."""

    resource: PendingResource
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    size: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """An archive's answer about one object. ``status`` is a DIMSE status or a STOW-RS failure reason.

    ``reason`` stands for it where it says no number; ``detail`` is the archive's own text, for SQL only.
    """

    file: ResultFile
    status: int = SUCCESS
    reason: str = ""
    detail: str = ""

    @property
    def taken(self) -> bool:
        """Whether the archive has it: success, a warning (Bxxx: coerced elements), or a duplicate SOP instance."""
        return not self.reason and (
            self.status in (SUCCESS, 0x0001, 0x0107, 0x0111, 0x0116) or self.status >> 12 == 0xB
        )

    @property
    def busy(self) -> bool:
        """Whether it has too much to do for this object now (A7xx)."""
        return not self.reason and self.status >> 8 == 0xA7

    @property
    def said(self) -> str:
        """The reason in words and hexadecimal."""
        if self.reason:
            return self.reason
        ranges = (self.status, self.status & 0xFF00, self.status & 0xF000)
        known = next((REASONS[code] for code in ranges if code in REASONS), "refused")
        return f"{known} (0x{self.status:04X})"


class Sender(Protocol):
    """How objects go to an archive."""

    @property
    def public(self) -> str:
        """The archive's address, as it may be shown."""
        ...

    def check(self) -> None:
        """See that the archive is there.

        Raises
        ------
        ServerUnavailable
            It does not answer.
        ConfigurationError
            It does not know us.
        """
        ...

    def send(self, files: Sequence[ResultFile]) -> Iterable[Outcome]:
        """Send some objects once; an outcome for each, in any order, as they are known. Nothing is repeated here.

        Raises
        ------
        ServerUnavailable
            There is no answer: whether they are there is not known.
        ConfigurationError
            It wants other credentials.
        DeliveryRefused
            It refuses the request as a whole; ``reason`` and ``detail`` are among its fields.
        """
        ...

    def close(self) -> None:
        """Give connections back."""
        ...


class Archive:
    """A target that takes DICOM objects and nothing else."""

    def __init__(self, objects: ObjectStore, sender: Sender) -> None:
        self._objects, self._sender = objects, sender
        self._unanswered = 0  # objects in a row

    def open(self, committed: Mapping[str, int]) -> None:
        """See that the archive is there."""
        try:
            for attempt in tries(AT_START):
                with attempt:
                    self._sender.check()
        except ServerUnavailable as error:
            raise _away(error) from None

    def close(self) -> None:
        """Give connections back."""
        self._sender.close()

    def send(self, envelopes: Sequence[Sequence[PendingResource]]) -> Iterator[Sent]:
        """Send the objects, told of every few."""
        items = [item for envelope in envelopes for item in envelope if item.type == DICOM]
        self._objects.fetch(item.body.decode() for item in items[:TOGETHER])
        together: list[ResultFile] = []
        for item in items:
            read = self._read(item)
            if isinstance(read, Refusal):
                yield Sent(refused=[read])
                continue
            if together and (len(together) == TOGETHER or sum(f.size for f in together) + read.size > TOGETHER_BYTES):
                yield from self._sent(together)
                together = []
            together.append(read)
        if together:
            yield from self._sent(together)

    def _read(self, item: PendingResource) -> ResultFile | Refusal:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError

        quiet()
        digest = item.body.decode()
        try:
            with self._objects.open(digest) as file:
                wanted = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"]
                header = dcmread(file, stop_before_pixels=True, specific_tags=wanted)  # type: ignore[arg-type]  # keywords
                size = file.seek(0, 2)
            return ResultFile(
                resource=item,
                sop_instance_uid=str(header.SOPInstanceUID),
                sop_class_uid=str(header.SOPClassUID),
                transfer_syntax_uid=str(header.file_meta.TransferSyntaxUID),
                study_instance_uid=str(header.StudyInstanceUID),
                size=size,
                open=lambda: self._objects.open(digest),
            )
        except KeyError:
            return Refusal(resource=item, reason="object-missing", wait_s=MISSING_WAIT_S)
        except (ObjectDamaged, InvalidDicomError, AttributeError):
            return Refusal(resource=item, reason="object-damaged", wait_s=MISSING_WAIT_S)

    def _sent(self, files: Sequence[ResultFile]) -> Iterator[Sent]:
        """What became of a few objects; where the archive does not answer to all together, one by one."""
        outcomes: dict[str, Outcome] = {}
        try:
            self._try(files, outcomes)
        except DeliveryRefused as error:
            self._unanswered = 0
            yield from self._apart(files, outcomes, error)
            return
        except ServerUnavailable as error:
            try:
                self._sender.check()
            except ServerUnavailable:
                yield _told(files, outcomes)
                raise _away(error) from None
            yield from self._apart(files, outcomes, error)
            return
        self._unanswered = 0
        yield _told(files, outcomes)

    def _apart(
        self, files: Sequence[ResultFile], outcomes: dict[str, Outcome], error: DeliveryRefused | ServerUnavailable
    ) -> Iterator[Sent]:
        left = [file for file in files if file.sop_instance_uid not in outcomes]
        if len(files) > 1:
            yield _told(files, outcomes)
            for file in left:
                yield from self._sent([file])
            return
        fields = error.fields
        if isinstance(error, DeliveryRefused):
            outcome = Outcome(file=files[0], reason=fields.get("reason", "refused"), detail=fields.get("detail", ""))
        else:
            self._unanswered += 1
            outcome = Outcome(file=files[0], reason=UNANSWERED, detail=error.message)
        yield _told(files, {files[0].sop_instance_uid: outcome})
        if self._unanswered >= GIVE_UP_AFTER and isinstance(error, ServerUnavailable):
            raise _away(error)

    def _try(self, files: Sequence[ResultFile], outcomes: dict[str, Outcome]) -> None:
        """Send until each has an answer that is final; ``outcomes`` has those there are, whatever is raised."""
        left = list(files)
        busy: dict[str, Outcome] = {}
        try:
            for attempt in tries(PATIENCE):
                with attempt:
                    for outcome in self._sender.send(left):
                        known = busy if outcome.busy else outcomes
                        known[outcome.file.sop_instance_uid] = outcome
                    left = [file for file in left if file.sop_instance_uid not in outcomes]
                    if left:
                        raise TargetUnavailable("the archive is too busy for some objects", answered=True)
        except ServerUnavailable as error:
            if not error.fields.get("answered"):
                raise
            for file in left:
                uid = file.sop_instance_uid
                outcomes[uid] = busy.get(uid) or Outcome(file=file, reason="not-told")


def _told(files: Sequence[ResultFile], outcomes: Mapping[str, Outcome]) -> Sent:
    found = [outcomes[file.sop_instance_uid] for file in files if file.sop_instance_uid in outcomes]
    return Sent(
        delivered=[outcome.file.resource for outcome in found if outcome.taken],
        refused=[_refusal(outcome) for outcome in found if not outcome.taken],
    )


def _refusal(outcome: Outcome) -> Refusal:
    resource = outcome.file.resource
    wait_s = 0.0 if outcome.busy or outcome.reason == UNANSWERED else REFUSED_WAIT_S * 4**resource.attempts
    return Refusal(resource=resource, reason=outcome.said, detail=outcome.detail, wait_s=wait_s)


def _away(error: ServerUnavailable) -> TargetUnavailable:
    return TargetUnavailable(error.message, retry_after_s=error.retry_after_s)
