"""What listens for associations: the server, what it agrees to, and TLS."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from socketserver import BaseServer
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_context, evt
from pynetdicom.events import Event
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,  # type: ignore[attr-defined]  # made from a table
    Verification,  # type: ignore[attr-defined]  # so is this
    register_uid,
)
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from medflow.config import Settings
from medflow.errors import ConfigurationError

log = logging.getLogger(__name__)

NOTED_S, MOST_NOTED = 3600.0, 1000
_noted: dict[str, float] = {}  # addresses that the log has named, and when
Network = IPv4Network | IPv6Network
QUEUE = 64  # connections that wait to be accepted
PDU_BYTES = 128 << 10  # announced to senders; larger ones cost fewer turns of the loop
OPENING_S = 10  # for TLS, and for the association request
RETIRED = {  # storage classes that archives still send
    "1.2.840.10008.5.1.4.1.1.3": "RetiredUltrasoundMultiFrameImageStorage",
    "1.2.840.10008.5.1.4.1.1.5": "RetiredNuclearMedicineImageStorage",
    "1.2.840.10008.5.1.4.1.1.6": "RetiredUltrasoundImageStorage",
    "1.2.840.10008.5.1.4.1.1.12.3": "RetiredXRayAngiographicBiPlaneImageStorage",
}
STORAGE = {context.abstract_syntax for context in AllStoragePresentationContexts} | set(RETIRED)
TRANSFER = set(ALL_TRANSFER_SYNTAXES)


def application_entity(settings: Settings) -> AE:
    """What this side is called, whom it takes, and how long it waits."""
    for uid, keyword in RETIRED.items():
        register_uid(uid, keyword, StorageServiceClass)
    entity = AE(settings.receive_aet)
    entity.require_called_aet = True
    entity.require_calling_aet = list(settings.receive_allow)
    entity.maximum_associations = settings.receive_associations
    entity.maximum_pdu_size = PDU_BYTES
    entity.acse_timeout = OPENING_S
    entity.dimse_timeout = entity.network_timeout = settings.receive_timeout_s
    entity.add_supported_context(Verification)
    entity.add_supported_context(StorageCommitmentPushModel)
    return entity


def agree(event: Event) -> None:
    """Take each proposed context as its sender would have it: its first transfer syntax that is known.

    pynetdicom would choose by the receiver's order, and make senders decompress what they propose compressed.
    """
    association: Any = event.assoc
    if association.over_limit:
        _turn_away(association)
        return
    wanted: dict[Any, set[UID]] = {}
    request: Any = association.requestor.primitive  # the A-ASSOCIATE that has just come
    for context in request.presentation_context_definition_list:
        known = [syntax for syntax in context.transfer_syntax if syntax in TRANSFER]
        if known and context.abstract_syntax in STORAGE:
            context.transfer_syntax = known[:1]
            wanted.setdefault(context.abstract_syntax, set()).add(known[0])
    association.acceptor.supported_contexts = [
        *association.acceptor.supported_contexts,
        *(build_context(uid, sorted(syntaxes)) for uid, syntaxes in wanted.items()),
    ]


def _turn_away(association: Any) -> None:
    """Reject an association for now: local limit exceeded (PS3.8, 9.3.4)."""
    association.requestor.ae_title = association.requestor.primitive.calling_ae_title
    association.acse.send_reject(0x02, 0x03, 0x02)
    association.is_rejected = True
    evt.trigger(association, evt.EVT_REJECTED, {})
    association.kill()


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What TLS is spoken with; None without a certificate. With an authority, senders must show certificates of it.

    Raises
    ------
    ConfigurationError
        A file is missing or is not what it should be, or only one of certificate and key is named.
    """
    cert, key, authority = settings.receive_tls_cert, settings.receive_tls_key, settings.receive_tls_ca
    if cert is None and key is None and authority is None:
        return None
    if cert is None or key is None:
        raise ConfigurationError(
            "TLS needs both --tls-cert and --tls-key (MEDFLOW_RECEIVE_TLS_CERT and MEDFLOW_RECEIVE_TLS_KEY)"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")  # an encrypted key fails, it does not ask a terminal
        if authority is not None:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        names = ", ".join(str(path) for path in (cert, key, authority) if path is not None)
        raise ConfigurationError(
            f"TLS cannot be set up from {names} ({error.strerror or type(error).__name__}): "
            "they must be readable PEM files, and the key unencrypted and of this certificate"
        ) from None
    return context


def allowed(address: str, networks: Sequence[Network]) -> bool:
    """Whether a peer with this IP address may send: it is in one of the networks, or there are none to be in."""
    if not networks:
        return True
    try:
        found = ip_address(address.partition("%")[0])  # a link-local address names its interface
    except ValueError:
        return False
    found = getattr(found, "ipv4_mapped", None) or found  # how a socket of both kinds shows an IPv4 peer
    return any(found in network for network in networks)


def listening(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises
    ------
    ConfigurationError
        The address cannot be had.
    """
    where = settings.receive_host, settings.receive_port
    try:
        family = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0][0]
        opened = socket.socket(family, socket.SOCK_STREAM)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(where)
            opened.listen(QUEUE)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        raise unreachable(settings, error) from None
    return opened


def unreachable(settings: Settings, error: OSError) -> ConfigurationError:
    """Why nothing can listen at the configured address."""
    where = f"{settings.receive_host}:{settings.receive_port}"
    return ConfigurationError(f"cannot listen at {where} ({error.strerror}): choose another --host or --port")


class Handler(RequestHandler):
    """One association, from its connection to its end, in a thread that waits for it."""

    def handle(self) -> None:
        """As pynetdicom's, but return when the association has ended."""
        association: Any = self._create_association()
        server: Any = self.server
        association.over_limit = server.over_limit(self.request)
        evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
        association.start()
        association.join()


class Listener(ThreadedAssociationServer):
    """pynetdicom's server, whose listener waits for nobody: what a peer may hold up is done in the peer's thread."""

    daemon_threads = True
    request_queue_size = QUEUE
    networks: Sequence[Network] = ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection, of which nothing has been read yet."""
        listening: Any = self.socket
        connection, address = listening.accept()
        return self.prepared(connection), address

    def prepared(self, connection: socket.socket) -> socket.socket:
        """A connection with its options, and TLS to be shaken hands on."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(OPENING_S)
        if self.ssl_context:
            return self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Past twice the limit not even a refusal is spoken: a thread each would be too many."""
        if not allowed(client_address[0], self.networks):
            not_allowed(client_address[0])
            return False
        return len(self.active_associations) <= 2 * self.ae.maximum_associations

    def over_limit(self, request: Any) -> bool:
        """Whether this connection is one too many; here pynetdicom counts itself."""
        return False

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: TLS, then the association."""
        if isinstance(request, ssl.SSLSocket):
            request.do_handshake()
        request.settimeout(self.ae.network_timeout)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that speaks no TLS, shows no certificate, or went away."""
        log.warning("connection from %s refused: it could not be opened", client_address[0])

    def shutdown(self) -> None:
        """Stop listening; associations go on."""
        BaseServer.shutdown(self)
        self.server_close()


class HandedListener(Listener):
    """One that listens to nothing: another process accepts connections, counts them, and hands them over."""

    ended: Callable[[], None] = staticmethod(lambda: None)  # called when a connection has

    def server_bind(self) -> None:
        """Leave the socket unbound."""
        self._too_many: set[int] = set()

    def server_activate(self) -> None:
        """Listen to nothing."""

    def take(self, connection: socket.socket, *, over_limit: bool) -> None:
        """Serve a connection; one over the limit is told so."""
        try:
            address = connection.getpeername()
            request = self.prepared(connection)
        except OSError:  # gone already
            connection.close()
            self.ended()
            return
        if over_limit:
            self._too_many.add(request.fileno())
        self.process_request(request, address)

    def over_limit(self, request: Any) -> bool:
        """Whether the process that counts said so."""
        number = request.fileno()
        found = number in self._too_many
        self._too_many.discard(number)
        return found

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve it, and say when that is over."""
        number = request.fileno()
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._too_many.discard(number)  # the next connection may have this number
            self.ended()

    def shutdown(self) -> None:
        """Nothing listens: who hands connections over has stopped."""
        self.server_close()


def not_allowed(address: str) -> None:
    """Note a connection that was closed at once; one line an hour for each address, as probes come often."""
    now = time.monotonic()
    if len(_noted) > MOST_NOTED:
        _noted.clear()
    if now - _noted.get(address, -NOTED_S) >= NOTED_S:
        _noted[address] = now
        log.warning("connection from %s refused: its address is not in MEDFLOW_RECEIVE_ALLOW_ADDRESSES", address)
