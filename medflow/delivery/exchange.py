"""One request to a FHIR server and what it answered, in whichever form the server offers: transaction, batch, singly.

A version that somebody else changed meanwhile is looked at here, and written over only where that is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medflow.delivery.changes import Since, refusal, since_delivered
from medflow.delivery.writing import Lookup, Writer
from medflow.errors import DeliveryRefused, MedflowError
from medflow.fhir.capability import Capabilities, Manner
from medflow.fhir.client import Answer, FhirClient
from medflow.store.outbox import PendingResource

CONFLICT = frozenset({404, 409, 410, 412})  # of a resource that was to be of a certain version
LOOKS = 3  # at what somebody else keeps changing, before it counts as busy


class Refused(MedflowError):
    """A request was refused as a whole; ``answer`` says why."""


class Exchange:
    """The requests of one run. Thread-safe between calls of `Writer.prepare`."""

    def __init__(self, client: FhirClient, can: Capabilities, lookup: Lookup) -> None:
        self._client, self._can = client, can
        self.writer = Writer(client, can, lookup)
        self._etags: dict[int, str | None] = {}  # by outbox id: what was found since

    def send(self, items: Sequence[PendingResource], answers: dict[int, Answer]) -> None:
        """Send these, and put an answer for each into ``answers``, as they come.

        Raises
        ------
        Refused
            All in one were refused: nothing was stored of what has no answer.
        ConfigurationError, ServerUnavailable
            As for `FhirClient.bundle`; what has an answer has it.
        """
        left = list(items)
        for item in left:
            answers.pop(item.outbox_id, None)
        for last in (*[False] * (LOOKS - 1), True):
            refused = self._sent(left, answers)
            doubtful = [item for item in left if self._doubtful(item, answers.get(item.outbox_id, refused))]
            decided = [self._look_again(item, answers) for item in doubtful]
            left = [item for item in left if item.outbox_id not in answers]
            if not left:
                return
            if last or not any(decided):
                raise Refused("the server refused a request", answer=refused or Answer(status=409, reason="HTTP 409"))

    def _doubtful(self, item: PendingResource, answer: Answer | None) -> bool:
        """Whether what came of it may be because somebody else changed it."""
        return answer is not None and not answer.final and answer.status in CONFLICT and bool(self._etag(item))

    def _look_again(self, item: PendingResource, answers: dict[int, Answer]) -> bool:
        """Settle a conflict, or have it sent once more over what is there now; returns whether anything is new."""
        etag = self._etag(item) or ""
        key = self.writer.server_id(item) or item.id
        since, now = since_delivered(self._client, self._can, item, key, self.writer.write(item).body, etag)
        if since is Since.SAME and now is not None:
            answers[item.outbox_id] = Answer(status=200, id=key, etag=now.etag)
        elif since is Since.NOTHING and now is not None and now.etag == etag:
            return False
        elif since is Since.NOTHING and now is not None:
            answers.pop(item.outbox_id, None)
            self._etags[item.outbox_id] = now.etag
        else:
            answers[item.outbox_id] = refusal(since)
        return True

    def _etag(self, item: PendingResource) -> str | None:
        return self._etags.get(item.outbox_id, item.etag)

    # --- forms -------------------------------------------------------------------------------------------------

    def _sent(self, items: Sequence[PendingResource], answers: dict[int, Answer]) -> Answer | None:
        """Send these in the form that the server offers; returns its answer where it refused all in one."""
        parts = [list(items)] if self._can.transaction else list(self.writer.rounds(items))
        for part in parts:
            try:
                self._send_part(part, answers)
            except DeliveryRefused as error:
                return error.answer
        return None

    def _send_part(self, part: Sequence[PendingResource], answers: dict[int, Answer]) -> None:
        if not self._can.transaction and not self._can.batch:
            for item in part:
                self._note(item, self._client.write(self.writer.write(item, etag=self._etag(item))), answers)
            return
        siblings = frozenset((item.type, item.id) for item in part) if self._can.transaction else frozenset()
        writes = [self.writer.write(item, siblings, etag=self._etag(item)) for item in part]
        told = self._client.bundle("transaction" if self._can.transaction else "batch", writes)
        for item, answer in zip(part, told, strict=True):
            self._note(item, answer, answers)

    def _note(self, item: PendingResource, answer: Answer, answers: dict[int, Answer]) -> None:
        known = self.writer.server_id(item)
        if answer.taken:
            self.writer.learn(item, answer.id)
            if known is None and self._found(item, answer):
                answer = self._updated(item, answer)
        answers[item.outbox_id] = answer

    def _found(self, item: PendingResource, answer: Answer) -> bool:
        """Whether a conditional create found it there already, perhaps an earlier version of it."""
        return self._can.manner(item.type) is Manner.CONDITIONAL_CREATE and answer.status == 200

    def _updated(self, item: PendingResource, answer: Answer) -> Answer:
        if not self._can.offers(item.type, "update"):
            return answer
        later = self._client.write(self.writer.write(item))
        return replace(later, id=answer.id, etag=later.etag)
