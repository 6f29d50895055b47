"""Certificates of an authority of the tests' own, made by openssl: for a server at 127.0.0.1, and for a client."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.services import missing


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A certificate and its key, PEM files."""

    cert: Path
    key: Path


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """What one authority has signed; ``stranger`` is signed by nobody but itself."""

    ca: Path
    server: Pair
    client: Pair
    stranger: Pair


def certificates(folder: Path) -> Certificates:
    """Make them in ``folder``."""
    authority = _self_signed(folder, "authority")
    return Certificates(
        ca=authority.cert,
        server=_signed(folder, "server", authority, "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        client=_signed(folder, "client", authority, "extendedKeyUsage=clientAuth"),
        stranger=_self_signed(folder, "stranger"),
    )


def private_key(folder: Path, name: str, *how: str) -> Path:
    """A private key (PEM) as ``openssl genpkey`` makes it, for example of ``-algorithm RSA``."""
    path = folder / f"{name}.pem"
    _openssl("genpkey", *how, "-out", path)
    return path


def _self_signed(folder: Path, name: str) -> Pair:
    pair = Pair(cert=folder / f"{name}.crt", key=folder / f"{name}.key")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl("req", "-x509", *new, "-days", "2", "-subj", f"/CN={name}", "-keyout", pair.key, "-out", pair.cert)
    return pair


def _signed(folder: Path, name: str, authority: Pair, extension: str) -> Pair:
    pair = Pair(cert=folder / f"{name}.crt", key=folder / f"{name}.key")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    request = folder / f"{name}.csr"
    _openssl("req", *new, "-subj", f"/CN={name}", "-addext", extension, "-keyout", pair.key, "-out", request)
    by = ("-CA", authority.cert, "-CAkey", authority.key, "-CAcreateserial")
    _openssl("x509", "-req", "-in", request, *by, "-days", "2", "-copy_extensions", "copy", "-out", pair.cert)
    return pair


def _openssl(*arguments: str | Path) -> None:
    if shutil.which("openssl") is None:
        missing("openssl is not installed: apt-get install openssl")
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
