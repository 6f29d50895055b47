"""Applications that speak DICOM over TCP: archives that we ask or send to, and our own receiver."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

from medflow.config import Settings
from medflow.connections.endpoints import DicomNode, Files, PacsSource, PacsTarget
from medflow.doctor.finding import FAILED, OK, WARNING, Said
from medflow.doctor.here import unwritable
from medflow.errors import ConfigurationError, ServerUnavailable

LOCAL = ("127.0.0.1", "::1", "localhost")
PRIVILEGED = 1024


def archive(node: PacsSource | PacsTarget, settings: Settings, timeout_s: float) -> Iterator[Said]:
    """Whether it answers C-ECHO under the title that we have there, and accepts what we are going to ask for."""
    from medflow.dicom.association import echo  # pynetdicom is no light import

    calling = node.calling_aet or settings.receive_aet
    echo(node, calling, timeout_s)
    yield OK, f"it answers C-ECHO, and knows us as {calling}"
    if isinstance(node, PacsSource):
        yield from _retrieval(node, calling, timeout_s)
    else:
        yield from _storage(node, calling, timeout_s)


def _retrieval(node: PacsSource, calling: str, timeout_s: float) -> Iterator[Said]:
    from pynetdicom import sop_class

    model = "StudyRootQueryRetrieveInformationModel"
    wanted = {"C-FIND": "Find"} | ({"C-GET": "Get"} if node.retrieve == "get" else {"C-MOVE": "Move"})
    for service, name in wanted.items():
        accepted = _accepted(node, calling, [getattr(sop_class, model + name)], timeout_s)
        if accepted:
            yield OK, f"it accepts {service} (Study Root)"
        else:
            other = " or choose retrieve = " + ('"move"' if service == "C-GET" else '"get"')
            yield (
                FAILED,
                f"it does not accept {service} (Study Root) from {calling}: have it allowed in the archive"
                f"{other if service != 'C-FIND' else ''}",
            )


def _storage(node: PacsTarget, calling: str, timeout_s: float) -> Iterator[Said]:
    from pydicom.uid import ParametricMapStorage, SegmentationStorage

    wanted = {"segmentations": SegmentationStorage, "heat maps": ParametricMapStorage}
    for name, storage in wanted.items():
        if _accepted(node, calling, [storage], timeout_s):
            yield OK, f"it accepts {name}"
        else:
            yield WARNING, f"it does not accept {name}: have that class allowed in the archive, if any are to be sent"


def _accepted(node: DicomNode, calling: str, classes: list[str], timeout_s: float) -> bool:
    """Whether at least one of these SOP classes is accepted, uncompressed."""
    from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
    from pynetdicom import build_context
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made from a table

    from medflow.dicom.association import associated

    syntaxes: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    contexts = [build_context(Verification), *(build_context(wanted, syntaxes) for wanted in classes)]
    with associated(node, calling, contexts, timeout_s=timeout_s) as association:
        return any(context.abstract_syntax in classes for context in association.accepted_contexts)


def is_received(settings: Settings) -> bool:
    """Whether this installation receives images, as far as its configuration tells."""
    defaults = type(settings).model_fields
    receiving = [name for name in defaults if name.startswith("receive_") and name != "receive_aet"]
    return any(getattr(settings, name) != defaults[name].default for name in receiving) or any(
        (isinstance(source, Files) and source.remove_received)
        or (isinstance(source, PacsSource) and source.retrieve == "move")
        for source in settings.sources.values()
    )


def receiver(settings: Settings, timeout_s: float) -> Iterator[Said]:
    """Whether `medflow receive` runs or could, and who may send to it."""
    host, port = settings.receive_host, settings.receive_port
    try:
        _bind(host, port)
        yield OK, f"{host}:{port} is free for `medflow receive`"
    except PermissionError:
        yield (
            FAILED,
            f"this user may not listen at port {port}: choose one from {PRIVILEGED} on, and have it forwarded",
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            yield _who_listens(settings, timeout_s)
        else:
            yield FAILED, f"nothing can listen at {host}:{port} ({error.strerror}): check MEDFLOW_RECEIVE_HOST"
    into = settings.receive_into or settings.home / "received"
    if said := unwritable(into):
        yield FAILED, f"what is received cannot be kept: {into} {said}"
    for file in (settings.receive_tls_cert, settings.receive_tls_key, settings.receive_tls_ca):
        if file is not None and not os.access(file.expanduser(), os.R_OK):
            yield FAILED, f"{file} is not there, or this user may not read it"
    yield from _commitment(settings, timeout_s)
    limited = settings.receive_allow or settings.receive_allow_addresses or settings.receive_tls_ca
    if host not in LOCAL and not limited:
        yield (
            WARNING,
            f"whoever reaches {host}:{port} may send: name calling AE titles (MEDFLOW_RECEIVE_ALLOW), addresses "
            "(MEDFLOW_RECEIVE_ALLOW_ADDRESSES), or want certificates (MEDFLOW_RECEIVE_TLS_CA)",
        )


def _commitment(settings: Settings, timeout_s: float) -> Iterator[Said]:
    """Whether those who are told what storage is committed answer."""
    from medflow.dicom.association import echo

    for address in settings.receive_report_to:
        try:
            echo(DicomNode(address=address), settings.receive_aet, timeout_s)
        except (ServerUnavailable, ConfigurationError) as error:
            yield WARNING, f"storage commitment cannot be told (MEDFLOW_RECEIVE_REPORT_TO): {error.message}"


def _bind(host: str, port: int) -> None:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def _who_listens(settings: Settings, timeout_s: float) -> Said:
    """Our own receiver, or a stranger that has its port."""
    from medflow.dicom.association import echo

    where = f"{settings.receive_host}:{settings.receive_port}"
    if settings.receive_tls_cert is not None:
        return OK, f"something listens at {where}, and speaks TLS if it is `medflow receive`"
    host = "127.0.0.1" if settings.receive_host == "0.0.0.0" else settings.receive_host  # noqa: S104 - compared
    node = DicomNode(address=f"{settings.receive_aet}@{f'[{host}]' if ':' in host else host}:{settings.receive_port}")
    calling = settings.receive_allow[0] if settings.receive_allow else settings.receive_aet
    try:
        echo(node, calling, timeout_s)
    except (ServerUnavailable, ConfigurationError) as error:
        return FAILED, f"something else than our receiver may listen at {where}: {error.message}"
    return OK, f"{settings.receive_aet} answers at {where}"
