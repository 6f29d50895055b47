"""The same instance by another way: received, fetched or read from a file, its data set is the same.

Who writes a file chooses its preamble, and in its file meta group (PS3.10 7.1) who wrote it: two files of one instance
differ there, and nowhere else. What is stored is the file that came first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from medflow.errors import ObjectDamaged
from medflow.store import Connection, Store
from medflow.store.imaging import objects_of

OTHER_HEADER = "other-header"  # the note of such a file in the tally


class Stored:
    """The objects that are stored under some SOP Instance UIDs; without ``in_place`` those in the object store only."""

    def __init__(self, store: Store, connection: Connection, uids: Iterable[str], *, in_place: bool = True) -> None:
        self._objects = store.objects
        found = objects_of(connection, uids)
        self._known = {uid: where for uid, where in found.items() if in_place or where[1] is None}

    def __contains__(self, uid: str) -> bool:
        return uid in self._known

    def has(self, uid: str, file: BinaryIO) -> bool:
        """Whether the instance of this UID is stored with the data set of ``file``, which is read from its start."""
        from medflow.dicom.header import same_data_set  # with pydicom, for which no other step should wait

        if uid not in self._known:
            return False
        digest, path = self._known[uid]
        try:
            with Path(path).open("rb") if path is not None else self._objects.open(digest) as stored:
                return same_data_set(file, stored)
        except (OSError, KeyError, ObjectDamaged):  # what is stored cannot be looked at
            return False
