"""The short way of a C-STORE through an association: from the socket to the spool and back in one thread.

pynetdicom agrees with the sender and takes everything else; between its two threads and its queues, a C-STORE would
wait for milliseconds. So while an association is established (PS3.8, 9.2: Sta6) its PDUs are looked at here first. What
is not a whole, plain C-STORE command followed by its data set is handed over as it came.
"""

from __future__ import annotations

import logging
import re
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from pynetdicom.association import Association

from medflow.dicom.spool import Incoming, Spool
from medflow.errors import place_of

log = logging.getLogger(__name__)

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000  # PS3.4, Table B.2-1
IMPLEMENTATION = f"2.25.{uuid5(NAMESPACE_URL, 'medflow/receive').int}"
LARGEST_PDU_BYTES = 1 << 20  # an association request may list many contexts
HELD_BYTES = 4 << 20  # a larger object goes to disk while it comes
WHOLE_COMMAND_BYTES = 2048  # of a C-STORE: some 150
INBOX_BYTES = 64 << 10
WAIT_MS = 50  # for a sender, between looks at what else is to be done
P_DATA, C_STORE_RQ, C_STORE_RSP, NO_DATA_SET = 0x04, 0x0001, 0x8001, 0x0101
UID = re.compile(rb"[0-9.]{1,64}")


class _Violation(Exception):
    """A PDU that the standard does not allow here."""


class _Over(Exception):
    """The connection was closed on this side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A C-STORE request (PS3.7, 9.3.1.1)."""

    context: int
    message: int
    sop_class: str
    sop_instance: str

    @classmethod
    def of(cls, command: bytes, context: int) -> Request | None:
        """What a command set says, or None if it is no plain C-STORE request with a data set."""
        elements: dict[int, bytes] = {}
        at = 0
        while at + 8 <= len(command):
            group, element, length = struct.unpack_from("<HHL", command, at)
            value = command[at + 8 : at + 8 + length]
            if group or len(value) != length:
                return None
            elements[element] = value
            at += 8 + length
        numbers = {key: int.from_bytes(elements.get(key, b""), "little") for key in (0x0100, 0x0110, 0x0800)}
        uids = [elements.get(key, b"").rstrip(b"\0 ") for key in (0x0002, 0x1000)]
        if numbers[0x0100] != C_STORE_RQ or 0x0110 not in elements or not all(map(UID.fullmatch, uids)):
            return None
        if 0x0800 not in elements or numbers[0x0800] == NO_DATA_SET:
            return None
        return cls(context=context, message=numbers[0x0110], sop_class=uids[0].decode(), sop_instance=uids[1].decode())

    def answer(self, status: int) -> bytes:
        """The PDU of its response (PS3.7, 9.3.1.2)."""
        command = b"".join(
            (
                _uid(0x0002, self.sop_class),
                struct.pack("<HHLH", 0, 0x0100, 2, C_STORE_RSP),
                struct.pack("<HHLH", 0, 0x0120, 2, self.message),
                struct.pack("<HHLH", 0, 0x0800, 2, NO_DATA_SET),
                struct.pack("<HHLH", 0, 0x0900, 2, status),
                _uid(0x1000, self.sop_instance),
            )
        )
        command = struct.pack("<HHLL", 0, 0, 4, len(command)) + command
        size = len(command) + 2
        return struct.pack(">BxLLBB", P_DATA, size + 4, size, self.context, 0x03) + command


class _Checkpoint:
    """Where the association's own loop waits: for long while the lane is in use, as there is nothing for it then.

    It would look a thousand times a second. Whoever sends by pynetdicom's means holds it here, as ever.
    """

    def __init__(self) -> None:
        self.clear, self.set = (free := threading.Event()).clear, free.set
        self._free, self._needed = free, threading.Event()
        free.set()
        self._needed.set()

    def in_use(self, used: bool) -> None:
        """Whether the lane is."""
        if used:
            self._needed.clear()
        else:
            self._needed.set()

    def wait(self) -> None:
        """Return when the loop has reason to look."""
        self._free.wait()
        self._needed.wait(WAIT_MS / 1000)
        self._free.wait()


class Lane:
    """One association's. ``told`` is called with the status of each object before its sender is answered."""

    def __init__(self, association: Association, spool: Spool, max_bytes: int, told: Callable[[int], None]) -> None:
        self._association: Any = association
        self._dul: Any = association.dul
        self._connection: Any = association.dul.socket
        self._socket: socket.socket = self._connection.socket
        self._spool = spool
        self._max_bytes = max_bytes
        self._told = told
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN)
        self._inbox = memoryview(bytearray(INBOX_BYTES))
        self._start = self._end = 0  # of what was read and not looked at
        self._held = memoryview(bytearray(INBOX_BYTES))  # of the object under way, its file meta first
        self._filled = 0
        self._request: Request | None = None
        self._incoming: Incoming | None = None  # where an object is written that is too large to hold
        self._received = 0
        self._status = SUCCESS
        self._others: Callable[[], bool] = self._dul._is_transport_event
        self._dul._is_transport_event = self._look
        self._checkpoint = self._association._reactor_checkpoint = _Checkpoint()
        self._connection.recv = self._recv

    # --- what pynetdicom calls -------------------------------------------------------------------------------------

    def _look(self) -> bool:
        """In the thread that reads: whether something came."""
        if self._dul.state_machine.current_state != "Sta6" or self._connection.socket is None:
            self._drop()
            self._checkpoint.in_use(False)
            return self._others()
        if not self._readable():
            self._checkpoint.in_use(False)
            return False
        try:
            self._checkpoint.in_use(True)
            while self._take():
                self._dul._idle_timer.restart()
                if self._dul._kill_thread or not self._dul.to_provider_queue.empty() or not self._readable():
                    break
        except OSError:  # broken off, or silent for too long
            self._drop()
            self._dul.event_queue.put("Evt17")
        except _Violation:
            self._drop()
            self._dul.event_queue.put("Evt19")
        except _Over:
            self._drop()
        self._checkpoint.in_use(False)
        return True

    def _recv(self, count: int) -> bytearray:
        """As pynetdicom's, in one go, and none larger than any that is honest.

        pynetdicom takes a peer's word for a PDU's length, up to 4 GiB, before it knows who that is.
        """
        if count > LARGEST_PDU_BYTES:
            raise OSError("a PDU is larger than allowed")
        data = bytearray(count)
        with memoryview(data) as view:
            done = min(count, self._end - self._start)
            view[:done] = self._inbox[self._start : self._start + done]
            self._start += done
            while done < count:
                got = self._socket.recv_into(view[done:])
                if not got:
                    break
                done += got
        del data[done:]
        return data

    # --- PDUs ------------------------------------------------------------------------------------------------------

    def _readable(self) -> bool:
        if self._start < self._end or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            return True
        return bool(self._poll.poll(WAIT_MS))

    def _take(self) -> bool:
        """Take the next PDU; False if it was handed over."""
        self._need(6)
        kind, left = struct.unpack_from(">BxL", self._inbox, self._start)
        if kind != P_DATA or left > LARGEST_PDU_BYTES or self._association.dimse.message is not None:
            return self._hand_over()
        if self._request is not None:
            self._start += 6
        elif (used := self._command(left)) == 0:
            return self._hand_over()
        else:
            left -= used
        while left:
            left -= self._data(left)
        return True

    def _hand_over(self) -> bool:
        self._drop()
        self._dul._read_pdu_data()
        return False

    def _command(self, left: int) -> int:
        """Take a C-STORE's command; how many bytes of the PDU it has, 0 if it is something else, which stays."""
        self._need(12)
        size, context, control = struct.unpack_from(">LBB", self._inbox, self._start + 6)
        if control & 3 != 3 or not 2 < size <= min(left - 4, WHOLE_COMMAND_BYTES):
            return 0
        self._need(10 + size)
        request = Request.of(bytes(self._inbox[self._start + 12 : self._start + 10 + size]), context)
        accepted = self._association._accepted_cx.get(context)
        if request is None or accepted is None or not accepted.as_scp or accepted.abstract_syntax != request.sop_class:
            return 0
        if 0 < self._association.requestor.maximum_length < len(request.answer(SUCCESS)):
            return 0
        self._start += 10 + size
        self._request, self._received, self._status = request, 0, SUCCESS
        meta = file_meta(request.sop_class, request.sop_instance, accepted.transfer_syntax[0])
        self._held[: len(meta)] = meta
        self._filled = len(meta)
        return 4 + size

    def _data(self, left: int) -> int:
        """Take a fragment of the data set; how many bytes of the PDU it has."""
        self._need(6)
        size, context, control = struct.unpack_from(">LBB", self._inbox, self._start)
        request = self._request
        if request is None or control & 1 or context != request.context or not 2 <= size <= left - 4:
            raise _Violation
        self._start += 6
        self._hold(size - 2)
        if control & 2:
            status = self._kept()
            self._request = None
            self._told(status)
            self._socket.sendall(request.answer(status))
        return 4 + size

    # --- the object ------------------------------------------------------------------------------------------------

    def _hold(self, count: int) -> None:
        """Read ``count`` bytes of the object."""
        self._received += count
        if self._received > self._max_bytes:
            log.warning("an object from %s is larger than MEDFLOW_MAX_INPUT_BYTES: cut off", peer_of(self._association))
            self._connection.close()
            raise _Over
        if self._filled + count > HELD_BYTES:
            self._status = self._status or attempted(self._spill, self._association)
            self._filled = 0
        if self._filled + count > len(self._held):
            larger = memoryview(bytearray(2 * (self._filled + count)))
            larger[: self._filled] = self._held[: self._filled]
            self._held = larger
        done = min(count, self._end - self._start)
        self._held[self._filled : self._filled + done] = self._inbox[self._start : self._start + done]
        self._start += done
        self._filled += done
        while done < count:
            got = self._read(self._held[self._filled : self._filled + count - done])
            self._filled += got
            done += got

    def _spill(self) -> None:
        if self._incoming is None:
            self._incoming = self._spool.begin()
        self._incoming.hash_and_append(self._held[: self._filled])

    def _kept(self) -> int:
        """Have the object durable; the status to answer."""
        if self._received < 8:  # not even one element
            log.warning("an object from %s has no content: refused", peer_of(self._association))
            return CANNOT_UNDERSTAND
        status = self._status or attempted(self._keep, self._association)
        self._drop()
        return status

    def _keep(self) -> None:
        if self._incoming is None:
            self._spool.keep([self._held[: self._filled]])
        else:
            self._spill()
            self._spool.finish(self._incoming)

    def _drop(self) -> None:
        """Forget what is under way: it is kept, or will never be whole."""
        self._request = None
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None

    # --- bytes -----------------------------------------------------------------------------------------------------

    def _need(self, count: int) -> None:
        """Have ``count`` bytes in the inbox."""
        have = self._end - self._start
        if have >= count:
            return
        if self._start + count > INBOX_BYTES or not have:
            self._inbox[:have] = bytes(self._inbox[self._start : self._end])
            self._start, self._end = 0, have
        while self._end - self._start < count:
            self._end += self._read(self._inbox[self._end :])

    def _read(self, where: memoryview) -> int:
        got = self._socket.recv_into(where)
        if not got:
            raise OSError("closed by the peer")
        acknowledge_now(self._socket)
        return got


def attempted(write: Callable[[], object], association: Association) -> int:
    """Write, and say how it went; no reason quotes what was received."""
    try:
        write()
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        log.error("an object from %s cannot be written (%s): refused", peer_of(association), reason)
        return OUT_OF_RESOURCES
    except Exception as error:
        log.error("an unforeseen %s at %s: object refused", type(error).__name__, place_of(error))
        return CANNOT_UNDERSTAND
    return SUCCESS


def acknowledge_now(connection: socket.socket | None) -> None:
    """Acknowledge what comes at once, rather than 40 ms later: many senders hold a PDU back until its head is.

    The kernel forgets this with what is sent next, hence after every read.
    """
    if connection is not None and hasattr(socket, "TCP_QUICKACK"):
        with suppress(OSError):  # gone by now, which the next read finds out
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


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


def _uid(element: int, value: str) -> bytes:
    data = value.encode()
    data += b"\0" * (len(data) % 2)
    return struct.pack("<HHL", 0, element, len(data)) + data


def peer_of(association: Association) -> str:
    """Who sends: AE title and address; both are whatever the other side says, so nothing unprintable gets through."""
    requestor = association.requestor
    info = requestor.address_info
    return f"{requestor.ae_title.strip()!a} at {info.address if info else 'an unknown address'}"
