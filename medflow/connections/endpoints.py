"""Servers as the configuration names them: an address, who we are there, and what of it is wanted.

Every secret is a reference or a value that no repr shows. `public` is what may be shown, logged and stored.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

AE_TITLE = r"[!-\[\]-~][ -\[\]-~]{0,15}"
ADDRESS = re.compile(rf"(?P<aet>{AE_TITLE})@(?P<host>[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{{1,5}})")


def base_url(value: str) -> str:
    """A base URL as it is shown and stored: no credentials, no query, no slash at its end.

    Raises
    ------
    ValueError
        It is none.
    """
    try:
        parts = urlsplit(value.strip())
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("not an http or https address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL here holds no credentials, as it is shown in messages: put them under auth")
    if parts.query or parts.fragment:
        raise ValueError("a base URL has no query and no fragment")
    return value.strip().rstrip("/")


def token_url(value: str) -> str:
    """The address of a token endpoint, as an assertion names it: a slash at its end is part of it. As `base_url`."""
    base_url(value)
    return value.strip()


def ae_address(value: str) -> str:
    """``AET@host:port``, checked; raises ValueError."""
    found = ADDRESS.fullmatch(value.strip())
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ValueError("a DICOM application is written AET@host:port, for example PACS@10.1.2.3:11112")
    return value.strip()


BaseUrl = Annotated[str, AfterValidator(base_url)]
TokenUrl = Annotated[str, AfterValidator(token_url)]
AeAddress = Annotated[str, AfterValidator(ae_address)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(_Model):
    """Files (PEM): ``ca`` that the server's certificate must be of, ``cert`` and ``key`` that we show (mutual TLS)."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together")
        return self


class Basic(_Model):
    """HTTP basic authentication (RFC 7617)."""

    type: Literal["basic"]
    user: str
    password: SecretStr


class Bearer(_Model):
    """A token that somebody else made (RFC 6750)."""

    type: Literal["bearer"]
    token: SecretStr


class ClientCredentials(_Model):
    """OAuth 2.0 client credentials (RFC 6749 section 4.4).

    ``method`` is how the secret is shown: in a header, or in the form. ``tls`` is the token endpoint's, where it is not
    the server's.
    """

    type: Literal["client-credentials"]
    token_url: TokenUrl
    client_id: str
    client_secret: SecretStr
    scope: str | None = None
    method: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"
    tls: Tls | None = None


class SmartBackend(_Model):
    """SMART Backend Services: client credentials with a signed assertion (private_key_jwt, RFC 7523).

    ``key`` is a private key, PEM or JWK; ``kid`` names it to the server (default: the JWK's, or its RFC 7638
    thumbprint). Without ``token_url`` it is what the server's ``.well-known/smart-configuration`` names. ``scope`` is
    ``system/*.read`` unless it is given, and for a target ``system/*.write`` besides. ``tls`` is the token endpoint's,
    where it is not the server's.
    """

    type: Literal["smart-backend"]
    client_id: str
    key: SecretStr
    kid: str | None = None
    alg: Literal["RS384", "ES384"] = "RS384"
    token_url: TokenUrl | None = None
    scope: str | None = None
    tls: Tls | None = None


Auth = Annotated[Basic | Bearer | ClientCredentials | SmartBackend, Field(discriminator="type")]


class HttpServer(_Model):
    """A server that speaks HTTP: its base URL, who we are to it, and TLS files."""

    url: BaseUrl
    auth: Auth | None = None
    tls: Tls = Tls()

    @property
    def public(self) -> str:
        """The base URL."""
        return self.url


class DicomNode(_Model):
    """An application that speaks DICOM over TCP, as ``AET@host:port``.

    ``calling_aet`` is what we are called there (default: MEDFLOW_RECEIVE_AET). ``timeout_s`` is how long it may be
    silent.
    """

    address: AeAddress
    calling_aet: Annotated[str, Field(pattern=f"^{AE_TITLE}$")] | None = None
    tls: Tls | None = None
    timeout_s: float = Field(default=120.0, gt=0)

    @property
    def aet(self) -> str:
        """Its AE title."""
        return self.address.rpartition("@")[0]

    @property
    def host(self) -> str:
        """Its host, without the brackets of an IPv6 address."""
        return self.address.rpartition("@")[2].rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Its TCP port."""
        return int(self.address.rpartition(":")[2])

    @property
    def public(self) -> str:
        """The address."""
        return self.address


# --- sources -----------------------------------------------------------------------------------------------------


class Files(_Model):
    """Files that inputs come from.

    ``reference`` is the FASTA that a VCF's REF alleles are checked against, ``samples`` the CSV sheet that says whose
    its samples are (default: MEDFLOW_SAMPLE_SHEET). ``remove_received`` ends the life of what
    `medflow receive` spooled there, once the store has it.
    """

    kind: Literal["dicom", "fhir", "vcf", "fasta"]
    paths: tuple[Path, ...]
    reference: Path | None = None
    samples: Path | None = None
    in_place: bool = False
    remove_received: bool = False


class Wanted(_Model):
    """Which studies of an image archive are wanted, each condition met.

    ``days`` counts back from now; ``since`` and ``until`` are dates (of the study, both included) and win over it.
    """

    days: int | None = Field(7, ge=0)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    modalities: tuple[str, ...] = ()
    accession_number: str | None = Field(None, repr=False)
    patient_id: str | None = Field(None, repr=False)
    studies: tuple[str, ...] = ()  # Study Instance UIDs


class DicomWebSource(HttpServer, Wanted):
    """An archive that speaks DICOMweb; services with another path than the base URL's have it as a prefix."""

    kind: Literal["dicomweb"]
    qido_prefix: str | None = None
    wado_prefix: str | None = None


class PacsSource(DicomNode, Wanted):
    """An archive that speaks C-FIND, and C-GET, or C-MOVE to ``move_to`` (default: MEDFLOW_RECEIVE_AET).

    ``move_port`` is where the archive has that application: we listen there for as long as something is fetched, or
    `medflow receive` does already (default: MEDFLOW_RECEIVE_PORT).
    """

    kind: Literal["pacs"]
    retrieve: Literal["get", "move"] = "get"
    move_to: Annotated[str, Field(pattern=f"^{AE_TITLE}$")] | None = None
    move_port: int | None = Field(default=None, ge=1, le=65535)


RECORDS = (
    "Patient",
    "Encounter",
    "Condition",
    "Observation",
    "MedicationStatement",
    "MedicationRequest",
    "MedicationAdministration",
    "Procedure",
    "AllergyIntolerance",
    "DocumentReference",
    "ImagingStudy",
    "Specimen",
    "ServiceRequest",
)


class FhirSource(HttpServer):
    """A FHIR R4 server that records come from.

    ``mode``: ``search`` by ``_lastUpdated``, type by type; ``export`` (Bulk Data) of ``level`` "system", "patient" or
    "Group/<id>"; ``everything`` of each patient that changed. ``overlap_s`` is how far a window reaches back into the
    one before it, for servers whose clocks differ or that index late. ``source`` is the system that its ids are unique
    in (default: MEDFLOW_SOURCE); ``also`` are other base URLs that the server calls itself by, as behind a proxy.
    ``deletions``: whether its history is asked for what is gone. ``export_hours`` is how long one run waits for an
    export and its files; ``file_hosts`` (``host`` or ``host:port``) are other hosts whose files of an export may be
    asked for with our credentials, where the server says that they want them.
    """

    kind: Literal["fhir-server"]
    mode: Literal["search", "export", "everything"] = "search"
    types: tuple[str, ...] = RECORDS
    count: int = Field(500, ge=1, le=10000)
    since: AwareDatetime | None = None
    include: tuple[str, ...] = ()
    revinclude: tuple[str, ...] = ()
    level: Annotated[str, Field(pattern=r"^(system|patient|Group/[A-Za-z0-9\-.]{1,64})$")] = "system"
    overlap_s: float = Field(300.0, ge=0)
    export_hours: float = Field(12.0, gt=0)
    file_hosts: tuple[str, ...] = ()
    source: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = None
    also: tuple[BaseUrl, ...] = ()
    deletions: bool = True


AnySource = Files | DicomWebSource | PacsSource | FhirSource
Source = Annotated[AnySource, Field(discriminator="kind")]


# --- targets -----------------------------------------------------------------------------------------------------


class FolderTarget(_Model):
    """A folder: NDJSON and DICOM files."""

    kind: Literal["folder"]
    path: Path

    @property
    def public(self) -> str:
        """Its absolute path."""
        return str(self.path.expanduser().resolve())


class FhirTarget(HttpServer):
    """A FHIR R4 server that result resources are written to."""

    kind: Literal["fhir"]


class DicomWebTarget(HttpServer):
    """An archive that result objects (segmentations, heat maps) are sent to by STOW-RS."""

    kind: Literal["dicomweb"]
    stow_prefix: str | None = None


class PacsTarget(DicomNode):
    """An archive that result objects are sent to by C-STORE."""

    kind: Literal["pacs"]


def written_target(value: object) -> object:
    """The fields of a target that is written as text: a FHIR base URL, ``AET@host:port``, or else a folder.

    Credentials in a URL become its authentication: they are no part of what is shown.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text:
        raise ValueError("empty: name a folder, a FHIR base URL or AET@host:port")
    if "://" in text:
        parts = urlsplit(text)
        if parts.username is None:
            return {"kind": "fhir", "url": text}
        auth = {"type": "basic", "user": unquote(parts.username), "password": unquote(parts.password or "")}
        return {"kind": "fhir", "url": text.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1), "auth": auth}
    if ADDRESS.fullmatch(text):
        return {"kind": "pacs", "address": text}
    return {"kind": "folder", "path": text}


AnyTarget = FolderTarget | FhirTarget | DicomWebTarget | PacsTarget
Target = Annotated[AnyTarget, Field(discriminator="kind"), BeforeValidator(written_target)]
