"""What a cohort's stays looked like at their prediction times: one dense array, kept on disk while it is trained on.

It is read by the very function that scoring reads with, so that a model is fitted to what it will be given, and to
nothing that became known later. A training that was interrupted finds the array again; one that has ended removes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medflow.plugin import Examples, ModelSpec, TimeSeries, TimeSeriesInput
from medflow.records import digest_of
from medflow.registry import dump_spec
from medflow.store import Store
from medflow.store.timeseries import load_series
from medflow.timeseries import steps_of
from medflow.training.cohort import Members

AT_ONCE = 2000  # stays in memory beside the array
VALUES, STATICS, REFUSED = "values.npy", "statics.npy", "refused.json"  # the last is written when the others are whole


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Members that have a usable input, and where it lies: ``rows`` (n,) of the arrays on disk.

    ``stored_values`` (m, steps, channels) and ``stored_statics`` (m, k), float32, are read as they are asked for.
    """

    members: Members
    rows: np.ndarray
    stored_values: np.ndarray
    stored_statics: np.ndarray

    def __len__(self) -> int:
        """How many rows."""
        return len(self.members.moments)

    def take(self, rows: np.ndarray) -> Dataset:
        """Only these rows, by index."""
        return replace(self, members=self.members.take(rows), rows=self.rows[rows])

    @property
    def values(self) -> np.ndarray:
        """(n, steps, channels) float32, NaN where nothing was measured, in memory."""
        return np.asarray(self.stored_values[self.rows])

    @property
    def statics(self) -> np.ndarray:
        """(n, k) float32, NaN unknown, in memory."""
        return np.asarray(self.stored_statics[self.rows])

    def series(self, place: int) -> TimeSeries:
        """One row as a model is given it."""
        row = self.rows[place]
        return TimeSeries(values=np.array(self.stored_values[row]), statics=np.array(self.stored_statics[row]))

    @property
    def examples(self) -> Examples:
        """What a model is fitted to: no time, no encounter, and of a patient a number without a meaning elsewhere."""
        return Examples(
            values=self.values,
            statics=self.statics,
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
    found = _found(folder, spec, len(members.moments))
    if found is None:
        remove_dataset(folder)
        _read(store, spec, members, folder, progress)
        found = _found(folder, spec, len(members.moments))
        assert found is not None  # noqa: S101 - it was written just now
    values, statics, refused = found
    kept = np.setdiff1d(np.arange(len(members.moments)), np.fromiter(refused, dtype=np.int64, count=len(refused)))
    return Dataset(members=members.without(refused), rows=kept, stored_values=values, stored_statics=statics)


def _found(folder: Path, spec: TimeSeriesInput, count: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]] | None:
    """Values, statics and who was refused, as `_read` left them; None where they are not there, or not whole."""
    try:
        refused = {int(row): code for row, code in json.loads((folder / REFUSED).read_text("utf-8")).items()}
        values, statics = np.load(folder / VALUES, mmap_mode="r"), np.load(folder / STATICS, mmap_mode="r")
    except (OSError, ValueError):
        return None
    shapes = (count, steps_of(spec), len(spec.channels)), (count, len(spec.statics))
    return (values, statics, refused) if (values.shape, statics.shape) == shapes else None


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
            block = load_series(connection, spec, units)
            values[start : start + len(units)], statics[start : start + len(units)] = block.values, block.statics
            refused.update({start + place: str(reason.code) for place, reason in block.refused.items()})
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
