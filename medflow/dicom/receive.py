"""A storage SCP: takes what modalities and the PACS send (C-STORE), and answers C-ECHO.

Nothing that is received is decoded. The bytes of the data set go to the spool as they came, behind a file meta group
made of the command (PS3.10, 7.1), and Success is answered when they are durable. What they are is found out by ingest.

The file meta names no sender and no version, so that an object has the same bytes, hence the same SHA-256, whoever
sends it and whenever.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from pynetdicom import _config, evt
from pynetdicom.association import Association
from pynetdicom.events import Event

from medflow.config import Settings
from medflow.dicom.listener import Listener, acknowledge_now, agree, application_entity, read_bounded, tls_context
from medflow.dicom.spool import Spool
from medflow.errors import ConfigurationError, place_of

log = logging.getLogger(__name__)

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000  # PS3.4, Table B.2-1
ENDING_S = 5  # for associations that are aborted at the end of the grace time
IMPLEMENTATION = f"2.25.{uuid5(NAMESPACE_URL, 'medflow/receive').int}"


@dataclass(kw_only=True, slots=True)
class _Account:
    """One association's counts, for the line logged at its end."""

    peer: str
    stored: int = 0
    refused: int = 0


@dataclass(kw_only=True)
class Receiver:
    """The running receiver: `start` it, then `stop` it."""

    settings: Settings
    spool: Spool
    _accounts: dict[Association, _Account] = field(default_factory=dict)
    _server: Listener | None = None

    def start(self) -> None:
        """Listen, in threads of its own.

        Raises
        ------
        ConfigurationError
            The folder cannot be written, the address cannot be had, or the TLS files cannot be read.
        """
        settings = self.settings
        try:
            self.spool.prepare()
        except OSError as error:
            raise ConfigurationError(
                f"the folder {self.spool.root} cannot be written ({error.strerror}): "
                "mend it, or name another with --into (MEDFLOW_RECEIVE_INTO)"
            ) from None
        context = tls_context(settings)
        _config.LOG_HANDLER_LEVEL = "none"  # pynetdicom would write out every message, for no reader
        try:
            server = application_entity(settings).make_server(
                (settings.receive_host, settings.receive_port),
                ssl_context=context,
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, read_bounded),
                    (evt.EVT_REQUESTED, agree),
                    (evt.EVT_REJECTED, _refused),
                    (evt.EVT_ESTABLISHED, self._opened),
                    (evt.EVT_PDU_RECV, self._received),
                    (evt.EVT_PDU_SENT, acknowledge_now),
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_C_ECHO, lambda _event: SUCCESS),
                    (evt.EVT_CONN_CLOSE, self._closed),
                ],
                server_class=Listener,
            )
        except OSError as error:
            where = f"{settings.receive_host}:{settings.receive_port}"
            raise ConfigurationError(
                f"cannot listen at {where} ({error.strerror}): choose another --host or --port"
            ) from None
        assert isinstance(server, Listener)  # noqa: S101 - the class asked for
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.2,), name="medflow-receive", daemon=True).start()
        log.info("listening as %s at %s:%d%s", settings.receive_aet, *self.address, " with TLS" if context else "")

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self._server is not None  # noqa: S101 - started
        return self._server.server_address[:2]

    def stop(self, hurry: threading.Event | None = None) -> bool:
        """Take no new associations, let those that run end within the grace time, then abort them.

        Returns whether all ended by themselves. ``hurry`` ends the grace time early.
        """
        server = self._server
        assert server is not None  # noqa: S101 - started
        server.shutdown()
        running = len(server.active_associations)
        log.info("stopping: no new associations; %d running", running)
        deadline = time.monotonic() + self.settings.receive_grace_s
        hurry = hurry or threading.Event()
        while server.active_associations and time.monotonic() < deadline and not hurry.wait(0.1):
            pass
        left = server.active_associations
        for association in left:
            association.abort(block=False)
        deadline = time.monotonic() + ENDING_S
        while server.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        log.info("stopped; %d associations were cut off", len(left))
        return not left

    def _opened(self, event: Event) -> None:
        peer = _peer(event.assoc)
        self._accounts[event.assoc] = _Account(peer=peer)
        log.info("association from %s", peer)

    def _closed(self, event: Event) -> None:
        account = self._accounts.pop(event.assoc, None)
        if account is not None:
            how = "released" if event.assoc.is_released else "broken off"
            log.info(
                "association from %s %s: %d stored, %d refused", account.peer, how, account.stored, account.refused
            )

    def _received(self, event: Event) -> None:
        """Let nobody fill the memory: an object past the limit ends its association."""
        association: Any = event.assoc
        acknowledge_now(event)
        message = association.dimse.message
        if message is not None and message.data_set.tell() > self.settings.max_input_bytes:
            log.warning("an object from %s is larger than MEDFLOW_MAX_INPUT_BYTES: cut off", _peer(event.assoc))
            association.dul.socket.close()

    def _store(self, event: Event) -> int:
        status = self._kept(event)
        account = self._accounts.get(event.assoc)
        if account is not None:
            account.stored += status == SUCCESS
            account.refused += status != SUCCESS
        return status

    def _kept(self, event: Event) -> int:
        request: Any = event.request
        try:
            with request.DataSet.getbuffer() as data:
                if data.nbytes < 8:  # not even one element
                    log.warning("an object from %s has no content: refused", _peer(event.assoc))
                    return CANNOT_UNDERSTAND
                if data.nbytes > self.settings.max_input_bytes:
                    log.warning("an object from %s is larger than MEDFLOW_MAX_INPUT_BYTES: refused", _peer(event.assoc))
                    return OUT_OF_RESOURCES
                syntax = event.context.transfer_syntax
                meta = file_meta(request.AffectedSOPClassUID, request.AffectedSOPInstanceUID, syntax)
                self.spool.keep([meta, data])
            return SUCCESS
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            log.error("an object from %s cannot be written (%s): refused", _peer(event.assoc), reason)
            return OUT_OF_RESOURCES
        except Exception as error:
            # its text may quote what was received
            log.error("an unforeseen %s at %s: object refused", type(error).__name__, place_of(error))
            return CANNOT_UNDERSTAND


def receiver(settings: Settings) -> Receiver:
    """The receiver that the settings describe; it does not listen yet."""
    root = settings.receive_into or settings.home / "received"
    return Receiver(settings=settings, spool=Spool(root, min_free_bytes=settings.receive_min_free_mib << 20))


def file_meta(sop_class: str, sop_instance: str, transfer_syntax: str) -> bytes:
    """Preamble, prefix and file meta group of a file that holds one data set (PS3.10, 7.1)."""
    elements = (
        struct.pack("<HH2sHI", 2, 0x0001, b"OB", 0, 2)
        + b"\x00\x01"
        + _text(0x0002, b"UI", sop_class)
        + _text(0x0003, b"UI", sop_instance)
        + _text(0x0010, b"UI", transfer_syntax)
        + _text(0x0012, b"UI", IMPLEMENTATION)
        + _text(0x0013, b"SH", "MEDFLOW")
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0x0000, b"UL", 4, len(elements)) + elements


def _text(element: int, vr: bytes, value: str) -> bytes:
    data = value.encode("ascii", "replace")
    if len(data) % 2:
        data += b"\x00" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, element, vr, len(data)) + data


def _peer(association: Association) -> str:
    """Who sends: AE title and address; both are whatever the other side says, so nothing unprintable gets through."""
    requestor = association.requestor
    info = requestor.address_info
    return f"{requestor.ae_title.strip()!a} at {info.address if info else 'an unknown address'}"


def _refused(event: Event) -> None:
    result = event.assoc.acceptor.primitive
    log.warning("association from %s refused: %s", _peer(event.assoc), result.reason_str if result else "not allowed")
