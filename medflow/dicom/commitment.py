"""Storage commitment, push model (PS3.4, Annex J): what a sender may forget, because it is safe here.

Committed is what lies in the spool, flushed, or in the store. The answer is a report of its own: to the address that is
configured for who asked, on an association of ours; without one, on the association it was asked over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, build_role
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,  # type: ignore[attr-defined]  # made from a table
    StorageCommitmentPushModelInstance,
)

from medflow.config import Settings
from medflow.connections.endpoints import DicomNode, PacsSource, PacsTarget
from medflow.dicom.association import associated
from medflow.dicom.lane import peer_of
from medflow.dicom.spool import Spool
from medflow.errors import MedflowError, place_of

log = logging.getLogger(__name__)

Held = Mapping[str, str]  # SOP Instance UID to SOP Class UID
SUCCESS, INVALID_ARGUMENT, NO_SUCH_INSTANCE, NO_SUCH_ACTION = 0x0000, 0x0115, 0x0112, 0x0123  # PS3.7, Annex C
RESOURCE_LIMITATION = 0x0213  # so is this
REPORTS = 64  # under way at once: a peer may ask without end
CLASS_CONFLICT = 0x0119  # a failure reason (PS3.3, C.14.1.1), as NO_SUCH_INSTANCE is
REQUEST, ALL_COMMITTED, SOME_NOT = 1, 1, 2  # action type, event types (PS3.4, J.3.2.1 and J.3.3.1)
HEAD_BYTES = 1024  # of a spooled file: its file meta is shorter
AGAIN_AFTER_S = (0.05, 2.0, 10.0, 60.0)  # the first lets the answer to the request go ahead


@dataclass(kw_only=True)
class Commitment:
    """Takes requests and reports.

    ``stored`` tells which of some SOP Instance UIDs the store holds durably; it is asked for what the spool has not.
    """

    settings: Settings
    spool: Spool
    stored: Callable[[Collection[str]], Held] = field(default=lambda _uids: {})
    _heads: dict[str, tuple[str, str] | None] = field(default_factory=dict)  # by file name, which says the content
    _asked: dict[Association, Dataset] = field(default_factory=dict)
    _reporting: set[threading.Thread] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, event: Event) -> tuple[int, None]:
        """The answer to an N-ACTION; the report follows it."""
        request: Any = event.request
        if request.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:
            return NO_SUCH_INSTANCE, None
        if event.action_type != REQUEST:
            return NO_SUCH_ACTION, None
        if len(self._reporting) >= REPORTS:
            log.warning("storage commitment for %s refused: too many are under way", peer_of(event.assoc))
            return RESOURCE_LIMITATION, None
        try:
            wanted = event.action_information
            if not wanted.TransactionUID or not wanted.ReferencedSOPSequence:
                return INVALID_ARGUMENT, None
        except Exception:  # noqa: BLE001 - whatever a broken data set makes of itself
            return INVALID_ARGUMENT, None
        self._asked[event.assoc] = wanted
        return SUCCESS, None

    def answered(self, event: Event) -> None:
        """Once an N-ACTION's answer is on its way, find out and report, in a thread of its own."""
        if type(event.message).__name__ == "N_ACTION_RSP" and (wanted := self._asked.pop(event.assoc, None)):
            name, who = "medflow-commitment", (event.assoc, wanted)
            thread = threading.Thread(target=self._report, args=who, name=name, daemon=True)
            self._reporting.add(thread)
            thread.start()

    def outcome(self, wanted: Dataset) -> Dataset:
        """What the report says (PS3.4, Table J.3-2)."""
        references = {str(item.ReferencedSOPInstanceUID): item for item in wanted.ReferencedSOPSequence}
        held = self._held(references)
        kept, failed = [], []
        for uid, item in references.items():
            line = Dataset()
            line.ReferencedSOPClassUID, line.ReferencedSOPInstanceUID = item.ReferencedSOPClassUID, uid
            if held.get(uid) == item.ReferencedSOPClassUID:
                kept.append(line)
            else:
                line.FailureReason = CLASS_CONFLICT if uid in held else NO_SUCH_INSTANCE
                failed.append(line)
        said = Dataset()
        said.TransactionUID = wanted.TransactionUID
        said.RetrieveAETitle = self.settings.receive_aet
        if kept:
            said.ReferencedSOPSequence = Sequence(kept)
        if failed:
            said.FailedSOPSequence = Sequence(failed)
        return said

    def _held(self, uids: Collection[str]) -> Held:
        """Spool before store: what leaves the one between the two looks is in the other."""
        held = {uid: sop_class for uid, sop_class in self._spooled() if uid in uids}
        if held:
            self.spool.flush()  # a name that another process gave may not be flushed yet
        left = [uid for uid in uids if uid not in held]
        return {**self.stored(left), **held} if left else held

    def _spooled(self) -> list[tuple[str, str]]:
        with self._lock:
            now: dict[str, tuple[str, str] | None] = {}
            for entry in self.spool.files():
                known = self._heads.get(entry.name)
                now[entry.name] = known if known is not None else head_of(Path(entry.path))
            self._heads = now
            return [head for head in now.values() if head is not None]

    def _report(self, association: Association, wanted: Dataset) -> None:
        peer = peer_of(association)
        try:
            said = self.outcome(wanted)
            kept, failed = (len(said.get(name, ())) for name in ("ReferencedSOPSequence", "FailedSOPSequence"))
            told = self._told(association, said)
        except Exception as error:  # its text may quote what was asked
            log.error(
                "storage commitment for %s failed: unforeseen %s at %s", peer, type(error).__name__, place_of(error)
            )
            return
        finally:
            self._reporting.discard(threading.current_thread())
        if told:
            log.info("storage commitment for %s: %d committed, %d not", peer, kept, failed)
        else:
            log.warning("storage commitment for %s could not be reported (see MEDFLOW_RECEIVE_REPORT_TO)", peer)

    def _told(self, association: Association, said: Dataset) -> bool:
        node = self._address_of(association.requestor.ae_title.strip())
        for wait in AGAIN_AFTER_S:
            time.sleep(wait)
            if node is not None and self._told_at(node, said):
                return True
            if association.is_established:
                with suppress(RuntimeError, ValueError):  # it has ended meanwhile
                    if _send(association, said):
                        return True
            elif node is None:
                return False
        return False

    def _told_at(self, node: DicomNode, said: Dataset) -> bool:
        context = build_context(StorageCommitmentPushModel, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        roles = [build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)]
        try:
            ours = node.calling_aet or self.settings.receive_aet
            with associated(node, ours, [context], negotiation=roles) as association:
                return _send(association, said)
        except (MedflowError, RuntimeError, ValueError) as error:
            log.warning("%s was not told of a storage commitment (%s)", node.public, type(error).__name__)
            return False

    def _address_of(self, aet: str) -> DicomNode | None:
        """Where an application listens, as far as the configuration says."""
        given = [DicomNode(address=address) for address in self.settings.receive_report_to]
        servers = [*self.settings.sources.values(), *self.settings.targets.values()]
        given += [server for server in servers if isinstance(server, (PacsSource, PacsTarget))]
        return next((node for node in given if node.aet == aet), None)


def head_of(path: Path) -> tuple[str, str] | None:
    """SOP Instance UID and SOP Class UID of a spooled file, by the file meta group that was put before it."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None  # taken by ingest
    values: dict[int, str] = {}
    at = 158  # preamble, prefix, group length and version, as `file_meta` writes them
    for element in (0x0002, 0x0003):
        if head[at : at + 6] != b"\x02\x00" + element.to_bytes(2, "little") + b"UI":
            return None
        size = int.from_bytes(head[at + 6 : at + 8], "little")
        values[element] = head[at + 8 : at + 8 + size].rstrip(b"\0").decode("ascii", "replace")
        at += 8 + size
    return values[0x0003], values[0x0002]


def _send(association: Association, said: Dataset) -> bool:
    kind = SOME_NOT if "FailedSOPSequence" in said else ALL_COMMITTED
    status, _ = association.send_n_event_report(
        said, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    return status.get("Status") == SUCCESS
