"""What the store holds durably, for storage commitment: asked by the receiving processes, which know no store."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from medflow.config import Settings
from medflow.errors import MedflowError
from medflow.store import Store
from medflow.store.imaging import kept_instances

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredInstances:
    """Called with SOP Instance UIDs, tells which of them the store has, each with its SOP Class UID.

    Without a store, or while it does not answer, nothing is: a sender that is told so keeps what it has.
    """

    settings: Settings

    def __call__(self, uids: Collection[str]) -> Mapping[str, str]:
        """Which of these the store has as rows and as bytes, both on disk."""
        if self.settings.embedded and not (self.settings.home / "medflow.db").exists():
            return {}  # and none is made for the question
        try:
            store = Store(self.settings).open()
        except MedflowError as error:
            log.warning("the store cannot be asked for storage commitment (%s)", type(error).__name__)
            return {}
        try:
            with store.reading() as connection:
                found = kept_instances(connection, uids)
            held = {uid: sop_class for uid, (sop_class, digest) in found.items() if digest in store.objects}
            if held:
                os.sync()
            return held
        except MedflowError as error:
            log.warning("the store cannot be asked for storage commitment (%s)", type(error).__name__)
            return {}
        finally:
            store.close()
