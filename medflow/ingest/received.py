"""The end of a received file's life: it is removed from the spool when the store has it for good.

Nothing is taken on trust: a file goes only if its name is the SHA-256 that `medflow receive` gave it, a committed row
says that these bytes are stored (or their data set in another file, or that they were refused, and kept), the object
store has them, and the disk has been told to write all of it down. A process killed anywhere in between leaves a file
too many, never one too few.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from medflow.dicom.spool import NAME
from medflow.ingest.landing import stated_uid
from medflow.ingest.same import Stored
from medflow.store import Store
from medflow.store.imaging import known_objects
from medflow.store.ledger import list_rejects

BATCH = 500


def remove_received(store: Store, paths: Iterable[Path]) -> int:
    """Remove the received files under ``paths`` whose bytes the store has; returns how many."""
    with store.reading() as connection:
        refused = {item.sha256 for item in list_rejects(connection) if item.payload}
    files = _received(paths)
    removed = 0
    while batch := list(islice(files, BATCH)):
        with store.reading() as connection:
            known = known_objects(connection, [path.stem for path in batch])
        kept = {digest for digest, path in known.items() if path is None} | refused
        done = [path for path in batch if path.stem in kept and path.stem in store.objects]
        done += _copies(store, [path for path in batch if path.stem not in kept and path.stem not in known])
        if done:
            os.sync()  # rows and objects outlive the machine before the only other copy goes
        for path in done:
            path.unlink(missing_ok=True)
        removed += len(done)
    return removed


def _copies(store: Store, paths: Sequence[Path]) -> list[Path]:
    """Those whose instance is in the object store with the same data set, behind another file meta group."""
    uids = {path: stated_uid(path) for path in paths}
    with store.reading() as connection:
        stored = Stored(store, connection, filter(None, uids.values()), in_place=False)
    found: list[Path] = []
    for path, uid in uids.items():
        with suppress(OSError):
            with path.open("rb") as file:
                if uid and stored.has(uid, file):
                    found.append(path)
    return found


def _received(paths: Iterable[Path]) -> Iterator[Path]:
    for named in paths:
        if NAME.fullmatch(named.name) and named.is_file():
            yield named
        for folder, _, names in os.walk(named):
            yield from (Path(folder, name) for name in sorted(names) if NAME.fullmatch(name))
