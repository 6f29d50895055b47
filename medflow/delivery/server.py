"""A FHIR server as a target: one transaction per patient, several patients at once, every answer looked at.

What a server is too busy for is sent again, and only that; what it refuses is put aside with its reason, and the rest
goes on. When it stops answering altogether, so does the run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import groupby, islice

import stamina

from medflow.config import Settings
from medflow.connections.endpoints import Bearer, FhirTarget
from medflow.connections.patience import Patience, tries
from medflow.delivery.target import Refusal, Sent
from medflow.errors import DeliveryRefused, ServerUnavailable, TargetUnavailable
from medflow.fhir.client import Answer, FhirClient, Put
from medflow.store.outbox import PendingResource

IN_FLIGHT = 4  # transactions at once, each of another patient
MAX_ENTRIES = 40  # of one transaction: some servers refuse more than 50 updates
HEARTBEAT_S = 5.0  # at least this often a part is told of, if an empty one: the caller's lease lives from it
TELL = 200  # resources that are worth a commit
GIVE_UP_AFTER = 3  # transactions in a row that found no server
REFUSED_WAIT_S = 60.0  # before what was refused is sent again: its patient may be there by then; four times each time


PATIENCE = Patience()
AT_START = Patience(attempts=3)


class Server:
    """A FHIR R4 server."""

    def __init__(self, settings: Settings, target: FhirTarget) -> None:
        if target.auth is None and settings.fhir_token is not None:
            target = target.model_copy(update={"auth": Bearer(type="bearer", token=settings.fhir_token)})
        self._client = FhirClient(target, timeout_s=settings.http_timeout_s)
        self._stopping = threading.Event()
        self._resume_at = 0.0  # monotonic; until then the server has asked to be left alone
        self._silent = 0  # transactions in a row without any answer

    def open(self, committed: Mapping[str, int]) -> None:
        """See that a FHIR R4 server is there."""
        for attempt in self._tries(AT_START):
            with attempt:
                self._client.check()

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def send(self, envelopes: Sequence[Sequence[PendingResource]]) -> Iterator[Sent]:
        """Send each envelope in transactions of its own, the catalog before all others."""
        catalog = [envelope for envelope in envelopes if envelope[0].envelope == "catalog"]
        others = [envelope for envelope in envelopes if envelope[0].envelope != "catalog"]
        for wave in (catalog, others):
            with ThreadPoolExecutor(max_workers=IN_FLIGHT, thread_name_prefix="deliver") as pool:
                try:
                    yield from self._sent(pool, iter(wave))
                except BaseException:
                    self._stopping.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

    def _sent(self, pool: ThreadPoolExecutor, envelopes: Iterator[Sequence[PendingResource]]) -> Iterator[Sent]:
        """What became of the envelopes, in parts large enough to be worth a commit, or at every heartbeat."""
        part, told = Sent(), time.monotonic()
        running: set[Future[Sent]] = set()
        while True:
            if not self._stopping.is_set():  # as many again as run now wait, so that no thread does
                more = islice(envelopes, 2 * IN_FLIGHT - len(running))
                running |= {pool.submit(self._send_envelope, envelope) for envelope in more}
            if not running:
                break
            done, running = wait(running, timeout=HEARTBEAT_S, return_when=FIRST_COMPLETED)
            for future in done:
                part = part.joined(future.result())
            if len(part) >= TELL or time.monotonic() - told >= HEARTBEAT_S:
                yield part
                part, told = Sent(), time.monotonic()
        yield part
        if self._stopping.is_set():
            raise TargetUnavailable(
                f"{self._client.base_url} stopped answering: what it has is noted; run the same command again later"
            )

    def _send_envelope(self, resources: Sequence[PendingResource]) -> Sent:
        delivered: list[PendingResource] = []
        refused: list[Refusal] = []
        for part in _transactions(resources):
            for resource, answer in self._send_part(part):
                if answer.taken:
                    delivered.append(resource)
                else:
                    refused.append(_refusal(resource, answer))
        return Sent(delivered=delivered, refused=refused)

    def _send_part(self, part: Sequence[PendingResource]) -> list[tuple[PendingResource, Answer]]:
        """One transaction, repeated for the entries that the server is busy for. An answer for every resource."""
        answers: dict[int, Answer] = {}
        left = list(part)
        try:
            for attempt in self._tries(PATIENCE):
                with attempt:
                    self._wait_until_welcome()
                    for resource, answer in zip(left, self._transact(left), strict=True):
                        answers[resource.outbox_id] = answer
                    left = [resource for resource in left if answers[resource.outbox_id].busy]
                    if left:
                        raise _too_busy([answers[resource.outbox_id] for resource in left])
        except ServerUnavailable as error:
            if not error.fields.get("answered"):
                self._silent += 1
                if self._silent >= GIVE_UP_AFTER:
                    self._stopping.set()
            for resource in left:
                unanswered = Answer(status=503, reason="unavailable", retry_after_s=error.retry_after_s)
                answers.setdefault(resource.outbox_id, unanswered)
        except DeliveryRefused as error:
            jobs = [list(group) for _, group in groupby(left, key=lambda resource: resource.job_id)]
            if len(jobs) > 1:  # one of them may be to blame for all
                answered = [(item, answers[item.outbox_id]) for item in part if item not in left]
                return answered + [pair for job in jobs for pair in self._send_part(job)]
            answers.update((resource.outbox_id, error.answer) for resource in left)
        return [(resource, answers[resource.outbox_id]) for resource in part]

    def _transact(self, resources: Sequence[PendingResource]) -> list[Answer]:
        try:
            answers = self._client.transact([Put(type=item.type, id=item.id, body=item.body) for item in resources])
        except DeliveryRefused as error:
            self._silent = 0
            if error.answer.busy:
                raise _too_busy([error.answer]) from None
            raise
        except ServerUnavailable as error:
            if error.retry_after_s and error.retry_after_s <= PATIENCE.longest_retry_after_s:
                self._resume_at = time.monotonic() + error.retry_after_s  # for every thread: the server asked for it
            raise
        self._silent = 0
        return answers

    def _wait_until_welcome(self) -> None:
        while (left := self._resume_at - time.monotonic()) > 0:
            if self._stopping.wait(timeout=left):
                return

    def _tries(self, patience: Patience) -> Iterable[stamina.Attempt]:
        return tries(patience, stopping=self._stopping.is_set)


def _too_busy(answers: Sequence[Answer]) -> TargetUnavailable:
    waits = [answer.retry_after_s for answer in answers if answer.retry_after_s]
    return TargetUnavailable(
        "the server is too busy for some entries of a transaction",
        retry_after_s=max(waits, default=None),
        answered=True,
    )


def _refusal(resource: PendingResource, answer: Answer) -> Refusal:
    wait_s = (answer.retry_after_s or 0.0) if answer.busy else REFUSED_WAIT_S * 4**resource.attempts
    return Refusal(resource=resource, reason=answer.reason, detail=answer.detail, wait_s=wait_s)


def _transactions(resources: Sequence[PendingResource]) -> Iterator[list[PendingResource]]:
    """Parts of at most `MAX_ENTRIES`, each job's resources together: they refer to one another."""
    part: list[PendingResource] = []
    for _, group in groupby(resources, key=lambda resource: resource.job_id):
        job = list(group)
        if part and len(part) + len(job) > MAX_ENTRIES:
            yield part
            part = []
        part += job
        while len(part) > MAX_ENTRIES:  # a job, or the catalog, that is larger than a transaction
            yield part[:MAX_ENTRIES]
            part = part[MAX_ENTRIES:]
    if part:
        yield part
