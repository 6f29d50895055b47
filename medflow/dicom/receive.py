"""A storage SCP: takes what modalities and the PACS send (C-STORE), and answers C-ECHO.

Nothing that is received is decoded. The bytes of the data set go to the spool as they came, behind a file meta group
made of the command (PS3.10, 7.1), and Success is answered when they are durable. What they are is found out by ingest.

The file meta names no sender and no version, so that an object has the same bytes, hence the same SHA-256, whoever
sends it and whenever.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pynetdicom import _config, evt
from pynetdicom.association import Association
from pynetdicom.events import Event

from medflow.config import Settings
from medflow.dicom.commitment import Commitment, Held
from medflow.dicom.lane import CANNOT_UNDERSTAND, SUCCESS, Lane, acknowledge_now, attempted, file_meta, peer_of
from medflow.dicom.listener import (
    HandedListener,
    Handler,
    Listener,
    agree,
    application_entity,
    tls_context,
    unreachable,
)
from medflow.dicom.spool import Spool
from medflow.errors import ConfigurationError

log = logging.getLogger(__name__)

Server = TypeVar("Server", bound=Listener)
COMMAND_BYTES = 64 << 10  # of a command set: a few hundred
UNANSWERED = 16  # messages of a sender, which is to wait for the answer to each (PS3.7, 7.1.1)
ENDING_S = 5  # for associations that are aborted at the end of the grace time


@dataclass(kw_only=True, slots=True)
class _Account:
    """One association's counts, for the line logged at its end."""

    peer: str
    stored: int = 0
    refused: int = 0


@dataclass(kw_only=True)
class Receiver:
    """The running receiver: `start` it, then `stop` it.

    ``stored`` tells which of some SOP Instance UIDs the store holds, for storage commitment.
    """

    settings: Settings
    spool: Spool
    stored: Callable[[Collection[str]], Held] = field(default=lambda _uids: {})
    _accounts: dict[Association, _Account] = field(default_factory=dict)
    _server: Listener | None = None

    def start(self) -> None:
        """Listen, in threads of its own.

        Raises
        ------
        ConfigurationError
            The folder cannot be written, the address cannot be had, or the TLS files cannot be read.
        """
        prepare(self.spool)
        try:
            server = self._serving(Listener)
        except OSError as error:
            raise unreachable(self.settings, error) from None
        threading.Thread(target=server.serve_forever, args=(0.2,), name="medflow-receive", daemon=True).start()
        log.info("listening as %s at %s:%d%s", self.settings.receive_aet, *self.address, self.tls)

    def attend(self, ended: Callable[[], None]) -> HandedListener:
        """Serve connections that another process accepts: `take` them; ``ended`` is called when one has.

        Raises
        ------
        ConfigurationError
            The TLS files cannot be read.
        """
        server = self._serving(HandedListener)
        server.ended = ended
        server.ae.maximum_associations = sys.maxsize  # counted over all processes, where they are accepted
        return server

    def _serving(self, kind: type[Server]) -> Server:
        settings = self.settings
        commitment = Commitment(settings=settings, spool=self.spool, stored=self.stored)
        _config.LOG_HANDLER_LEVEL = "none"  # pynetdicom would write out every message, for no reader
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # its errors quote what was received
        server: Any = application_entity(settings).make_server(
            (settings.receive_host, settings.receive_port),
            ssl_context=tls_context(settings),
            evt_handlers=[
                (evt.EVT_CONN_OPEN, self._connected),
                (evt.EVT_REQUESTED, agree),
                (evt.EVT_REJECTED, _refused),
                (evt.EVT_ESTABLISHED, self._opened),
                (evt.EVT_PDU_RECV, self._received),
                (evt.EVT_PDU_SENT, _acknowledge),
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_N_ACTION, commitment.asked),
                (evt.EVT_DIMSE_SENT, commitment.answered),
                (evt.EVT_C_ECHO, lambda _event: SUCCESS),
                (evt.EVT_CONN_CLOSE, self._closed),
            ],
            server_class=kind,
            request_handler=Handler,
        )
        server.networks = settings.receive_allow_addresses
        self._server = server
        return server

    @property
    def tls(self) -> str:
        """What the log says of TLS."""
        return " with TLS" if self._server is not None and self._server.ssl_context else ""

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self._server is not None  # noqa: S101 - started
        return self._server.server_address[:2]

    def stop(self, hurry: threading.Event | None = None) -> bool:
        """Take no new associations, let those that run end within the grace time, then abort them.

        Returns whether all ended by themselves. ``hurry`` ends the grace time early.
        """
        assert self._server is not None  # noqa: S101 - started
        log.info("stopping: no new associations; %d running", len(self._established()))
        left = self.end(hurry)
        log.info("stopped; %d associations were cut off", left)
        return not left

    def end(self, hurry: threading.Event | None = None) -> int:
        """As `stop`, without a word; returns how many associations were aborted."""
        server = self._server
        assert server is not None  # noqa: S101 - started
        server.shutdown()
        deadline = time.monotonic() + self.settings.receive_grace_s
        hurry = hurry or threading.Event()
        while self._established() and time.monotonic() < deadline and not hurry.wait(0.1):
            pass
        left = self._established()
        for association in left:
            association.abort(block=False)
        deadline = time.monotonic() + ENDING_S
        while any(association.is_alive() for association in left) and time.monotonic() < deadline:
            time.sleep(0.05)
        return len(left)

    def _established(self) -> list[Association]:
        """The associations that something may come over; a connection that has not got so far is let go."""
        return [one for one in self._server.active_associations if one.is_established] if self._server else []

    def _opened(self, event: Event) -> None:
        peer = peer_of(event.assoc)
        self._accounts[event.assoc] = _Account(peer=peer)
        log.info("association from %s", peer)

    def _closed(self, event: Event) -> None:
        account = self._accounts.pop(event.assoc, None)
        if account is not None:
            how = "released" if event.assoc.is_released else "broken off"
            log.info(
                "association from %s %s: %d stored, %d refused", account.peer, how, account.stored, account.refused
            )

    def _connected(self, event: Event) -> None:
        association = event.assoc
        Lane(association, self.spool, self.settings.max_input_bytes, lambda status: self._count(association, status))

    def _received(self, event: Event) -> None:
        """Let nobody fill the memory: an object past the limit ends its association, and so does an endless command."""
        association: Any = event.assoc
        _acknowledge(event)
        message = association.dimse.message
        if message is not None and message.data_set.tell() > self.settings.max_input_bytes:
            log.warning("an object from %s is larger than MEDFLOW_MAX_INPUT_BYTES: cut off", peer_of(event.assoc))
        elif message is not None and message.encoded_command_set.tell() > COMMAND_BYTES:
            log.warning("a command from %s is larger than any is: cut off", peer_of(event.assoc))
        elif association.dimse.msg_queue.qsize() > UNANSWERED:
            log.warning("%s waits for no answers: cut off", peer_of(event.assoc))
        else:
            return
        association.dul.socket.close()

    def _store(self, event: Event) -> int:
        """A C-STORE that did not go the short way."""
        request: Any = event.request
        with request.DataSet.getbuffer() as data:
            if data.nbytes < 8:  # not even one element
                log.warning("an object from %s has no content: refused", peer_of(event.assoc))
                status = CANNOT_UNDERSTAND
            else:
                syntax = event.context.transfer_syntax
                uids = request.AffectedSOPClassUID, request.AffectedSOPInstanceUID
                status = attempted(lambda: self.spool.keep([file_meta(*uids, syntax), data]), event.assoc)
        self._count(event.assoc, status)
        return status

    def _count(self, association: Association, status: int) -> None:
        account = self._accounts.get(association)
        if account is not None:
            account.stored += status == SUCCESS
            account.refused += status != SUCCESS


def prepare(spool: Spool) -> None:
    """Have the folder ready.

    Raises
    ------
    ConfigurationError
        It cannot be written.
    """
    try:
        spool.prepare()
    except OSError as error:
        raise ConfigurationError(
            f"the folder {spool.root} cannot be written ({error.strerror}): "
            "mend it, or name another with --into (MEDFLOW_RECEIVE_INTO)"
        ) from None


def receiver(settings: Settings, **options: Any) -> Receiver:
    """The receiver that the settings describe; it does not listen yet. ``options`` are more fields of `Receiver`."""
    root = settings.receive_into or settings.home / "received"
    return Receiver(settings=settings, spool=Spool(root, min_free_bytes=settings.receive_min_free_mib << 20), **options)


def _refused(event: Event) -> None:
    result = event.assoc.acceptor.primitive
    log.warning("association from %s refused: %s", peer_of(event.assoc), result.reason_str if result else "not allowed")


def _acknowledge(event: Event) -> None:
    association: Any = event.assoc
    acknowledge_now(association.dul.socket.socket)
