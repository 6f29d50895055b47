"""A FHIR server as a target: results of several patients in one request, and every answer looked at.

A patient's results go in one transaction, and never in two at once. What a server is too busy for is sent again, and
only that; what it refuses is put aside with its reason, and the rest goes on. A request that is refused as a whole is
divided until it is known what is to blame: a patient, a job, or its size. When the server stops answering altogether,
so does the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import groupby, islice

import stamina

from medflow.config import Settings
from medflow.connections.circuit import Circuit, CircuitRule
from medflow.connections.endpoints import Bearer, FhirTarget
from medflow.connections.patience import Patience, tries
from medflow.delivery.exchange import Exchange, Refused
from medflow.delivery.target import UNANSWERED, Refusal, Sent
from medflow.delivery.writing import Lookup
from medflow.errors import ConfigurationError, ServerUnavailable, TargetUnavailable
from medflow.fhir.capability import Capabilities
from medflow.fhir.client import Answer, FhirClient
from medflow.store.outbox import PendingResource

log = logging.getLogger(__name__)
IN_FLIGHT = 4  # requests at once, each of other patients
MAX_ENTRIES = 100  # of one request, to begin with: a server that takes fewer is learned to
WHOLE = 8  # entries of one job that are not divided but for their size: no server is known to take fewer
CONFLICTS = frozenset({409, 412})  # of one entry with what is there: the others need not wait for it
HEARTBEAT_S = 5.0  # at least this often a part is told of, if an empty one: the caller's lease lives from it
TELL = 400  # resources that are worth a commit
REFUSED_WAIT_S = 60.0  # before what was refused is sent again: its patient may be there by then; four times each time
NEEDED = "Observation"  # a server without a place for these cannot be delivered to

PATIENCE = Patience()
AT_START = Patience(attempts=3)
CIRCUIT = CircuitRule()


class Server:
    """A FHIR R4 server. ``lookup`` tells what the server calls resources that are in the outbox."""

    def __init__(self, settings: Settings, target: FhirTarget, lookup: Lookup = lambda _names: {}) -> None:
        if target.auth is None and settings.fhir_token is not None:
            target = target.model_copy(update={"auth": Bearer(type="bearer", token=settings.fhir_token)})
        self._client = FhirClient(target, timeout_s=settings.http_timeout_s)
        self._lookup = lookup
        self._can = Capabilities()
        self._exchange = Exchange(self._client, self._can, lookup)
        self._circuit = Circuit(CIRCUIT)
        self._stopping = threading.Event()
        self._most = MAX_ENTRIES  # entries that this server takes in one request, as far as is known
        self._taken = 0  # entries of the largest request that it took

    def open(self, committed: Mapping[str, int]) -> None:
        """See that a FHIR R4 server is there, and what it can do."""
        for attempt in self._tries(AT_START):
            with attempt:
                self._can = self._client.check()
        if self._can.manner(NEEDED) is None:
            raise ConfigurationError(
                f"{self._client.base_url} cannot be sent results: {self._can.lacks(NEEDED)}; have it configured to "
                "take one of these, or deliver elsewhere"
            )
        self._exchange = Exchange(self._client, self._can, self._lookup)

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def send(self, envelopes: Sequence[Sequence[PendingResource]]) -> Iterator[Sent]:
        """Send the envelopes, the catalog before all others; what the server has no place for is withheld."""
        everything = [item for envelope in envelopes for item in envelope]
        if withheld := [item for item in everything if self._can.manner(item.type) is None]:
            yield Sent(refused=[self._withheld(item) for item in withheld])
        for attempt in self._tries(PATIENCE):
            with attempt:
                self._exchange.writer.prepare(everything)
        lacking = {item.outbox_id for item in withheld}
        left = [[item for item in envelope if item.outbox_id not in lacking] for envelope in envelopes]
        catalog = [envelope for envelope in left if envelope and envelope[0].envelope == "catalog"]
        others = [envelope for envelope in left if envelope and envelope[0].envelope != "catalog"]
        for wave in (catalog, others):
            with ThreadPoolExecutor(max_workers=IN_FLIGHT, thread_name_prefix="deliver") as pool:
                try:
                    yield from self._sent(pool, wave)
                except BaseException:
                    self._stop()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

    def _sent(self, pool: ThreadPoolExecutor, envelopes: Sequence[Sequence[PendingResource]]) -> Iterator[Sent]:
        """What became of the envelopes, in parts large enough to be worth a commit, or at every heartbeat."""
        part, told = Sent(), time.monotonic()
        groups = self._groups(envelopes)
        running: set[Future[dict[int, Answer]]] = set()
        sending: dict[Future[dict[int, Answer]], list[PendingResource]] = {}
        while True:
            if not self._stopping.is_set():  # as many again as run now wait, so that no thread does
                for group in islice(groups, 2 * IN_FLIGHT - len(running)):
                    future = pool.submit(self._settle, group)
                    sending[future] = [item for envelope in group for item in envelope]
                    running.add(future)
            if not running:
                break
            done, running = wait(running, timeout=HEARTBEAT_S, return_when=FIRST_COMPLETED)
            for future in done:
                part = part.joined(self._told(sending.pop(future), future.result()))
            if len(part) >= TELL or time.monotonic() - told >= HEARTBEAT_S:
                yield replace(part, trouble=self._circuit.trouble)
                part, told = Sent(), time.monotonic()
        yield part
        if self._stopping.is_set():
            why = f" ({self._circuit.trouble})" if self._circuit.trouble else ""
            raise TargetUnavailable(
                f"{self._client.base_url} stopped answering{why}: what it has is noted; "
                "run the same command again later"
            )

    def _groups(self, envelopes: Sequence[Sequence[PendingResource]]) -> Iterator[list[Sequence[PendingResource]]]:
        """Whole envelopes that go in one request; enough of them that every thread has one."""
        total = sum(map(len, envelopes))
        at, count = 0, len(envelopes)
        while at < count:
            wanted = max(1, min(self._most, -(-total // IN_FLIGHT)))
            group, size = [envelopes[at]], len(envelopes[at])
            at += 1
            while at < count and size + len(envelopes[at]) <= wanted:
                group.append(envelopes[at])
                size += len(envelopes[at])
                at += 1
            yield group

    def _told(self, resources: Sequence[PendingResource], answers: Mapping[int, Answer]) -> Sent:
        delivered: list[PendingResource] = []
        refused: list[Refusal] = []
        for item in resources:
            answer = answers[item.outbox_id]
            if answer.taken:
                delivered.append(replace(item, server_id=self._exchange.writer.server_id(item), etag=answer.etag))
            else:
                refused.append(_refusal(item, answer))
        return Sent(delivered=delivered, refused=refused)

    # --- one group of envelopes --------------------------------------------------------------------------------

    def _settle(self, envelopes: Sequence[Sequence[PendingResource]]) -> dict[int, Answer]:
        """An answer for every resource of these envelopes, whatever it takes."""
        answers: dict[int, Answer] = {}
        self._send_group(envelopes, answers)
        return answers

    def _send_group(self, envelopes: Sequence[Sequence[PendingResource]], answers: dict[int, Answer]) -> bool:
        """Send envelopes together, or divided where that does not do; returns whether no part of it was refused."""
        items = [item for envelope in envelopes for item in envelope]
        if len(items) > self._most and (halves := _halves(envelopes, self._most)):
            return all([self._send_group(half, answers) for half in halves])
        try:
            left = self._send_together(items, answers, divisible=len(envelopes) > 1)
        except Refused as error:
            return self._divide(envelopes, items, error.answer, answers)
        silent = _only(envelopes, left)
        if len(silent) > 1 and not self._stopping.is_set():  # one of them may be more than the server can bear
            for item in left:
                del answers[item.outbox_id]
            return all([self._send_group(half, answers) for half in _halves(silent, 0)])
        return True

    def _divide(
        self,
        envelopes: Sequence[Sequence[PendingResource]],
        items: Sequence[PendingResource],
        answer: Answer,
        answers: dict[int, Answer],
    ) -> bool:
        """What was refused as a whole, in two parts; they tell whether it was refused for its size."""
        open_ = [item for item in items if item.outbox_id not in answers]
        halves = _halves(_only(envelopes, open_), 0 if answer.status == 413 else WHOLE)
        if not halves:
            answers.update((item.outbox_id, answer) for item in open_)
            return False
        if self._taken >= len(items):  # so many were once taken: of another kind
            self._taken = 0
        largest = max(sum(map(len, half)) for half in halves)
        if answer.status == 413:
            self._learn(largest)
        fine = all([self._send_group(half, answers) for half in halves])
        if fine and answer.status not in CONFLICTS:
            self._learn(largest)
        return fine

    def _learn(self, most: int) -> None:
        if (most := max(most, self._taken)) < self._most:
            self._most = most
            log.info("the server takes no more than %d resources at once", most)

    def _send_together(
        self, items: Sequence[PendingResource], answers: dict[int, Answer], *, divisible: bool
    ) -> list[PendingResource]:
        """One request, repeated for the entries that the server is busy for; returns what got no answer: to be divided.

        Raises
        ------
        Refused
            The request was refused as a whole.
        """
        left = list(items)
        try:
            for attempt in self._tries(PATIENCE):
                with attempt:
                    self._ask(left, answers, divisible=divisible)
                    left = [item for item in items if answers[item.outbox_id].busy]
                    if left:
                        raise _too_busy([answers[item.outbox_id] for item in left])
        except ServerUnavailable as error:
            wait_s = error.retry_after_s
            unanswered = Answer(status=503, reason=UNANSWERED, detail=error.message, retry_after_s=wait_s)
            silent = [item for item in items if item.outbox_id not in answers]
            answers.update((item.outbox_id, error.fields.get("answer") or unanswered) for item in silent)
            if self._circuit.gave_up:
                self._stop()
            return silent if error.retry_after_s is None else []  # where it named a wait, it is left alone for as long
        return []

    def _ask(self, items: Sequence[PendingResource], answers: dict[int, Answer], *, divisible: bool) -> None:
        """One request of these, as soon as the server may be asked."""
        self._circuit.admit()
        try:
            self._exchange.send(items, answers)
        except Refused as error:
            self._circuit.answered()
            if error.answer.busy and not (divisible and error.answer.status in CONFLICTS):
                raise _too_busy([error.answer]) from None
            raise
        except ServerUnavailable as error:
            soon = error.retry_after_s and error.retry_after_s <= PATIENCE.longest_retry_after_s
            self._circuit.failed(error, hold_s=(error.retry_after_s or 0.0) if soon else 0.0)
            raise
        except BaseException:
            self._circuit.stop()
            raise
        self._circuit.answered()

    def _stop(self) -> None:
        self._stopping.set()
        self._circuit.stop()

    def _withheld(self, item: PendingResource) -> Refusal:
        return Refusal(resource=item, reason=self._can.lacks(item.type), withheld=True)

    def _tries(self, patience: Patience) -> Iterable[stamina.Attempt]:
        return tries(patience, stopping=lambda: self._stopping.is_set() or self._circuit.gave_up)


def _too_busy(answers: Sequence[Answer]) -> TargetUnavailable:
    waits = [answer.retry_after_s for answer in answers if answer.retry_after_s]
    return TargetUnavailable(
        "the server is too busy for some entries of a request",
        retry_after_s=max(waits, default=None),
        answer=answers[0],
    )


def _refusal(resource: PendingResource, answer: Answer) -> Refusal:
    wait_s = (answer.retry_after_s or 0.0) if answer.busy else REFUSED_WAIT_S * 4**resource.attempts
    return Refusal(resource=resource, reason=answer.reason, detail=answer.detail, wait_s=wait_s)


def _only(
    envelopes: Sequence[Sequence[PendingResource]], kept: Sequence[PendingResource]
) -> list[list[PendingResource]]:
    """The envelopes with those resources alone."""
    keys = {item.outbox_id for item in kept}
    some = ([item for item in envelope if item.outbox_id in keys] for envelope in envelopes)
    return [envelope for envelope in some if envelope]


def _halves(envelopes: Sequence[Sequence[PendingResource]], whole: int) -> list[list[list[PendingResource]]]:
    """Two parts: of the envelopes, else of one envelope's jobs, else of a job with more than ``whole`` resources.

    Empty where it cannot be divided. A job's resources refer to one another, backwards.
    """
    parts = [list(envelope) for envelope in envelopes]
    if len(parts) == 1:
        jobs = [list(group) for _, group in groupby(parts[0], key=lambda item: item.job_id)]
        parts = jobs if len(jobs) > 1 else [[item] for item in jobs[0]] if len(jobs[0]) > max(whole, 1) else []
        middle = len(parts) // 2
        joined = [[item for part in half for item in part] for half in (parts[:middle], parts[middle:])]
        return [[half] for half in joined] if parts else []
    middle = len(parts) // 2
    return [parts[:middle], parts[middle:]]
