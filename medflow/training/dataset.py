"""What a cohort's stays looked like at their prediction times: one dense array, kept on disk while it is trained on.

It is read by the very function that scoring reads with, so that a model is fitted to what it will be given, and to
nothing that became known later. A training that was interrupted finds the array again; one that has ended removes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medflow.errors import InputNotUsable
from medflow.plugin import Examples, ModelSpec, TimeSeriesInput
from medflow.records import digest_of
from medflow.registry import dump_spec
from medflow.store import Store
from medflow.store.timeseries import load_time_series
from medflow.timeseries import steps_of
from medflow.training.cohort import Members

AT_ONCE = 1000  # stays in memory beside the array
VALUES, STATICS, REFUSED = "values.npy", "statics.npy", "refused.json"  # the last is written when the others are whole


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Members that have a usable input, and it: ``values`` (n, steps, channels), ``statics`` (n, k), float32."""

    members: Members
    values: np.ndarray
    statics: np.ndarray

    def __len__(self) -> int:
        """How many rows."""
        return len(self.members.moments)

    def take(self, rows: np.ndarray) -> Dataset:
        """Only these rows, by index."""
        return Dataset(members=self.members.take(rows), values=self.values[rows], statics=self.statics[rows])

    @property
    def examples(self) -> Examples:
        """What a model is fitted to: no time, no encounter, and of a patient a number without a meaning elsewhere."""
        return Examples(
            values=np.asarray(self.values),
            statics=np.asarray(self.statics),
            outcome=self.members.outcome,
            patients=self.members.patients,
        )


def digest_of_members(members: Members, spec: ModelSpec) -> str:
    """What changes when any row, its outcome, or any record that its input is made of does (SHA-256, hex)."""
    rows = (
        f"{item.encounter_id} {item.patient_id} {item.time.utc_us} {item.revision} {outcome:g}"
        for item, outcome in zip(members.moments, members.outcome.tolist(), strict=True)
    )
    return digest_of(json.dumps(dump_spec(spec)["accepts"], sort_keys=True), "\n".join(rows))


def read_dataset(
    store: Store,
    spec: TimeSeriesInput,
    members: Members,
    folder: Path,
    *,
    progress: Callable[[int], None] = lambda _count: None,
) -> Dataset:
    """The input of every member, from ``folder`` where it was read before; who has none is left out and counted."""
    if not (folder / REFUSED).exists():
        _read(store, spec, members, folder, progress)
    refused = {int(row): code for row, code in json.loads((folder / REFUSED).read_text("utf-8")).items()}
    kept = np.setdiff1d(np.arange(len(members.moments)), np.fromiter(refused, dtype=np.int64, count=len(refused)))
    values, statics = np.load(folder / VALUES, mmap_mode="r"), np.load(folder / STATICS, mmap_mode="r")
    return Dataset(members=members.without(refused), values=values[kept], statics=statics[kept])


def remove_dataset(folder: Path) -> None:
    """Remove what `read_dataset` left."""
    for name in (REFUSED, VALUES, STATICS):
        (folder / name).unlink(missing_ok=True)


def _read(store: Store, spec: TimeSeriesInput, members: Members, folder: Path, progress: Callable[[int], None]) -> None:
    count = len(members.moments)
    values = _array(folder / VALUES, (count, steps_of(spec), len(spec.channels)))
    statics = _array(folder / STATICS, (count, len(spec.statics)))
    refused: dict[int, str] = {}
    with store.reading() as connection:
        for start in range(0, count, AT_ONCE):
            units = [(item.encounter_id, item.time) for item in members.moments[start : start + AT_ONCE]]
            for place, found in enumerate(load_time_series(connection, spec, units), start):
                if isinstance(found, InputNotUsable):
                    refused[place] = str(found.code)
                else:
                    values[place], statics[place] = found.values, found.statics
            progress(len(units))
    values.flush()
    statics.flush()
    incoming = folder / f".{REFUSED}"
    incoming.write_text(json.dumps(refused), "utf-8")
    os.replace(incoming, folder / REFUSED)


def _array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
