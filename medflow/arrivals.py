"""Received studies into the store as soon as each is complete: what `medflow receive --ingest` runs beside receiving.

A study is complete when nothing more of it has come for a while, or at once when an archive says how many instances it
has and as many are here. What is known of a study is the files in the spool, so that nothing is lost when a process is;
whoever else ingests the spool meanwhile takes the same files, and each is stored once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from medflow import steps
from medflow.config import Settings
from medflow.connections.endpoints import PacsSource
from medflow.dicom.header import is_deflated
from medflow.dicom.query import Query
from medflow.dicom.receive import receiver
from medflow.dicom.spool import NAME as NAME_OF_FILE
from medflow.dicom.spool import Spool
from medflow.errors import ConfigurationError, MedflowError, place_of
from medflow.processes import follow_parent
from medflow.registry import Registry
from medflow.store import Store

log = logging.getLogger(__name__)

NAME = "received"  # what these runs are called on record
LOOK_S = 1.0
COUNT_AFTER_S = 2.0  # of quiet, an archive is asked how many there are
ASK_AGAIN_S = 15.0
AGAIN_S = 30.0  # after a failure
WANTED = 0x00080018, 0x0020000D  # SOP and Study Instance UID
Expected = Callable[[str], int | None]  # instances of a study, by its UID, as far as somebody knows


@dataclass(kw_only=True, slots=True)
class _Study:
    """What is here of one study: SOP Instance UIDs by file, and when the last of them was first seen."""

    files: dict[Path, str] = field(default_factory=dict)
    last_s: float = 0.0
    ask_s: float = 0.0

    @property
    def count(self) -> int:
        return len(set(self.files.values()))


class Arrivals:
    """What lies in the spool, by study. Times are of the monotonic clock."""

    def __init__(self, spool: Spool, *, quiet_s: float, expected: Expected | None = None) -> None:
        self._spool = spool
        self._quiet_s = quiet_s
        self._expected = expected
        self._studies: dict[str, _Study] = {}
        self._study_of: dict[Path, str] = {}
        self._tried: set[Path] = set()  # that stay all the same: the next start, or another ingest, tries again

    def look(self, now_s: float) -> None:
        """See what has come, and what is gone."""
        there = {Path(entry.path) for entry in self._spool.files()} - self._tried
        for path in self._study_of.keys() - there:
            self._forget(path)
        for path in there - self._study_of.keys():
            study_uid, instance_uid = _uids(path)
            study_uid = study_uid or path.name  # by itself, lest others of no name that come keep it waiting
            study = self._studies.setdefault(study_uid, _Study())
            study.files[path] = instance_uid
            study.last_s, study.ask_s = now_s, now_s + COUNT_AFTER_S
            self._study_of[path] = study_uid

    def complete(self, now_s: float) -> list[Path]:
        """The files of the studies that are complete."""
        return [path for uid, study in self._studies.items() if self._whole(uid, study, now_s) for path in study.files]

    def done(self, paths: Iterable[Path]) -> None:
        """These were offered to the store; those that stay are not offered again."""
        for path in paths:
            self._forget(path)
            if path.exists():
                self._tried.add(path)

    def _whole(self, uid: str, study: _Study, now_s: float) -> bool:
        if now_s - study.last_s >= self._quiet_s:
            return True
        if self._expected is None or NAME_OF_FILE.fullmatch(uid) or now_s < study.ask_s:
            return False
        study.ask_s = now_s + ASK_AGAIN_S
        count = self._expected(uid)
        return count is not None and 0 < count <= study.count

    def _forget(self, path: Path) -> None:
        uid = self._study_of.pop(path, None)
        if uid is not None:
            study = self._studies[uid]
            study.files.pop(path, None)
            if not study.files:
                del self._studies[uid]


def _uids(path: Path) -> tuple[str, str]:
    """Study and SOP Instance UID; what has none, or may grow without end when it is inflated, is left for ingest."""

    def enough(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return tag > WANTED[-1]

    try:
        with path.open("rb") as file:
            if is_deflated(file):
                return "", path.stem
            found = read_partial(file, stop_when=enough, specific_tags=list(WANTED))
        return str(found.get("StudyInstanceUID", "")), str(found.get("SOPInstanceUID", path.stem))
    except Exception:  # noqa: BLE001 - whatever strange bytes make of a reader; ingest says what is wrong with them
        return "", path.stem


def counted_by(settings: Settings) -> Expected | None:
    """Who is asked for counts, by the settings; None where nobody is.

    Raises
    ------
    ConfigurationError
        The source that is named is none, or no PACS.
    """
    name = settings.receive_count_from
    if name is None:
        return None
    source = settings.chosen_sources([name])[name]
    if not isinstance(source, PacsSource):
        raise ConfigurationError(f"MEDFLOW_RECEIVE_COUNT_FROM names {name!r}, which is no source of kind pacs")
    calling_aet = source.calling_aet or settings.receive_aet

    def count(study_uid: str) -> int | None:
        query = Query(source, calling_aet)
        try:
            counts = [series.count for series in query.series(study_uid)]
        except MedflowError as error:
            log.warning("%s did not say how many instances a study has (%s)", source.public, type(error).__name__)
            return None
        finally:
            query.close()
        return None if None in counts else sum(number or 0 for number in counts)

    return count


def check(settings: Settings) -> None:
    """Raise, before anything is received, what would keep studies from being taken.

    Raises
    ------
    StoreNotReady, StoreUnavailable, ConfigurationError
        The message says what to do.
    """
    counted_by(settings)
    Store(settings).open().close()


def follow(settings: Settings, set_up: Callable[[Settings], object]) -> None:
    """The process: take complete studies until asked to stop (SIGTERM), or until its parent is gone."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: asked.set())
    follow_parent()
    set_up(settings)
    with suppress(OSError):
        os.nice(5)  # receiving goes first
    spool = receiver(settings).spool
    arrivals = Arrivals(spool, quiet_s=settings.receive_quiet_s, expected=counted_by(settings))
    while not asked.wait(LOOK_S):
        try:
            arrivals.look(time.monotonic())
            take(arrivals, settings)
        except MedflowError as error:
            log.error("received studies could not be taken (%s); tried again", error.message)
            asked.wait(AGAIN_S)
        except Exception as error:  # its text may quote what was received
            log.error("an unforeseen %s at %s: tried again", type(error).__name__, place_of(error))
            asked.wait(AGAIN_S)


def take(arrivals: Arrivals, settings: Settings) -> None:
    """Ingest what is complete, and remove what the store then has."""
    paths = arrivals.complete(time.monotonic())
    if not paths:
        return
    store = Store(settings).open()
    try:
        site = steps.Site(settings=settings, store=store, registry=Registry(models={}, broken=()))
        tally = steps.ingest(site, steps.source_of("dicom", paths, remove_received=True), name=NAME)
    finally:
        store.close()
    arrivals.done(paths)
    log.info("received: %d stored, %d unchanged, %d rejected", tally.stored, tally.unchanged, tally.rejected)
