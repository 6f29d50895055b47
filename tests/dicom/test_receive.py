"""The receiver, spoken to by dcmtk's programs and, where they cannot be made to, by pynetdicom as a sender."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path

import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom.data import get_testdata_file
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_items import PresentationDataValueItem

from medflow.config import Settings, load_settings
from medflow.dicom import lane
from medflow.dicom.listener import allowed
from medflow.dicom.receive import Receiver, receiver
from medflow.dicom.spool import PARTIAL
from medflow.errors import ConfigurationError
from medflow.ingest.dicom import ingest_dicom
from tests.factories_dicom import slice_of, to_bytes, write_series
from tests.services import free_port
from tests.services.dcmtk import program, run

FILES = {  # what storescu is told to propose, and a file that needs it
    "uncompressed": ("-x=", "CT_small.dcm"),
    "big endian": ("-xb", "SC_rgb_small_odd_big_endian.dcm"),
    "deflated": ("-xd", "image_dfl.dcm"),
    "JPEG extended": ("-xx", "JPEG-lossy.dcm"),
    "JPEG-LS": ("-xu", "JPEGLSNearLossless_16.dcm"),
    "JPEG 2000": ("-xw", "JPEG2000.dcm"),
    "RLE": ("-xr", "MR_small_RLE.dcm"),
}


def path_of(name: str) -> Path:
    return Path(str(get_testdata_file(name)))


@contextmanager
def receiving(home: Path, **options: object) -> Iterator[Receiver]:
    """A receiver in this process, on a free port."""
    settings = load_settings(home=home, receive_port=0, receive_min_free_mib=0, **options)
    running = receiver(settings)
    running.start()
    hurry = threading.Event()
    hurry.set()
    try:
        yield running
    finally:
        running.stop(hurry)


@contextmanager
def service(
    home: Path, *words: object, associations: int = 16, **popen: object
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`medflow receive` as its own process; its log is in home.log beside its home."""
    port = free_port()
    log = home.with_suffix(".log")
    command = [sys.executable, "-m", "medflow.cli", "--home", home, "receive", "--port", port, *words]
    environment = {**os.environ, "MEDFLOW_RECEIVE_MIN_FREE_MIB": "0", "MEDFLOW_RECEIVE_GRACE_S": "20"}
    environment["MEDFLOW_RECEIVE_ASSOCIATIONS"] = str(associations)
    with log.open("a") as file:
        process = subprocess.Popen([*map(str, command)], env=environment, stderr=file, text=True, **popen)
    try:
        wait_until(lambda: f"127.0.0.1:{port}" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield process, port
    finally:
        process.kill()
        process.wait()


def wait_until(true: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def spooled(home: Path) -> list[Path]:
    return sorted((home / "received").glob("*/*.dcm"))


def partial(home: Path) -> list[Path]:
    return sorted((home / "received").glob(f"*/{PARTIAL}*"))


def data_set(path: Path) -> bytes:
    """What follows the file meta group."""
    content = path.read_bytes()
    assert content[128:136] == b"DICM\x02\x00\x00\x00"
    return content[144 + int.from_bytes(content[140:144], "little") :]


def series(folder: Path, count: int, **elements: object) -> list[Path]:
    return write_series(folder, [slice_of(number, **elements) for number in range(count)])


@contextmanager
def association(port: int, *contexts: tuple[str, list[str]], aet: str = "MEDFLOW", **options) -> Iterator[Association]:
    entity = AE("SENDER")
    for syntax, transfer in contexts or ((CTImageStorage, [ExplicitVRLittleEndian]),):
        entity.add_requested_context(syntax, transfer)
    opened = entity.associate("127.0.0.1", port, ae_title=aet, **options)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


# --- what is taken -----------------------------------------------------------------------------------------------


def test_an_echo_is_answered(tmp_path):
    with receiving(tmp_path) as running:
        done = run("echoscu", "-aec", "MEDFLOW", *running.address)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("propose", "name"), FILES.values(), ids=FILES)
def test_what_storescu_sends_is_stored_in_its_own_transfer_syntax(tmp_path, propose, name):
    with receiving(tmp_path) as running:
        done = run("storescu", propose, "-aec", "MEDFLOW", *running.address, path_of(name))

    assert done.returncode == 0, done.stderr
    [stored] = spooled(tmp_path)
    sent, got = pydicom.dcmread(path_of(name)), pydicom.dcmread(stored)
    assert got.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert got.file_meta.MediaStorageSOPInstanceUID == sent.SOPInstanceUID
    assert got.PixelData.rstrip(b"\0") == sent.PixelData.rstrip(b"\0")
    assert got.get("PatientID") == sent.get("PatientID")


@pytest.mark.parametrize("name", [name for _, name in FILES.values()])
def test_the_stored_data_set_is_the_bytes_that_were_sent(tmp_path, monkeypatch, name):
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)  # the sender reads the file's bytes, too
    sent = pydicom.dcmread(path_of(name), stop_before_pixels=True)

    with receiving(tmp_path) as running:
        wanted = (sent.SOPClassUID, [sent.file_meta.TransferSyntaxUID])
        with association(running.address[1], wanted) as sender:
            status = sender.send_c_store(path_of(name))

    assert status.Status == 0x0000
    [stored] = spooled(tmp_path)
    assert data_set(stored) == data_set(path_of(name))


def test_a_file_is_named_by_its_sha256_and_found_in_the_folder_of_its_day(tmp_path):
    with receiving(tmp_path) as running:
        run("storescu", "-aec", "MEDFLOW", *running.address, path_of("CT_small.dcm"))

    [stored] = spooled(tmp_path)
    assert stored.stem == sha256(stored.read_bytes()).hexdigest()
    assert abs(datetime.fromisoformat(stored.parent.name + "T00:00Z") - datetime.now(UTC)) < timedelta(days=2)


def test_the_same_object_from_another_sender_is_one_file(tmp_path):
    with receiving(tmp_path) as running:
        for sender in ("CT1", "PACS"):
            done = run("storescu", "-aet", sender, "-aec", "MEDFLOW", *running.address, path_of("CT_small.dcm"))
            assert done.returncode == 0, done.stderr

    assert len(spooled(tmp_path)) == 1


def test_a_context_is_accepted_as_its_sender_prefers(tmp_path):
    wanted = [JPEG2000Lossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian]

    with receiving(tmp_path) as running:
        contexts = (SecondaryCaptureImageStorage, wanted), (SecondaryCaptureImageStorage, wanted[1:])
        with association(running.address[1], *contexts) as sender:
            accepted = [context.transfer_syntax[0] for context in sender.accepted_contexts]

    assert accepted == [JPEG2000Lossless, ExplicitVRLittleEndian]


def test_a_retired_storage_class_that_archives_still_hold_is_taken(tmp_path):
    retired = "1.2.840.10008.5.1.4.1.1.6"
    image = slice_of(SOPClassUID=retired)
    to_bytes(image)  # gives it file meta

    with receiving(tmp_path) as running:
        with association(running.address[1], (retired, [ExplicitVRLittleEndian])) as sender:
            status = sender.send_c_store(image)

    assert status.Status == 0x0000
    assert len(spooled(tmp_path)) == 1


def test_two_associations_at_once_lose_nothing(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders):
        series(folder, 100, study=number + 1)

    with receiving(tmp_path / "home") as running:
        where = [str(part) for part in running.address]
        senders = [
            subprocess.Popen([program("storescu"), "-aec", "MEDFLOW", *where, "+sd", str(folder)]) for folder in folders
        ]
        statuses = [sender.wait(timeout=60) for sender in senders]

    assert statuses == [0, 0]
    stored = spooled(tmp_path / "home")
    assert all(path.stem == sha256(path.read_bytes()).hexdigest() for path in stored)
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in stored}
    assert uids == {pydicom.dcmread(path).SOPInstanceUID for folder in folders for path in folder.iterdir()}
    assert len(stored) == 200


def test_ingest_takes_what_was_received(tmp_path, settings: Settings, store):
    series(tmp_path / "sent", 5)
    with receiving(settings.home) as running:
        run("storescu", "-aec", "MEDFLOW", *running.address, "+sd", tmp_path / "sent")
    (spooled(settings.home)[0].parent / f"{PARTIAL}xyz").write_bytes(b"half")  # being written

    tally = ingest_dicom(store, settings, [settings.home / "received"])

    assert (tally.offered, tally.stored) == (5, 5)


def test_the_command_takes_what_was_received_and_removes_it(tmp_path):
    home = tmp_path / "home"
    series(tmp_path / "sent", 5)
    with receiving(home) as running:
        run("storescu", "-aec", "MEDFLOW", *running.address, "+sd", tmp_path / "sent")

    words = "--home", home, "ingest", "dicom", home / "received", "--remove-received", "--json"
    done = subprocess.run(
        [sys.executable, "-m", "medflow.cli", *map(str, words)], capture_output=True, text=True, timeout=60
    )

    account = json.loads(done.stdout)
    assert (account["stored"], account["notes"]["removed"]) == (5, 5)
    assert spooled(home) == []


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_sender_that_calls_another_title_is_refused(tmp_path, caplog):
    with receiving(tmp_path) as running, caplog.at_level("INFO", "medflow"):
        done = run("storescu", "-aec", "OTHER", *running.address, path_of("CT_small.dcm"))

    assert done.returncode != 0
    assert "Called AE Title Not Recognized" in done.stderr
    assert spooled(tmp_path) == []


def test_only_the_titles_allowed_may_send(tmp_path):
    with receiving(tmp_path, receive_allow=("CT1", "CT2")) as running:
        allowed = run("echoscu", "-aet", "CT2", "-aec", "MEDFLOW", *running.address)
        other = run("echoscu", "-aet", "CT3", "-aec", "MEDFLOW", *running.address)

    assert allowed.returncode == 0, allowed.stderr
    assert "Calling AE Title Not Recognized" in other.stderr


def test_more_associations_than_allowed_are_to_try_again(tmp_path):
    with receiving(tmp_path, receive_associations=1) as running:
        with association(running.address[1]):
            done = run("echoscu", "-aec", "MEDFLOW", *running.address)
        again = run("echoscu", "-aec", "MEDFLOW", *running.address)

    assert "Rejected Transient" in done.stderr
    assert again.returncode == 0, again.stderr


def test_an_object_is_refused_while_the_disk_is_nearly_full(tmp_path):
    with receiving(tmp_path) as running:
        running.spool.min_free_bytes = 1 << 60
        with association(running.address[1]) as sender:
            image = pydicom.dcmread(path_of("CT_small.dcm"))
            refused = sender.send_c_store(image)
            running.spool.min_free_bytes = 0
            taken = sender.send_c_store(image)

    assert (refused.Status, taken.Status) == (0xA700, 0x0000)


def test_an_object_that_cannot_be_written_whole_is_refused_and_leaves_nothing(tmp_path):
    home = tmp_path / "home"
    small, large = series(tmp_path / "sent", 2)
    large.write_bytes(to_bytes(slice_of(1, ImageComments="x" * 9000)))

    def few_bytes_a_file() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    with service(home, preexec_fn=few_bytes_a_file) as (_, port):
        done = run("storescu", "-v", "-nh", "-aec", "MEDFLOW", "127.0.0.1", port, large)
        after = run("storescu", "-aec", "MEDFLOW", "127.0.0.1", port, small)

    assert re.search(r"0x?a700|Refused: OutOfResources|Refused: Out of Resources", done.stderr + done.stdout, re.I)
    assert after.returncode == 0, after.stderr
    assert len(spooled(home)) == 1
    assert partial(home) == []


def test_an_object_without_content_is_not_understood(tmp_path):
    with receiving(tmp_path) as running, association(running.address[1]) as sender:
        request = C_STORE()
        request.MessageID, request.Priority = 1, 0
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, "1.2.3"
        request.DataSet = BytesIO(b"\x08\x00")
        sender._reactor_checkpoint.clear()
        sender.dimse.send_msg(request, 1)
        _, response = sender.dimse.get_msg(block=True)
        sender._reactor_checkpoint.set()

    assert response.Status == 0xC000
    assert spooled(tmp_path) == []


def test_an_object_past_the_limit_is_cut_off_before_it_fills_the_memory(tmp_path):
    image = slice_of(PixelData=bytes(4_000_000))
    to_bytes(image)
    with receiving(tmp_path, max_input_bytes=1_000_000) as running:
        with association(running.address[1]) as sender:
            status = sender.send_c_store(image)
        again = run("echoscu", "-aec", "MEDFLOW", *running.address)

    assert "Status" not in status
    assert again.returncode == 0
    assert spooled(tmp_path) == []


def test_a_pdu_that_claims_to_be_huge_is_not_waited_for(tmp_path):
    with receiving(tmp_path) as running, socket.create_connection(running.address, timeout=10) as peer:
        peer.sendall(b"\x01\x00" + (1 << 31).to_bytes(4, "big") + bytes(1000))
        with suppress(ConnectionResetError):
            while peer.recv(1000):  # an abort, at most, then the end
                pass
        again = run("echoscu", "-aec", "MEDFLOW", *running.address)

    assert again.returncode == 0


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """ca.pem, and NAME.pem with NAME.key of it for server and client; stranger.pem is of nobody."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = ec.generate_private_key(ec.SECP256R1())
    _certify(folder, "ca", authority, "ca", authority, ca=True)
    for name in ("server", "client"):
        _certify(folder, name, ec.generate_private_key(ec.SECP256R1()), "ca", authority)
    stranger = ec.generate_private_key(ec.SECP256R1())
    _certify(folder, "stranger", stranger, "stranger", stranger)
    return folder


def _certify(folder: Path, name: str, key, issuer: str, issuer_key, *, ca: bool = False) -> None:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    (folder / f"{name}.pem").write_bytes(
        builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def tls_options(folder: Path) -> dict[str, Path]:
    return {
        "receive_tls_cert": folder / "server.pem",
        "receive_tls_key": folder / "server.key",
        "receive_tls_ca": folder / "ca.pem",
    }


def test_a_sender_with_a_certificate_of_the_authority_is_heard(tmp_path, certificates):
    with receiving(tmp_path, **tls_options(certificates)) as running:
        shown = "+tls", certificates / "client.key", certificates / "client.pem", "+cf", certificates / "ca.pem"
        done = run("storescu", *shown, "-aec", "MEDFLOW", *running.address, path_of("CT_small.dcm"))

    assert done.returncode == 0, done.stderr
    assert len(spooled(tmp_path)) == 1


@pytest.mark.parametrize("shown", [None, "stranger"])
def test_a_sender_without_a_certificate_of_the_authority_is_not_heard(tmp_path, certificates, shown):
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    context.check_hostname = False
    if shown is not None:
        context.load_cert_chain(certificates / f"{shown}.pem", certificates / f"{shown}.key")

    with receiving(tmp_path, **tls_options(certificates)) as running:
        with association(running.address[1], tls_args=(context, "server")) as sender:
            heard = sender.is_established
        plain = run("echoscu", "-aec", "MEDFLOW", *running.address)

    assert not heard
    assert plain.returncode != 0


def test_a_peer_that_never_finishes_its_handshake_holds_up_nobody(tmp_path, certificates):
    with receiving(tmp_path, **tls_options(certificates)) as running:
        with socket.create_connection(running.address):
            shown = "+tls", certificates / "client.key", certificates / "client.pem", "+cf", certificates / "ca.pem"
            began = time.monotonic()
            done = run("echoscu", *shown, "-aec", "MEDFLOW", *running.address)

    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"receive_tls_cert": "server.pem"}, "--tls-key"),
        ({"receive_tls_cert": "server.pem", "receive_tls_key": "client.key"}, "key"),
        ({"receive_tls_cert": "none.pem", "receive_tls_key": "server.key"}, "none.pem"),
    ],
)
def test_tls_files_that_do_not_fit_are_told_of_before_anything_is_sent(tmp_path, certificates, wrong, named):
    options = {name: certificates / file for name, file in wrong.items()}

    with pytest.raises(ConfigurationError, match=re.escape(named)), receiving(tmp_path, **options):
        pass


# --- its life ------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_told_of(tmp_path):
    with receiving(tmp_path) as running:
        settings = load_settings(home=tmp_path / "other", receive_port=running.address[1])
        with pytest.raises(ConfigurationError, match="--port"):
            receiver(settings).start()


def children(process: subprocess.Popen) -> list[int]:
    """Its receiving processes."""
    ids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in ids if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_what_several_processes_acknowledged_before_one_and_then_all_were_killed_is_on_disk_whole(tmp_path):
    home, sent = tmp_path / "home", [tmp_path / f"sent{number}" for number in range(4)]
    files = [path for number, folder in enumerate(sent) for path in series(folder, 120, study=number + 1)]

    with service(home, "--processes", 2) as (process, port):
        workers = children(process)
        command = [program("storescu"), "-v", "-aec", "MEDFLOW", "127.0.0.1", str(port), "+sd"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        senders = [subprocess.Popen([*command, str(folder)], **pipes) for folder in sent]
        wait_until(lambda: len(spooled(home)) >= 80)
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: len(spooled(home)) >= 160)
        process.send_signal(signal.SIGKILL)
        told = [sender.communicate(timeout=60)[0] for sender in senders]
        wait_until(lambda: not any(map(alive, workers)))  # nobody is left who would take more, or hold the port
    acknowledged = [
        path
        for text in told
        for path in re.findall(r"Sending file: (\S+)(?:(?!Sending file)[\s\S])*?Store Response \(Success\)", text)
    ]

    assert 100 <= len(acknowledged) < len(files)
    stored = {pydicom.dcmread(path).SOPInstanceUID: path for path in spooled(home)}
    assert all(path.stem == sha256(path.read_bytes()).hexdigest() for path in stored.values())
    assert {pydicom.dcmread(path).SOPInstanceUID for path in acknowledged} <= set(stored)

    with service(home, "--processes", 2) as (_, port):  # the senders send again what they were not told of, and more
        done = [run("storescu", "-aec", "MEDFLOW", "127.0.0.1", port, "+sd", folder) for folder in sent]
    assert [sender.returncode for sender in done] == [0] * 4
    assert len(spooled(home)) == len(files)


def test_associations_are_spread_over_the_processes_and_limited_over_all(tmp_path):
    words = "--processes", 2
    with service(tmp_path / "home", *words, associations=2) as (process, port):
        with association(port), association(port):
            held = {pid: len(sockets_of(pid, port)) for pid in children(process)}
            third = run("echoscu", "-aec", "MEDFLOW", "127.0.0.1", port)
        fourth = [run("echoscu", "-aec", "MEDFLOW", "127.0.0.1", port).returncode for _ in range(3)]

    assert list(held.values()) == [1, 1]
    assert "Local Limit Exceeded" in third.stderr
    assert 0 in fourth  # the two may still be ending at the first


def sockets_of(pid: int, port: int) -> list[str]:
    """The established connections of a process to this port of ours."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{line[9]}]" for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "01"}
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link in ours]


def test_a_process_that_dies_is_replaced(tmp_path):
    with service(tmp_path / "home", "--processes", 1) as (process, port):
        [worker] = children(process)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: "is replaced" in (tmp_path / "home.log").read_text())
        done = run("echoscu", "-aec", "MEDFLOW", "127.0.0.1", port)  # waits for the successor

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("networks", "taken"),
    [(("127.0.0.0/8",), True), (("127.0.0.1", "10.1.0.0/16"), True), (("10.1.0.0/16", "::1"), False)],
)
def test_only_the_addresses_allowed_may_send(tmp_path, networks, taken):
    with receiving(tmp_path, receive_allow_addresses=networks) as running:
        done = run("echoscu", "-aec", "MEDFLOW", *running.address)

    assert (done.returncode == 0) == taken


def test_an_address_that_is_not_allowed_is_refused_before_any_process_sees_it(tmp_path):
    with service(tmp_path / "home", "--processes", 1, "--allow-address", "10.0.0.0/8") as (_, port):
        done = run("echoscu", "-aec", "MEDFLOW", "127.0.0.1", port)

    assert done.returncode != 0
    assert "127.0.0.1 refused: its address" in (tmp_path / "home.log").read_text()


def test_an_address_shown_as_ipv6_is_the_ipv4_address_that_it_is():
    networks = (ip_network("10.1.0.0/16"),)

    assert allowed("::ffff:10.1.2.3", networks)
    assert not allowed("::ffff:10.2.2.3", networks)
    assert not allowed("fe80::1%eth0", networks)


def test_an_object_that_is_too_large_to_hold_goes_to_disk_while_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(lane, "HELD_BYTES", 100_000)
    image = slice_of(PixelData=os.urandom(3_000_000))
    to_bytes(image)

    with receiving(tmp_path) as running, association(running.address[1]) as sender:
        status = sender.send_c_store(image)

    [stored] = spooled(tmp_path)
    assert status.Status == 0x0000
    assert stored.stem == sha256(stored.read_bytes()).hexdigest()
    assert pydicom.dcmread(stored).PixelData == image.PixelData
    assert partial(tmp_path) == []


def test_a_command_in_fragments_is_left_to_pynetdicom_and_taken(tmp_path, monkeypatch):
    whole = PresentationDataValueItem.encode

    def in_two(item: PresentationDataValueItem) -> bytes:
        data = item.presentation_data_value
        if data[0] != 0x03 or item.presentation_context_id is None:
            return whole(item)
        parts = b"\x01" + data[1:21], b"\x03" + data[21:]
        return b"".join(struct.pack(">LB", len(part) + 1, item.presentation_context_id) + part for part in parts)

    with receiving(tmp_path) as running, association(running.address[1]) as sender:
        image = pydicom.dcmread(path_of("CT_small.dcm"))
        with monkeypatch.context() as patched:
            patched.setattr(PresentationDataValueItem, "encode", in_two)
            patched.setattr(PresentationDataValueItem, "__len__", lambda item: len(item.encode()))
            request = C_STORE()
            request.MessageID, request.Priority = 1, 0
            request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, image.SOPInstanceUID
            request.DataSet = BytesIO(to_bytes(image)[-30000:])
            sender._reactor_checkpoint.clear()
            sender.dimse.send_msg(request, 1)
            time.sleep(0.3)
        _, response = sender.dimse.get_msg(block=True)
        sender._reactor_checkpoint.set()

    assert response.Status == 0x0000
    assert len(spooled(tmp_path)) == 1


def test_a_command_without_end_is_cut_off(tmp_path):
    part = b"\x01" + bytes(16_000)
    item = struct.pack(">LB", len(part) + 1, 1) + part
    pdu = struct.pack(">BxL", 4, len(item)) + item

    with receiving(tmp_path) as running, association(running.address[1]) as sender:
        with suppress(OSError):
            for _ in range(6):
                sender.dul.socket.socket.sendall(pdu)
        wait_until(lambda: not sender.is_established)


def test_asked_to_stop_it_lets_the_running_association_end_and_takes_no_other(tmp_path):
    home, sent = tmp_path / "home", tmp_path / "sent"
    files = series(sent, 300)

    with service(home) as (process, port):
        sender = subprocess.Popen([program("storescu"), "-aec", "MEDFLOW", "127.0.0.1", str(port), "+sd", str(sent)])
        wait_until(lambda: len(spooled(home)) >= 10)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in home.with_suffix(".log").read_text())
        other = run("echoscu", "-aec", "MEDFLOW", "127.0.0.1", port)
        statuses = sender.wait(timeout=60), process.wait(timeout=30)

    assert statuses == (0, 0)
    assert other.returncode != 0
    assert len(spooled(home)) == len(files)


def test_asked_twice_it_does_not_wait_for_who_sends_nothing(tmp_path):
    home = tmp_path / "home"
    with service(home) as (process, port), association(port) as sender:
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in home.with_suffix(".log").read_text())
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=10)
        wait_until(lambda: sender.is_aborted)

    assert status == 0
    assert "1 associations were cut off" in home.with_suffix(".log").read_text()


def test_the_log_says_who_sent_how_much_and_nothing_of_what(tmp_path):
    home = tmp_path / "home"
    series(tmp_path / "sent", 3, PatientID="SECRET-4711")

    with service(home, "--allow", "CT1") as (_, port):
        run("storescu", "-aet", "CT1", "-aec", "MEDFLOW", "127.0.0.1", port, "+sd", tmp_path / "sent")
        run("storescu", "-aet", "CT2", "-aec", "MEDFLOW", "127.0.0.1", port, "+sd", tmp_path / "sent")
        wait_until(lambda: "CT2" in home.with_suffix(".log").read_text())

    log = home.with_suffix(".log").read_text()
    assert "'CT1' at 127.0.0.1 released: 3 stored, 0 refused" in log
    assert "'CT2' at 127.0.0.1 refused: Calling AE title not recognised" in log
    assert not re.search(r"SECRET|Nobody|1\.2\.826", log)
