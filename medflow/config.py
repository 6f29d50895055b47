"""Settings, frozen, from MEDFLOW_* environment variables and a TOML file; the environment wins, setting by setting.

They are made once at the edge (CLI or flow) and passed in; nothing below reads the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args
from zoneinfo import ZoneInfo, available_timezones

from platformdirs import user_data_path
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from medflow import config_file
from medflow.connections.endpoints import (
    AeAddress,
    AnySource,
    AnyTarget,
    Auth,
    DicomWebTarget,
    PacsTarget,
    Source,
    Target,
    Tls,
)
from medflow.connections.secrets import reveal
from medflow.errors import ConfigurationError

# left out where they are empty, as deployments hand on what nobody set: an empty path would be the current folder
EMPTY_IS_UNSET = frozenset({"sample_system", "sample_sheet", "references", "regions", "genes", "gene_bed"})
LABEL_UNITS = ("unit", "encounter", "patient", "series", "study", "sequence")


class LabelTable(BaseModel):
    """A CSV file of outcomes, to hold a model's predictions against.

    ``unit`` says what ``column`` names (default: the one column that is called so): ``unit`` a surrogate id of the
    store, ``encounter`` and ``patient`` a FHIR id or ``system|value`` (or the value alone, of ``system``), ``series`` a
    SeriesInstanceUID, ``study`` a StudyInstanceUID, ``sequence`` its name. ``known`` is the column that says when an
    outcome became known, ``happened`` the one that says when it happened.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    unit: Literal["unit", "encounter", "patient", "series", "study", "sequence"] | None = None
    column: str | None = None
    system: str | None = None
    outcome: str = "outcome"
    known: str | None = None
    happened: str | None = None


class Cohort(BaseModel):
    """Which encounters a model is trained on, each condition met; one that is not given is met by all.

    ``since`` (included) and ``until`` (excluded) bound the start of the encounter; ``encounter_classes`` and
    ``encounter_types`` ("system|code") name one of which it must have; ``min_age`` and ``max_age`` are completed years
    at its start, both included. ``every`` is how many hours lie between the moments at which a model is asked that is
    anchored at the prediction time: the first so long after the start, then on until the encounter's end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    encounter_classes: tuple[str, ...] = ()
    encounter_types: tuple[str, ...] = ()
    min_age: int | None = Field(None, ge=0)
    max_age: int | None = Field(None, ge=0)
    every: float = Field(24.0, gt=0)


class _Environment(EnvSettingsSource):
    """The environment, without what counts as unset where it is empty."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        unset = {f"medflow_{name}" for name in EMPTY_IS_UNSET}
        found = super()._load_env_vars()
        return {name: value for name, value in found.items() if name not in unset or (value or "").strip()}


class LogSettings(BaseSettings):
    """How a process logs: known before anything else is."""

    model_config = SettingsConfigDict(env_prefix="MEDFLOW_", frozen=True, extra="ignore")

    log_format: Literal["text", "json"] = Field("text", description="Logs for people, or one JSON object a line.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None = Field(
        None, description="From which level on to log; each command has its own otherwise."
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value


class Settings(LogSettings):
    """Everything an installation can choose. Each field is MEDFLOW_<NAME> in the environment, and a key in the file."""

    model_config = SettingsConfigDict(env_prefix="MEDFLOW_", frozen=True, extra="forbid")

    config: Path | None = Field(
        None, description="TOML file of the other settings; default medflow.toml at home, if it is there."
    )
    home: Path = Field(default_factory=lambda: user_data_path("medflow"), description="Folder of database and objects.")
    database_url: SecretStr | None = Field(None, description="SQLAlchemy URL; default is SQLite under home.")
    objects: str | None = Field(
        None, min_length=1, description="Folder or fsspec URL (s3://bucket/prefix) of the objects; default under home."
    )
    bundles: Path | None = Field(
        None, description="Folder of the MONAI bundles that were added; default bundles/ at home."
    )
    cache_mib: int = Field(10240, ge=1, description="Local copies of objects fetched from a remote store, in MiB.")
    timezone: str | None = Field(None, description="IANA zone that places times written without one; else a reject.")
    source: str = Field("local", pattern=r"^[a-z0-9][a-z0-9.-]*$", description="Name of the system records come from.")
    issuer_systems: dict[str, str] = Field(
        default_factory=dict, description="JSON map: DICOM IssuerOfPatientID to FHIR identifier system."
    )
    default_patient_system: str | None = Field(
        None, description="FHIR identifier system of a DICOM PatientID that has no issuer."
    )
    sample_system: str | None = Field(
        None, description="FHIR identifier system that the sample names of VCF files are identifiers in."
    )
    sample_sheet: Path | None = Field(
        None, description="CSV that says whose each sample of a VCF file is: columns sample, system, value."
    )
    references: dict[str, Path] = Field(
        default_factory=dict, description="JSON map: assembly (GRCh37, GRCh38) to its FASTA file."
    )
    regions: Path | Literal["all"] | None = Field(
        None, description="BED file of the regions whose variants are scored; all: wherever they are."
    )
    genes: Path | None = Field(None, description="File of gene symbols, one a line: only their variants are scored.")
    gene_bed: Path | None = Field(
        None, description="BED file of genes, their HGNC symbols in the fourth column: where genes are."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    workers: int = Field(0, ge=0, description="Processes and threads for reading; 0 means one per core.")
    memory_mib: int = Field(0, ge=0, description="Device memory for models in MiB; 0 means what the device has free.")
    executor: Literal["process", "workers", "dask"] = Field(
        "process", description="Where chunks are scored: the flow's own process, `medflow worker`s, or Dask."
    )
    dask_address: str | None = Field(None, description="Address of the Dask scheduler; a local cluster otherwise.")
    worker_wait_s: int = Field(300, ge=1, description="How long a run waits for a worker that serves its model.")
    chunk_size: int = Field(1024, ge=1, le=4096, description="The most cases in one leased chunk.")
    lease_seconds: int = Field(900, ge=10, description="How long a chunk may take before others may have it.")
    max_attempts: int = Field(5, ge=1, description="Tries of a job or delivery before it is dead.")
    pictures: bool = Field(False, description="Show pictures in Prefect, whose database then has them.")
    result_status: Literal["preliminary", "final"] = Field("preliminary", description="Status of new results.")
    deliver_to: str | None = Field(
        None,
        description="Default target: a name in targets, several separated by commas, a folder, a FHIR base URL, or "
        "AET@host:port.",
    )
    fhir_token: SecretStr | None = Field(None, description="Bearer token for FHIR targets that have no auth.")
    http_timeout_s: float = Field(30.0, gt=0)
    max_input_bytes: int = Field(8 << 30, gt=0, description="A larger single input is rejected.")
    receive_aet: str = Field(
        "MEDFLOW", pattern=r"^[!-\[\]-~][ -\[\]-~]{0,15}$", description="AE title that `medflow receive` answers to."
    )
    receive_host: str = Field("127.0.0.1", description="Address that `medflow receive` listens at.")
    receive_port: int = Field(11112, ge=0, le=65535, description="TCP port of `medflow receive`; 0 takes any.")
    receive_into: Path | None = Field(None, description="Folder that received files lie in; default received/ at home.")
    receive_allow: tuple[str, ...] = Field((), description="JSON list of calling AE titles taken; empty means all.")
    receive_allow_addresses: tuple[IPvAnyNetwork, ...] = Field(
        (), description="JSON list of IP addresses and networks (CIDR) that senders may have; empty means all."
    )
    receive_processes: int = Field(0, ge=0, description="Receiving processes; 0 means one per core, at most 8.")
    receive_associations: int = Field(16, ge=1, description="Associations at a time, over all processes.")
    receive_timeout_s: float = Field(120.0, gt=0, description="How long a sender may be silent.")
    receive_grace_s: float = Field(30.0, ge=0, description="How long running associations have when asked to stop.")
    receive_min_free_mib: int = Field(1024, ge=0, description="Disk space in MiB below which objects are refused.")
    receive_report_to: tuple[AeAddress, ...] = Field(
        (), description="JSON list of AET@host:port: where senders are told what storage is committed."
    )
    receive_ingest: bool = Field(False, description="Have `medflow receive` take complete studies into the store.")
    receive_quiet_s: float = Field(
        60.0, gt=0, description="A study that nothing came of for so long is complete (`medflow receive --ingest`)."
    )
    receive_count_from: str | None = Field(
        None, description="Source (kind pacs) that tells how many instances a study has: complete at once with those."
    )
    receive_tls_cert: Path | None = Field(None, description="Certificate (PEM) of `medflow receive`; TLS only with it.")
    receive_tls_key: Path | None = Field(None, description="The certificate's key (PEM, unencrypted).")
    receive_tls_ca: Path | None = Field(None, description="Authority that senders' certificates must be of (PEM).")
    sources: dict[str, Source] = Field(
        default_factory=dict, description='JSON map of what nightly ingests: {"name": {"kind": ..., "paths": [...]}}.'
    )
    targets: dict[str, Target] = Field(
        default_factory=dict,
        description='JSON map of where results go: {"name": "folder or FHIR base URL", "name": {"kind": ..., ...}}.',
    )
    labels: dict[str, LabelTable] = Field(
        default_factory=dict, description='JSON map of tables of outcomes: {"name": {"path": ..., ...}}.'
    )
    cohorts: dict[str, Cohort] = Field(
        default_factory=dict, description='JSON map of cohorts to train on: {"name": {"since": ..., ...}}.'
    )

    @field_validator("deliver_to", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator(*sorted(EMPTY_IS_UNSET - {"references"}), mode="before")
    @classmethod
    def _unset(cls, value: object) -> object:
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("references", mode="before")
    @classmethod
    def _with_a_file(cls, value: object) -> object:
        return {key: path for key, path in value.items() if path != ""} if isinstance(value, dict) else value

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *args: Any, **kwargs: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given, then the environment."""
        return init_settings, _Environment(settings_cls)

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        if value is not None and value not in available_timezones():
            raise ValueError(f"{value!r} is not an IANA time zone, for example Europe/Berlin")
        return value

    @field_validator("objects")
    @classmethod
    def _without_credentials(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and re.search(r"\?|://[^@]*:[^@]*@", value):
            raise ValueError(
                "a URL here holds no credentials and no query, as it is shown in messages: give those to the file "
                "system in its own environment variables, for example AWS_ACCESS_KEY_ID"
            )
        return value

    def target(self, wanted: str | None) -> AnyTarget:
        """The target that is named, given directly, or configured as the one default.

        Raises
        ------
        ConfigurationError
            What is given is no target; none is given, and there is no default or more than one.
        """
        if wanted is None:
            found = self.chosen_targets(None)
            if len(found) > 1:
                raise ConfigurationError(f"there are several default targets: name one of {', '.join(found)}")
            return next(iter(found.values()))
        if wanted in self.targets:
            return self.targets[wanted]
        if self.targets and NAME.fullmatch(wanted) and not Path(wanted).is_dir():  # mistyped: no folder
            known = ", ".join(sorted(self.targets))
            raise ConfigurationError(
                f"no target is called {wanted!r}; MEDFLOW_TARGETS has: {known} (a folder of that name: ./{wanted})"
            )
        return parsed_target(wanted)

    def chosen_targets(self, wanted: Sequence[str] | str | None) -> dict[str, AnyTarget]:
        """The targets that are named or given directly, or the default ones; archives come first.

        What FHIR resources name, a segmentation say, is in its archive before the resources are anywhere.

        Raises
        ------
        ConfigurationError
            None is given and none is configured, or what is given is no target.
        """
        names = self.default_targets if wanted is None else (wanted,) if isinstance(wanted, str) else tuple(wanted)
        if not names:
            raise ConfigurationError(
                "no delivery target: name one, or set MEDFLOW_DELIVER_TO to a folder or a FHIR base URL"
            )
        found = {name: self.target(name) for name in names}
        return dict(sorted(found.items(), key=lambda item: not isinstance(item[1], DicomWebTarget | PacsTarget)))

    @property
    def default_targets(self) -> tuple[str, ...]:
        """The names that MEDFLOW_DELIVER_TO has, or what it gives directly; none where it is not set.

        Raises
        ------
        ConfigurationError
            Of several names, one is not configured.
        """
        if self.deliver_to is None:
            return ()
        names = tuple(part.strip() for part in self.deliver_to.split(","))
        if self.deliver_to in self.targets or not any(name in self.targets for name in names):
            return (self.deliver_to,)
        for name in names:
            if name not in self.targets:
                known = ", ".join(sorted(self.targets))
                raise ConfigurationError(f"no target is called {name!r}; MEDFLOW_TARGETS has: {known}")
        return tuple(dict.fromkeys(names))

    def chosen_sources(self, names: Iterable[str] | None) -> dict[str, AnySource]:
        """The configured sources of these names, or all of them.

        Raises
        ------
        ConfigurationError
            A name is not configured; the message lists those that are.
        """
        chosen = list(self.sources) if names is None else list(names)
        for name in chosen:
            if name not in self.sources:
                known = ", ".join(sorted(self.sources)) or "none"
                raise ConfigurationError(f"no source is called {name!r}; MEDFLOW_SOURCES has: {known}")
        return {name: self.sources[name] for name in chosen}

    def label_table(self, name: str) -> LabelTable:
        """The configured label table of this name.

        Raises
        ------
        ConfigurationError
            None is; the message lists those that are configured.
        """
        if name not in self.labels:
            known = ", ".join(sorted(self.labels)) or "none"
            raise ConfigurationError(f"no label table is called {name!r}; MEDFLOW_LABELS has: {known}")
        return self.labels[name]

    def cohort(self, name: str) -> Cohort:
        """The configured cohort of this name; "all" is every encounter in the store, unless one is called so.

        Raises
        ------
        ConfigurationError
            None is; the message lists those that are configured.
        """
        if name == "all" and name not in self.cohorts:
            return Cohort.model_validate({})
        if name not in self.cohorts:
            known = ", ".join(["all", *sorted(self.cohorts)])
            raise ConfigurationError(f"no cohort is called {name!r}; MEDFLOW_COHORTS has: {known}")
        return self.cohorts[name]

    @property
    def zone(self) -> ZoneInfo | None:
        """The zone for times written without one, or None."""
        return ZoneInfo(self.timezone) if self.timezone else None

    @property
    def threads(self) -> int:
        """How many processes or threads read and prepare."""
        return self.workers or os.cpu_count() or 1

    @property
    def embedded(self) -> bool:
        """Whether the store is the SQLite file under home (migrated automatically)."""
        return self.database_url is None

    @property
    def url(self) -> str:
        """The SQLAlchemy URL, password included: never log it."""
        if self.database_url is not None:
            return reveal(self.database_url)
        return f"sqlite:///{self.home.absolute() / 'medflow.db'}"


def parsed_target(written: str) -> AnyTarget:
    """The target that is written as a folder, a FHIR base URL, or AET@host:port.

    Raises
    ------
    ConfigurationError
        It is none; the message does not quote it.
    """
    try:
        return _TARGET.validate_python(written)
    except ValidationError as error:
        said = error.errors(include_input=False, include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"the delivery target is not usable: {said}") from None


NAME = re.compile(r"[\w.-]*\w")  # nothing that makes it a path or an address
_TARGET: TypeAdapter[AnyTarget] = TypeAdapter(Target)
AnySettings = TypeVar("AnySettings", bound=LogSettings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded(Generic[AnySettings]):
    """Settings, and where each that is not the default came from: a variable, the file, or "given" by the caller."""

    settings: AnySettings
    origins: Mapping[str, str]


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, the configuration file, and ``overrides``.

    Raises
    ------
    ConfigurationError
        Naming each variable or key that is wrong and what it should be, without its value.
    """
    return load_with_origins(**overrides).settings


def load_with_origins(**overrides: object) -> Loaded[Settings]:
    """The same, and where each setting came from."""
    return _load(Settings, {name: value for name, value in overrides.items() if value is not None})


def load_log_settings() -> LogSettings:
    """How to log, from the environment and the configuration file; errors as for `load_settings`."""
    return _load(LogSettings, {}).settings


def _load(kind: type[AnySettings], given: dict[str, Any]) -> Loaded[AnySettings]:
    try:
        found = _Environment(Settings)()
    except SettingsError as error:  # the message names the field, its cause would quote the value
        name = str(error).partition('"')[2].partition('"')[0]
        raise ConfigurationError(f"MEDFLOW_{name.upper()} is not the JSON that it should be") from None
    outside = {**found, **given}
    file = config_file.find(outside.get("config"), Path(outside.get("home") or user_data_path("medflow")))
    named = "config" in outside
    written = config_file.read(file, Settings.model_fields, named=named) if file is not None else {}
    origins = {name: f"{file}: {name}" for name in written}
    origins |= {name: f"MEDFLOW_{name.upper()}" for name in found} | dict.fromkeys(given, "given")
    values = {**written, **outside, "config": file}
    known = kind.model_fields
    try:
        settings = kind(**{name: value for name, value in values.items() if name in known or name in given})
    except ValidationError as error:
        wrong = error.errors(include_input=False, include_url=False)
        said = "; ".join(_said(problem, origins) for problem in wrong)
        raise ConfigurationError(f"the configuration is not usable: {said}") from None
    return Loaded(settings=settings, origins={name: origin for name, origin in origins.items() if name in known})


_NAMED: dict[str, type[BaseModel]] = {"labels": LabelTable, "cohorts": Cohort}
_KINDS: dict[str, dict[str, type[BaseModel]]] = {
    setting: {kind: model for model in get_args(models) for kind in get_args(model.model_fields["kind"].annotation)}
    for setting, models in (("sources", AnySource), ("targets", AnyTarget))
}
_AUTHS: dict[str, type[BaseModel]] = {
    kind: model for model in get_args(get_args(Auth)[0]) for kind in get_args(model.model_fields["type"].annotation)
}


def _said(problem: ErrorDetails, origins: Mapping[str, str]) -> str:
    """What is wrong with one setting, and where in it: MEDFLOW_COHORTS.icu.min_age, say. Never its value."""
    setting, *inside = (str(part) for part in problem["loc"])
    model = _NAMED.get(setting)
    if setting in _KINDS and len(inside) > 1:  # its name, its kind, which is no part of where it is, the field
        model = _KINDS[setting].get(inside.pop(1))
        if "auth" in inside[1:-1]:
            model = _AUTHS.get(inside.pop(2))
        elif "tls" in inside[1:-1]:
            model = Tls
    origin = origins.get(setting, "given")
    where = ".".join([f"MEDFLOW_{setting.upper()}" if origin == "given" else origin, *inside])
    if problem["type"] == "extra_forbidden" and model is not None:
        return f"{where}: there is no such field; there are {', '.join(model.model_fields)}"
    return f"{where}: {problem['msg']}"
