"""Associations that we ask for: TLS, time limits, and what it means when there is none.

An archive that is away, or has too much to do, is worth another try; one that does not know us, or speaks nothing that
we need, has to be set up. Neither message quotes what was asked for.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made from a table

from medflow.connections.endpoints import DicomNode
from medflow.connections.http import tls_context
from medflow.connections.pace import LEAST_BYTES_PER_S
from medflow.dicom.elements import quiet
from medflow.errors import ConfigurationError, ServerUnavailable

PDU_BYTES = 128 << 10  # announced; larger ones cost fewer turns of the loop
LARGEST_PDU_BYTES = 1 << 20
OPENING_S = 30.0  # the most that a connection, TLS, and the answer to an association request may take, each
BY_USER, BY_PRESENTATION = 1, 3  # source of a rejection (PS3.8, Table 9-21)
TRANSIENT = 2  # its result
CALLING_UNKNOWN, CALLED_UNKNOWN = 3, 7  # its reason


def opened(
    node: DicomNode,
    calling_aet: str,
    contexts: Sequence[PresentationContext],
    *,
    timeout_s: float | None = None,
    negotiation: Sequence[Any] = (),
    handlers: Sequence[tuple] = (),
) -> Association:
    """An association with ``node``; `closed` it.

    Parameters
    ----------
    node, calling_aet
        Whom to call, and what we are called there.
    contexts
        What is proposed, 128 at most (PS3.8 9.3.2.2).
    timeout_s
        How long the other side may be silent; the node's own limit where it is None.
    negotiation
        Extended negotiation items, such as roles.
    handlers
        Events and what takes them, as pynetdicom has them.

    Raises
    ------
    ServerUnavailable
        It cannot be reached (then ``reached`` is False), does not answer, or has too much to do.
    ConfigurationError
        It refuses us, or everything proposed; a TLS file cannot be read.
    """
    _discreet()
    limit = timeout_s if timeout_s is not None else node.timeout_s
    entity = AE(calling_aet)
    entity.connection_timeout = entity.acse_timeout = min(limit, OPENING_S)
    entity.dimse_timeout = limit
    entity.network_timeout = None  # asked of the archive only while nobody waits for it: idle is no failure
    reached = threading.Event()

    def connected(event: Event) -> None:
        reached.set()
        connection: Any = event.assoc.dul.socket
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.socket.settimeout(limit)  # pynetdicom would wait for the rest of a PDU for ever
        connection.recv = _Reader(connection, limit).read

    tls = (tls_context(node.tls), node.host) if node.tls is not None else None
    try:
        association = entity.associate(
            node.host,
            node.port,
            contexts=list(contexts),
            ae_title=node.aet,
            max_pdu=PDU_BYTES,
            ext_neg=list(negotiation),
            tls_args=tls,
            evt_handlers=[(evt.EVT_CONN_OPEN, connected), (evt.EVT_PDU_RECV, _acknowledge), *handlers],
        )
    except (OSError, ssl.SSLError):  # its name is not known
        raise ServerUnavailable(
            f"{node.public} cannot be reached: its host name is not known here", reached=False
        ) from None
    if not association.is_established:
        raise _unestablished(association, node, calling_aet, reached=reached.is_set())
    theirs = association._reactor_checkpoint
    association._reactor_checkpoint = _Checkpoint()  # type: ignore[assignment]  # all of it that is used
    theirs.set()
    return association


def closed(association: Association) -> None:
    """End an association, however it stands."""
    with suppress(OSError, RuntimeError):
        if association.is_established:
            association.release()
        if association.is_established:
            association.abort()


@contextmanager
def associated(node: DicomNode, calling_aet: str, contexts: Sequence[PresentationContext], **options: Any) -> Iterator:
    """An association for the length of a block; parameters and errors as for `opened`."""
    association = opened(node, calling_aet, contexts, **options)
    try:
        yield association
    finally:
        closed(association)


def undisturbed(association: Association) -> None:
    """To be called before every send: have pynetdicom's own loop rest, or it may take the answer away.

    3.0.4 looks at a flag that may be of the moment before: the answer is then lost, and missed until the time limit.
    """
    checkpoint: Any = association._reactor_checkpoint
    if isinstance(checkpoint, _Checkpoint):
        checkpoint.rest(association.is_alive)


def echo(node: DicomNode, calling_aet: str, timeout_s: float) -> None:
    """C-ECHO: whether an application answers at this address, and knows us.

    Raises
    ------
    ServerUnavailable, ConfigurationError
        As for `opened`; or it answered that it cannot.
    """
    with associated(node, calling_aet, [build_context(Verification)], timeout_s=timeout_s) as association:
        undisturbed(association)
        status = association.send_c_echo()
        if "Status" not in status:
            raise lost(node)
        if status.Status != 0:
            raise ConfigurationError(f"{node.public} does not answer C-ECHO (status 0x{status.Status:04X})")


def lost(node: DicomNode) -> ServerUnavailable:
    """What it means that an answer did not come."""
    return ServerUnavailable(f"{node.public} did not answer in time, or broke off: check that the archive runs")


class _Reader:
    """Reads a PDU in one go, and none larger than any that is honest: pynetdicom takes 4 KiB at a time, up to 4 GiB.

    One that drips for longer than ``window_s`` ends the association: a limit between bytes alone could go on for days.
    """

    def __init__(self, connection: Any, window_s: float) -> None:
        self._connection, self._window_s = connection, window_s

    def read(self, count: int) -> bytearray:
        """So many bytes; fewer at the end of the connection."""
        if count > LARGEST_PDU_BYTES:
            raise OSError("a PDU is larger than allowed")
        data, done = bytearray(count), 0
        started = time.monotonic()
        while done < count:
            got = self._connection.socket.recv_into(memoryview(data)[done:])
            if not got:
                return data[:done]
            done += got
            spent = time.monotonic() - started
            if done < min(count, spent * LEAST_BYTES_PER_S) and spent > self._window_s:
                raise TimeoutError("a PDU drips")
        return data


def _acknowledge(event: Event) -> None:
    """Acknowledge what comes at once: many senders hold a PDU back until the one before is (40 ms)."""
    connection: Any = event.assoc.dul.socket
    if connection is not None and connection.socket is not None and hasattr(socket, "TCP_QUICKACK"):
        with suppress(OSError):  # gone by now, which the next read finds out
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class _Checkpoint:
    """Where pynetdicom's loop rests while its user waits for an answer: an Event that tells when somebody waits."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._open, self._resting = True, False

    def set(self) -> None:
        with self._turn:
            self._open = True
            self._turn.notify_all()

    def clear(self) -> None:
        with self._turn:
            self._open = False

    def wait(self) -> bool:
        with self._turn:
            while not self._open:
                self._resting = True
                self._turn.notify_all()
                self._turn.wait()
            self._resting = False
        return True

    def rest(self, alive: Callable[[], bool]) -> None:
        """Return when the loop rests, or has ended."""
        with self._turn:
            self._open = False
            while not self._resting and alive():
                self._turn.wait(0.05)


def _discreet() -> None:
    """Keep pynetdicom from logging what is asked for and found: it names patients."""
    quiet()
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


def _unestablished(
    association: Association, node: DicomNode, calling_aet: str, *, reached: bool
) -> ServerUnavailable | ConfigurationError:
    if association.is_rejected:
        return _rejected(association, node, calling_aet)
    if not reached:
        how = ", or TLS with it failed" if node.tls is not None else ""
        return ServerUnavailable(
            f"{node.public} cannot be reached{how}: check that the archive runs and that host and port are right",
            reached=False,
        )
    if association.rejected_contexts:
        names = sorted(
            {str(context.abstract_syntax and context.abstract_syntax.name) for context in association.rejected_contexts}
        )
        return ConfigurationError(
            f"{node.public} takes no association for {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}: "
            f"have this allowed for {calling_aet} in the archive"
        )
    return ServerUnavailable(
        f"{node.public} broke off, or did not answer, when an association was asked for: check that the archive runs, "
        f"speaks {'TLS' if node.tls is not None else 'DICOM without TLS'} there, and knows {calling_aet}"
    )


def _rejected(association: Association, node: DicomNode, calling_aet: str) -> ServerUnavailable | ConfigurationError:
    answer: Any = association.acceptor.primitive
    source, reason = answer.result_source, answer.diagnostic
    if answer.result == TRANSIENT or source == BY_PRESENTATION:
        return ServerUnavailable(f"{node.public} takes no association now ({answer.reason_str})")
    if (source, reason) == (BY_USER, CALLED_UNKNOWN):
        return ConfigurationError(
            f"what listens at {node.host}:{node.port} is not called {node.aet}, or not to {calling_aet}: put its AE "
            f"title before the @, and have {calling_aet} registered in the archive with this host's address"
        )
    if (source, reason) == (BY_USER, CALLING_UNKNOWN):
        return ConfigurationError(
            f"{node.public} does not know {calling_aet}: have this AE title registered in the archive with this host's "
            "address, or name the one it knows us by (calling_aet, or MEDFLOW_RECEIVE_AET)"
        )
    return ConfigurationError(
        f"{node.public} refuses associations ({answer.reason_str}): have the AE title {calling_aet} registered in the "
        "archive with this host's address"
    )
