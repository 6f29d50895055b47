"""The folder of one training under way: its search, its best weights so far and its data, until it has ended.

Whoever trains holds its lock, which the operating system lets go of whatever kills the process. What lies there is for
nobody else's eyes: the folder is its owner's alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from medflow.errors import ConfigurationError
from medflow.inference.weights import dump_weights
from medflow.plugin import Epoch, Fitted

FOLDER = "training"  # under MEDFLOW_HOME
JOURNAL, LOCK, BEST = "journal.log", "lock", "best"
FORGOTTEN_S = 7 * 86_400  # a training that nobody went on with for so long is removed: it has patients' data


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The best fit so far: of which trial, its weights files as bytes, its threshold and how it learnt."""

    number: int
    chosen: Mapping[str, Any]
    files: Mapping[str, bytes]
    threshold: float | None
    epochs: Sequence[Epoch]

    @classmethod
    def of(cls, number: int, chosen: Mapping[str, Any], fitted: Fitted, epochs: Sequence[Epoch]) -> Kept:
        """A fitted model, its tensors as safetensors; PluginBroken where they are no numbers."""
        files = {name: dump_weights(tensors) for name, tensors in fitted.tensors.items()}
        return cls(number=number, chosen=dict(chosen), files=files, threshold=fitted.threshold, epochs=tuple(epochs))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to: the best fit, its log loss on the validation part, and how its trials ended."""

    best: Kept
    loss: float
    complete: int
    stopped: int
    failed: Mapping[str, int]


@contextmanager
def opened(home: Path, key: str) -> Iterator[Path]:
    """The folder of the training ``key``, for one process at a time; made where it is not there.

    Raises
    ------
    ConfigurationError
        Another process trains the same, or the folder cannot be written.
    """
    folder = home / FOLDER / key
    _forget(folder.parent)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the folder of the training, {folder}, cannot be written ({error.strerror}): free space or mend its "
            "permissions, then run the same command again; it goes on where it was"
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                "another process is at this very training: wait for it, or choose another seed"
            ) from None
        _mend(folder)
        yield folder
    finally:
        os.close(lock)


def keep(folder: Path, kept: Kept) -> None:
    """Put the best fit in the place of the one before, wholly or not at all."""
    incoming = folder / ".incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(mode=0o700)
    for name, data in kept.files.items():
        (incoming / name).write_bytes(data)
    about = {
        "number": kept.number,
        "chosen": dict(kept.chosen),
        "files": {name: sha256(data).hexdigest() for name, data in kept.files.items()},
        "threshold": kept.threshold,
        "epochs": [asdict(epoch) for epoch in kept.epochs],
    }
    (incoming / "about.json").write_text(json.dumps(about), "utf-8")
    shutil.rmtree(folder / BEST, ignore_errors=True)
    os.replace(incoming, folder / BEST)


def kept(folder: Path, number: int) -> Kept | None:
    """The fit of trial ``number``, where it is the one that was kept, and whole; else it is fitted again."""
    try:
        about = json.loads((folder / BEST / "about.json").read_text("utf-8"))
        files = {name: (folder / BEST / name).read_bytes() for name in about["files"]}
    except (OSError, ValueError):
        return None
    if about["number"] != number or about["files"] != {name: sha256(data).hexdigest() for name, data in files.items()}:
        return None
    return Kept(
        number=number,
        chosen=about["chosen"],
        files=files,
        threshold=about["threshold"],
        epochs=tuple(Epoch(**epoch) for epoch in about["epochs"]),
    )


def remove(folder: Path) -> None:
    """The training has ended: remove all of it."""
    shutil.rmtree(folder, ignore_errors=True)


def _forget(trainings: Path) -> None:
    """Remove trainings that were left, unless somebody is at them."""
    for left in trainings.glob("*/"):
        try:
            with (left / LOCK).open("rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - max(path.stat().st_mtime for path in (left, *left.iterdir())) > FORGOTTEN_S:
                    shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # in use, or going already


def _mend(folder: Path) -> None:
    """What a killed process leaves of the journal: its own lock, or half a last line."""
    for left in folder.glob(f"{JOURNAL}.lock*"):
        left.unlink(missing_ok=True)
    journal = folder / JOURNAL
    if not journal.exists():
        journal.touch(mode=0o600)
    data = journal.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with journal.open("r+b") as file:
            file.truncate(whole)
