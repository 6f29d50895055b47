"""Every error medflow raises, and what each asks of whoever catches it.

    MedflowError
    |-- ConfigurationError      could not run: the sentence says what to do (exit status 1)
    |   |-- StoreNotReady       no database, or a schema older or newer than this code
    |   |-- UnknownModel        names the models that are installed
    |   `-- PluginBroken        an entry point that does not import, or a model that does not load
    |-- InputRejected           one input that is not taken; a `RejectCode` and a sentence
    |-- CaseError               one case that cannot be scored; the data are the cause, so never retried
    |   |-- InputNotUsable      refused by the input gate: geometry, coverage, units
    |   `-- PredictionInvalid   a model's answer outside its own declaration
    |-- DeliveryRefused         a target that understood and said no; never retried unchanged
    |-- ObjectDamaged           the object store gave other bytes than it was given
    |-- TrialStopped            a search has seen enough of a choice of hyperparameters
    `-- TransientError          worth another try: the infrastructure is the cause
        |-- StoreUnavailable
        |-- ObjectsUnavailable  the object store did not answer, or has too much to do
        |-- ServerUnavailable   a server did not take or give something; `retry_after_s` when it named a wait
        |   |-- TargetUnavailable
        |   `-- SourceUnavailable
        |-- WorkerMissing       nobody takes chunks of a model
        `-- DeviceExhausted     out of device memory

Whether something is retried is its type, never the text of its message. All of them survive pickling, so they can
cross process and task boundaries. No message carries anything about a patient.
"""

from __future__ import annotations

import traceback
from enum import StrEnum
from pathlib import Path
from typing import Any


class RejectCode(StrEnum):
    """Why an input was not taken. The operator's guide lists what to do about each."""

    # reading
    VANISHED = "vanished"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    TOO_LARGE = "too-large"
    WRONG_ENCODING = "wrong-encoding"
    UNSUPPORTED_TYPE = "unsupported-type"
    # archives
    ARCHIVE_BROKEN = "archive-broken"
    ARCHIVE_BOMB = "archive-bomb"
    ARCHIVE_PATH = "archive-path"
    ARCHIVE_ENCRYPTED = "archive-encrypted"
    # DICOM
    NOT_DICOM = "not-dicom"
    TRUNCATED = "truncated"
    MISSING_UID = "missing-uid"
    INVALID_UID = "invalid-uid"
    UNKNOWN_TRANSFER_SYNTAX = "unknown-transfer-syntax"
    UID_CONFLICT = "uid-conflict"
    DICOMDIR_MISSING_FILE = "dicomdir-missing-file"
    NOT_AN_INSTANCE = "not-an-instance"
    NOT_RETRIEVED = "not-retrieved"
    # FHIR
    NOT_JSON = "not-json"
    NOT_FHIR = "not-fhir"
    UNKNOWN_RESOURCE_TYPE = "unknown-resource-type"
    MISSING_ID = "missing-id"
    INVALID_RESOURCE = "invalid-resource"
    NUMBER_OUT_OF_RANGE = "number-out-of-range"
    TIME_WITHOUT_ZONE = "time-without-zone"
    # genomics
    BAD_VCF_HEADER = "bad-vcf-header"
    BAD_VCF_RECORD = "bad-vcf-record"
    REF_MISMATCH = "ref-mismatch"
    SAMPLE_UNKNOWN = "sample-unknown"
    SAMPLE_AMBIGUOUS = "sample-ambiguous"
    NOT_FASTA = "not-fasta"
    INVALID_SEQUENCE = "invalid-sequence"
    DUPLICATE_SEQUENCE = "duplicate-sequence"
    # identity
    AMBIGUOUS_PATIENT = "ambiguous-patient"
    PATIENT_MISMATCH = "patient-mismatch"
    IDENTITY_CONFLICT = "identity-conflict"


class MedflowError(Exception):
    """Base of all medflow errors: a sentence, and the ids it concerns as attributes.

    Parameters
    ----------
    message
        One sentence that names the thing and the way out.
    **fields
        Surrogate ids and codes; readable as attributes (``error.job_id``).
    """

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.fields)


def place_of(error: BaseException) -> str:
    """The file and line that raised an error: what may be told of one whose text may quote a patient's data."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


def unforeseen(error: BaseException) -> MedflowError:
    """A foreign error that nothing here expected, by its type and place; its own text is left behind."""
    kind = type(error).__name__
    return MedflowError(
        f"an unforeseen {kind} at {place_of(error)}: nothing of this step was written; please report it as a defect",
        kind=kind,
    )


def _rebuild(cls: type[MedflowError], message: str, fields: dict[str, Any]) -> MedflowError:
    error = cls.__new__(cls)
    MedflowError.__init__(error, message, **fields)
    return error


class ConfigurationError(MedflowError):
    """medflow could not run; the message says what to change."""


class StoreNotReady(ConfigurationError):
    """The database is absent, or its schema is not the one this code was written for."""


class UnknownModel(ConfigurationError):
    """A model name that no installed distribution registers."""


class PluginBroken(ConfigurationError):
    """A plugin that does not import, load, or keep its contract."""


class InputRejected(MedflowError):
    """One input that is not taken.

    Parameters
    ----------
    code
        The machine-readable reason.
    reason
        The sentence an operator reads. No patient data.
    """

    def __init__(self, code: RejectCode, reason: str, **fields: Any) -> None:
        super().__init__(reason, code=code, **fields)


class CaseError(MedflowError):
    """One case that cannot be scored because of its data; its job is dead at once.

    Parameters
    ----------
    code
        A short kebab-case reason, counted in reports.
    reason
        The sentence an operator reads. No patient data.
    """

    def __init__(self, code: str, reason: str, **fields: Any) -> None:
        super().__init__(reason, code=code, **fields)


class InputNotUsable(CaseError):
    """Refused by the input gate: geometry, coverage, units, missing files."""


class PredictionInvalid(CaseError):
    """A model's answer lies outside what its spec declares."""


class DeliveryRefused(MedflowError):
    """A target understood the resource and refused it; sending it again unchanged will not help."""


class ObjectDamaged(MedflowError):
    """An object whose bytes no longer have the SHA-256 that they were stored under."""


class TrialStopped(MedflowError):
    """A search for hyperparameters gives this choice up, because others do better: no failure."""


class TransientError(MedflowError):
    """The infrastructure failed, not the data: worth another try later."""


class StoreUnavailable(TransientError):
    """The database did not answer, or refused the connection."""


class ObjectsUnavailable(TransientError):
    """The object store did not answer, or has too much to do."""


class ServerUnavailable(TransientError):
    """A server is away, slow, or has too much to do; ``retry_after_s`` is set when it named a wait."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, **fields: Any) -> None:
        super().__init__(message, retry_after_s=retry_after_s, **fields)


class TargetUnavailable(ServerUnavailable):
    """A delivery target did not take the request."""


class SourceUnavailable(ServerUnavailable):
    """A source did not give what it was asked for."""


class DeviceExhausted(TransientError):
    """The device has no memory left for a batch of this size, even of one case."""


class WorkerMissing(TransientError):
    """No worker takes chunks of a model now."""
