"""C-STORE: how DICOM objects go to an archive that speaks DICOM over TCP (PS3.4 B), their bytes as they are.

Each class of objects is proposed for the transfer syntax that its files have and no other: what an archive does not
take so is refused by name, as nothing is transcoded here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom.uid import UID
from pynetdicom import _config, build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made from a table

from medflow.config import Settings
from medflow.connections.endpoints import PacsTarget
from medflow.delivery.archive import Outcome, ResultFile
from medflow.dicom.association import closed, echo, lost, opened, undisturbed
from medflow.errors import ServerUnavailable

ECHO_S = 30.0
CONTEXTS = 127  # beside one that every archive takes
Kind = tuple[str, str]  # SOP class and transfer syntax


class CStore:
    """One archive; its association is kept from one call to the next. See `medflow.delivery.archive.Sender`."""

    def __init__(self, target: PacsTarget, settings: Settings) -> None:
        self._target = target
        self._calling_aet = target.calling_aet or settings.receive_aet
        self._association: Association | None = None
        self._proposed: set[Kind] = set()
        self._reused = False  # whether the association has been of use
        _config.STORE_SEND_CHUNKED_DATASET = True  # files are sent as they are, a piece at a time

    @property
    def public(self) -> str:
        """The archive's address."""
        return self._target.public

    def check(self) -> None:
        """C-ECHO."""
        echo(self._target, self._calling_aet, min(self._target.timeout_s, ECHO_S))

    def send(self, files: Sequence[ResultFile]) -> Iterator[Outcome]:
        """Send each; an outcome as soon as there is one."""
        for file in files:
            try:
                yield self._sent(file, files)
            except ServerUnavailable:
                self.close()
                if not self._reused:
                    raise
                yield self._sent(file, files)  # an archive may end what lay idle, and an answer may be lost once

    def close(self) -> None:
        """End the association."""
        if self._association is not None:
            closed(self._association)
            self._association = None

    def _sent(self, file: ResultFile, together: Sequence[ResultFile]) -> Outcome:
        association = self._associated(_kind(file), together)
        kind = _kind(file)
        accepted = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in association.accepted_contexts
        }
        if kind not in accepted:
            return Outcome(file=file, reason=f"context-rejected {UID(kind[0]).keyword} {UID(kind[1]).keyword}")
        with tempfile.TemporaryDirectory(prefix="medflow-send-") as folder:
            path = Path(folder, "object.dcm")
            with file.open() as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            undisturbed(association)
            status = association.send_c_store(path)
        if "Status" not in status:
            raise lost(self._target)
        self._reused = True
        return Outcome(file=file, status=status.Status, detail=str(status.get("ErrorComment", "")))

    def _associated(self, kind: Kind, together: Sequence[ResultFile]) -> Association:
        """The association, or a new one that is for all of these files."""
        known = self._association
        if known is not None and known.is_established and kind in self._proposed:
            return known
        self.close()
        self._reused = False
        wanted = dict.fromkeys([kind, *map(_kind, together)])
        self._proposed = set(list(wanted)[:CONTEXTS])
        contexts = [build_context(sop_class, syntax) for sop_class, syntax in sorted(self._proposed)]
        self._association = opened(self._target, self._calling_aet, [build_context(Verification), *contexts])
        return self._association


def _kind(file: ResultFile) -> Kind:
    return file.sop_class_uid, file.transfer_syntax_uid
