"""One delivery run: claim the target, send what it has not been sent, note every answer, give the target back."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medflow.config import Settings
from medflow.connections.endpoints import AnyTarget, FhirTarget, FolderTarget, PacsTarget
from medflow.delivery.folder import Folder
from medflow.delivery.server import Server
from medflow.delivery.target import UNANSWERED, Sent, Target
from medflow.delivery.writing import Lookup
from medflow.errors import ConfigurationError, ServerUnavailable
from medflow.store import Store, connections, outbox
from medflow.store.jobs import process_owner
from medflow.store.ledger import now_us, record_audit
from medflow.store.outbox import Failure, PendingResource

log = logging.getLogger(__name__)
Progress = Callable[[int], None]
PAGE = 2000  # resources held in memory, and committed to a folder at once


@dataclass(kw_only=True, slots=True)
class DeliveryTally:
    """Counts of one delivery, in resources and DICOM objects.

    ``pending`` were to be sent when it began. ``failed`` are sent again by a later run, ``dead`` are not; ``errors``
    counts both by the server's status, issue codes and element paths. ``withheld`` are of types that the server has no
    place for, which ``lacking`` counts. ``targets`` has the counts of each, by name, where there are several.
    """

    pending: int = 0
    delivered: int = 0
    failed: int = 0
    dead: int = 0
    withheld: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    lacking: Counter[str] = field(default_factory=Counter)
    targets: dict[str, DeliveryTally] = field(default_factory=dict)

    def add(self, name: str, other: DeliveryTally) -> None:
        """Count another target's as well."""
        self.targets[name] = other
        for counted in ("pending", "delivered", "failed", "dead", "withheld"):
            setattr(self, counted, getattr(self, counted) + getattr(other, counted))
        self.errors.update(other.errors)
        self.lacking.update(other.lacking)

    def as_json(self) -> dict[str, object]:
        """The counts as ``medflow deliver --json`` prints them."""
        return {
            "pending": self.pending,
            "delivered": self.delivered,
            "failed": self.failed,
            "dead": self.dead,
            "errors": dict(sorted(self.errors.items())),
            **({"withheld": self.withheld, "lacking": dict(sorted(self.lacking.items()))} if self.withheld else {}),
            **({"targets": {name: item.as_json() for name, item in self.targets.items()}} if self.targets else {}),
        }


def deliver(
    store: Store, settings: Settings, target: AnyTarget, *, run_id: int | None = None, progress: Progress | None = None
) -> DeliveryTally:
    """Send a target what it has not been sent yet; a second call sends nothing twice.

    ``progress`` is called with the number of resources just settled.

    Raises
    ------
    ConfigurationError
        The target cannot be written, is no FHIR R4 server, or wants other credentials.
    TargetUnavailable
        The server does not answer (any more), or another process is delivering to it. What was sent is noted.
    """
    run = _Run(store, settings, target.public, progress or (lambda _count: None))
    opened = _opened(store, settings, target)
    with store.writing() as connection:
        committed = outbox.claim_target(
            connection, run.name, run.owner, seconds=settings.lease_seconds, kind=target.kind
        )
    try:
        with _noted(store, run):
            opened.open(committed)
            run.send_all(opened)
    finally:
        opened.close()
        with store.writing() as connection:
            outbox.release_target(connection, run.name, run.owner)
            record_audit(connection, run_id, "deliver", run.name, **run.tally.as_json())
    return run.tally


def _opened(store: Store, settings: Settings, target: AnyTarget) -> Target:
    """What writes to a target of this kind."""
    if isinstance(target, FolderTarget):
        return Folder(Path(target.public), store.objects)
    if isinstance(target, FhirTarget):
        return Server(settings, target, _names(store, target.public))
    from medflow.delivery.archive import Archive  # with pydicom

    if isinstance(target, PacsTarget):
        from medflow.delivery.cstore import CStore  # with pynetdicom

        return Archive(store.objects, CStore(target, settings))
    from medflow.delivery.stow import Stow  # with dicomweb-client

    return Archive(store.objects, Stow(settings, target))


def _names(store: Store, name: str) -> Lookup:
    """What a target calls resources of the outbox."""

    def lookup(names: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], outbox.Known]:
        with store.reading() as connection:
            return outbox.known_resources(connection, name, names)

    return lookup


@contextmanager
def _noted(store: Store, run: _Run) -> Iterator[None]:
    """Have it on record whether the target answered: `medflow status` says what is wrong while it does not."""
    try:
        yield
    except (ServerUnavailable, ConfigurationError) as error:
        with store.writing() as connection:
            connections.note_failed(connection, connections.TARGET, run.name, error.message)
        raise
    with store.writing() as connection:
        if run.unanswered is None:
            connections.note_answered(connection, connections.TARGET, run.name)
        else:  # too little was to be sent for the run to be given up
            connections.note_failed(connection, connections.TARGET, run.name, run.unanswered)


class _Run:
    """One claimed target, and the account of what it was sent."""

    def __init__(self, store: Store, settings: Settings, name: str, progress: Progress) -> None:
        self.name = name
        self.owner = process_owner()
        self.tally = DeliveryTally()
        self.unanswered: str | None = None  # why the last of what got no answer got none
        self._store, self._settings, self._progress = store, settings, progress
        self._troubled = False

    def send_all(self, target: Target) -> None:
        with self._store.reading() as connection:
            envelopes = outbox.pending_envelopes(connection, self.name, at_us=now_us())
        self.tally.pending = sum(map(len, envelopes))
        for page in _pages(envelopes):
            if resources := self._load(page):
                for sent in target.send(resources):
                    self._record(sent)
        if self.tally.errors:
            log.warning("%d results were not taken: %s", self.tally.errors.total(), dict(self.tally.errors))
        if self.tally.lacking:
            log.warning("%d results were withheld: %s", self.tally.withheld, dict(self.tally.lacking))

    def _load(self, page: Sequence[Sequence[int]]) -> list[list[PendingResource]]:
        with self._store.reading() as connection:
            found = outbox.load_resources(connection, self.name, [key for envelope in page for key in envelope])
        kept = ([found[key] for key in envelope if key in found] for envelope in page)  # others were withdrawn since
        return [envelope for envelope in kept if envelope]

    def _record(self, sent: Sent) -> None:
        now = now_us()
        failures = [
            Failure(
                resource=refusal.resource,
                error=f"{refusal.reason}: {refusal.detail}" if refusal.detail else refusal.reason,
                not_before_us=now + int(refusal.wait_s * 1e6),
                withheld=refusal.withheld,
                # a server that is away may stay so for longer than any number of runs; one that took others meanwhile
                # may not bear this one
                counted=refusal.reason != UNANSWERED or bool(sent.delivered or self.tally.delivered),
            )
            for refusal in sent.refused
        ]
        with self._store.writing() as connection:
            seconds = self._settings.lease_seconds
            outbox.renew_target(connection, self.name, self.owner, seconds=seconds, committed=sent.committed)
            outbox.record_delivered(connection, self.name, sent.delivered)
            dead = outbox.record_failed(connection, self.name, failures, max_attempts=self._settings.max_attempts)
            if sent.trouble:  # on record while it lasts, and not only when the run gives up
                connections.note_failed(connection, connections.TARGET, self.name, sent.trouble)
            elif self._troubled:
                connections.note_answered(connection, connections.TARGET, self.name)
            self._troubled = bool(sent.trouble)
        withheld = [refusal.reason for refusal in sent.refused if refusal.withheld]
        self.tally.delivered += len(sent.delivered)
        self.tally.failed += len(failures) - dead - len(withheld)
        self.tally.dead += dead
        self.tally.withheld += len(withheld)
        self.tally.lacking.update(withheld)
        self.tally.errors.update(refusal.reason for refusal in sent.refused if not refusal.withheld)
        unanswered = [refusal.detail for refusal in sent.refused if refusal.reason == UNANSWERED]
        self.unanswered = unanswered[-1] if unanswered else self.unanswered
        self._progress(len(sent.delivered) + len(failures))


def _pages(envelopes: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Whole envelopes, about `PAGE` resources together."""
    page: list[Sequence[int]] = []
    size = 0
    for envelope in envelopes:
        if page and size + len(envelope) > PAGE:
            yield page
            page, size = [], 0
        page.append(envelope)
        size += len(envelope)
    if page:
        yield page
