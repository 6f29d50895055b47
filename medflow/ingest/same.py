"""The same instance by another way: received, fetched or read from a file, its data set is the same.

Who writes a file chooses its preamble, and says in its file meta group (PS3.10 7.1) who wrote it; some write the same
elements another way besides. What is stored is the file that came first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from medflow.errors import ObjectDamaged
from medflow.store import Connection, Store
from medflow.store.imaging import objects_of

OTHER_HEADER, OTHER_ENCODING = "other-header", "other-encoding"  # the notes of such files in the tally


class Stored:
    """The objects that are stored under some SOP Instance UIDs; without ``in_place`` those in the object store only."""

    def __init__(self, store: Store, connection: Connection, uids: Iterable[str], *, in_place: bool = True) -> None:
        self._objects = store.objects
        found = objects_of(connection, uids)
        self._known = {uid: where for uid, where in found.items() if in_place or where[1] is None}

    def __contains__(self, uid: str) -> bool:
        return uid in self._known

    def has(self, uid: str, file: BinaryIO) -> str | None:
        """How ``file`` differs from what is stored of the instance of this UID; None where it is another or unknown.

        That is OTHER_HEADER, when the data set is byte for byte the same, or OTHER_ENCODING, when its elements are.
        """
        from medflow.dicom.equal import same_elements  # with pydicom, for which no other step should wait
        from medflow.dicom.header import same_data_set

        if uid not in self._known:
            return None
        digest, path = self._known[uid]
        try:
            with Path(path).open("rb") if path is not None else self._objects.open(digest) as stored:
                if same_data_set(file, stored):
                    return OTHER_HEADER
                return OTHER_ENCODING if same_elements(file, stored) else None
        except (OSError, KeyError, ObjectDamaged):  # what is stored cannot be looked at
            return None
