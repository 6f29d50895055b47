"""What C-MOVE sends: received like everything else that is sent here, and taken from there.

Where `medflow receive` runs, it takes it; else a receiver is started here for the time of a fetch. Either way an object
is durable before the archive is told so, and what others send meanwhile is safe in the same folder.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from medflow.config import Settings
from medflow.connections.endpoints import DicomNode, PacsSource
from medflow.dicom.association import echo
from medflow.dicom.receive import Receiver, receiver
from medflow.dicom.spool import SUFFIX
from medflow.errors import ConfigurationError, ServerUnavailable
from medflow.ingest.landing import Landing, stated_uid
from medflow.ingest.retrieval import Lacking

ECHO_S = 30.0
LATE_S = 10.0  # how long nothing may come of what an archive says it has sent
LOOK_S = 0.1
BLOCK = 1 << 20


class Arrivals:
    """What C-MOVE sends: where it is received, by whom, and what of it has come."""

    def __init__(self, source: PacsSource, settings: Settings) -> None:
        self.move_to = source.move_to or settings.receive_aet
        allowed = (*settings.receive_allow, source.aet) if settings.receive_allow else ()
        changes = {"receive_aet": self.move_to, "receive_allow": allowed}
        if source.move_port is not None:
            changes["receive_port"] = source.move_port
        here = settings.model_copy(update=changes)
        self._receiver: Receiver = receiver(here)
        self.root = self._receiver.spool.root
        self.ours = not _listening(here, source)
        if self.ours:
            self._receiver.start()
        self.some = False  # whether anything has come
        self._seen: set[Path] = set()
        self._lying: dict[str, Path] = {}

    def stop(self) -> None:
        """Stop listening, if it is we who do."""
        if self.ours:
            hurry = threading.Event()
            hurry.set()  # what is cut off was not acknowledged
            self._receiver.stop(hurry)

    def take_in(self, landing: Landing, lacking: Sequence[Lacking]) -> None:
        """Put into the landing what lies there of what is lacking."""
        self._take(landing, [uid for one in lacking for uid in one.instances])

    def wait_for(self, landing: Landing, wanted: Sequence[str], claimed: int | None) -> None:
        """Take what was sent: some archives say so before they have."""
        number = min(len(wanted), len(wanted) if claimed is None else claimed)
        here = self._take(landing, wanted)
        deadline = time.monotonic() + LATE_S
        while here < number and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            before, here = here, self._take(landing, wanted)
            if here > before:
                deadline = time.monotonic() + LATE_S

    def _take(self, landing: Landing, wanted: Sequence[str]) -> int:
        """Returns how many of those wanted are in the landing."""
        self._look()
        there = landing.arrived(wanted)
        for uid in wanted:
            path = self._lying.pop(uid, None)
            if path is None or uid in there:
                continue
            try:
                with path.open("rb") as received, landing.writing() as file:
                    while block := received.read(BLOCK):
                        file.write(block)
            except FileNotFoundError:
                pass  # ingested and removed meanwhile
        there = landing.arrived(wanted)
        self.some = self.some or bool(there)
        return len(there)

    def _look(self) -> None:
        for path in self.root.glob(f"*/*{SUFFIX}"):
            if path not in self._seen:
                self._seen.add(path)
                self._lying[stated_uid(path)] = path


def _listening(settings: Settings, source: PacsSource) -> bool:
    """Whether `medflow receive` listens where the archive is to send to; raises ConfigurationError if another does."""
    host = "127.0.0.1" if settings.receive_host in ("", "0.0.0.0") else settings.receive_host  # noqa: S104 - compared
    address = f"{settings.receive_aet}@{host}:{settings.receive_port}"
    try:
        echo(DicomNode(address=address), source.aet, ECHO_S)
    except (ServerUnavailable, ConfigurationError) as error:
        if error.fields.get("reached") is False:
            return False
        if settings.receive_tls_cert is not None:
            return True  # it speaks TLS, and may want a certificate of the sender, which this process has none of
        raise ConfigurationError(
            f"what listens at {host}:{settings.receive_port} does not answer {source.aet} as {settings.receive_aet}: "
            "let `medflow receive` listen there by that name, or name another port (move_port)"
        ) from None
    return True
