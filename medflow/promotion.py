"""Deciding which version of a model answers: what is looked at before, and what is changed in one transaction.

The decision is a person's. What they are refused is what could not answer, and what was measured worse than the
version that answers now, unless they say that they know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medflow.config import Settings
from medflow.errors import ConfigurationError
from medflow.registry import RegisteredModel, Registry, dump_spec
from medflow.store import Connection, Store, ledger
from medflow.store import trained as versions
from medflow.store.jobs import register_model
from medflow.store.serving import take_over
from medflow.store.trained import TrainedVersion, subject_of
from medflow.trained import INSTALLED, TrainedFactory, as_registered, with_promoted

FIGURES = ("auroc", "auprc", "ece")
HIGHER_IS_BETTER = {"auroc": True, "ece": False}  # what a version must not be worse in


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """What a decision came to: the versions that answered before and do now, and waiting cases that were let go.

    ``before`` is None where the model could not answer; ``after`` where the model is not installed any more.
    """

    model: str
    before: str | None
    after: str | None
    let_go: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure of a version, and of the one that is served, on the same patients."""

    name: str
    candidate: float
    served: float

    @property
    def worse(self) -> bool:
        """Whether the candidate is the worse of the two in what counts."""
        if self.name not in HIGHER_IS_BETTER:
            return False
        return self.candidate < self.served if HIGHER_IS_BETTER[self.name] else self.candidate > self.served


def promote(
    store: Store,
    settings: Settings,
    installed: Registry,
    name: str,
    version: str | None,
    *,
    worse: bool = False,
    run_id: int | None = None,
) -> Promotion:
    """Have a version of a model answer from now on.

    Parameters
    ----------
    store, settings, installed
        The installation, and the models as their plugins bring them.
    name, version
        The model, and one of its versions that were trained here; None is what its plugin brings.
    worse
        Take it though it was measured worse than the version that answers now.
    run_id
        The run on record that decides.

    Raises
    ------
    UnknownModel, ConfigurationError
        There is no such model or version (the message lists those that there are), or it was measured worse.
    PluginBroken
        It cannot be served; the message says what to do.
    """
    with store.reading() as connection:
        row = _version(connection, installed, name, version)
        promoted = versions.promoted(connection)
    answers = with_promoted(store, settings, installed, [item for item in promoted if item.model == name])
    before = answers.models.get(name)
    after = _to_serve(store, settings, installed, name, row)
    if row is not None and not worse:
        _refuse_worse(row, before)
    with store.writing() as connection:
        was = versions.promote(connection, name, version)
        _check_unchanged(name, was, promoted)
        let_go = _register(connection, after) if after else 0
        made = Promotion(
            model=name,
            before=was.version if was else before.spec.version if before else None,
            after=after.spec.version if after else None,
            let_go=let_go,
        )
        digests = {"before_digest": before.digest if before else None, "digest": after.digest if after else None}
        ledger.record_audit(connection, run_id, "promote", subject_of(name), **asdict(made), **digests, worse=worse)
    return made


def remove(store: Store, name: str, version: str, *, run_id: int | None = None) -> int:
    """Let go of a candidate and of the files that no other version has; returns how many.

    Raises
    ------
    ConfigurationError
        There is no such version, or it has answered for patients.
    """
    with store.writing() as connection:
        freed = versions.remove(connection, name, version)
        detail = {"version": version, "files": len(freed)}
        ledger.record_audit(connection, run_id, "remove", subject_of(name), **detail)
    for digest in freed:  # after the commit: what is gone must not be named
        store.objects.remove(digest)
    return len(freed)


def figures(row: TrainedVersion) -> dict[str, float]:
    """What a version was measured at on patients that it had not seen, of `FIGURES`."""
    return _numbers(row.metrics.get("test"))


def compared(row: TrainedVersion, served: str) -> list[Figure]:
    """The figures of a version beside those of the version that is served, where both were measured on one cohort."""
    other = row.metrics.get("served") or {}
    if other.get("version") != served:
        return []
    mine, theirs = figures(row), _numbers(other.get("test"))
    both = [name for name in FIGURES if name in mine and name in theirs]
    return [Figure(name=name, candidate=mine[name], served=theirs[name]) for name in both]


def _numbers(measured: Mapping[str, Any] | None) -> dict[str, float]:
    found = {name: (measured or {}).get(name) for name in FIGURES}
    values = {name: item.get("value") if isinstance(item, Mapping) else item for name, item in found.items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def _version(connection: Connection, installed: Registry, name: str, version: str | None) -> TrainedVersion | None:
    known = versions.versions(connection, name)
    if name not in installed.models and not known:
        installed.get(name)  # says which models there are
    if version is None:
        return None
    if not known:
        raise ConfigurationError(f"no version of {name} was trained here: `medflow train {name}` makes one")
    return versions.one(connection, name, version)


def _to_serve(
    store: Store, settings: Settings, installed: Registry, name: str, row: TrainedVersion | None
) -> RegisteredModel | None:
    """What would answer; with its files here and as they were measured."""
    base = installed.models.get(name)
    if row is None:
        return base
    made = as_registered(store, settings, base, row)
    if isinstance(made.factory, TrainedFactory):
        made.factory.bring()
    return made


def _check_unchanged(name: str, was: TrainedVersion | None, seen: Sequence[TrainedVersion]) -> None:
    """What was compared must be what answered until now: else a worse one could follow a better unnoticed."""
    found = next((item.version for item in seen if item.model == name), None)
    if (was.version if was else None) != found:
        raise ConfigurationError(
            f"another version of {name} was promoted meanwhile: see `medflow models versions {name}` and decide again"
        )


def _refuse_worse(row: TrainedVersion, served: RegisteredModel | None) -> None:
    if served is None or served.spec.version == row.version:
        return
    if poorer := [item for item in compared(row, served.spec.version) if item.worse]:
        told = ", ".join(f"{item.name.upper()} {item.candidate:.3f}, not {item.served:.3f}" for item in poorer)
        raise ConfigurationError(
            f"{row.model} {row.version} was measured worse than {served.spec.version} on the same patients ({told}): "
            "promote it all the same with --worse"
        )


def _register(connection: Connection, model: RegisteredModel) -> int:
    registered = register_model(
        connection,
        name=model.name,
        version=model.spec.version,
        digest=model.digest,
        distribution=model.distribution,
        spec=dump_spec(model.spec),
    )
    return take_over(connection, registered)


def asked_for(version: str) -> str | None:
    """A version as a person names it: "installed" is what the plugin brings."""
    return None if version == INSTALLED else version
