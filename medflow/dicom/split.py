"""The frames of a series to its volumes: those that lie at one place are told apart by what headers say, or not at all.

A fact splits a series only if it does so completely: the same values at every place, each of them once. So one echo
time, b-value or phase too many or too few refuses the series. Where no fact does, the order of acquisition may: if
every image of one volume was acquired before any of the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medflow.dicom.frames import Frame
from medflow.dicom.geometry import OFF_GRID_MM, Grid, check_alike, grid_of, places_of
from medflow.errors import InputNotUsable

IN_TIME = (  # facts whose values follow one another as the volumes were acquired
    *("TemporalPositionIndex", "TemporalPositionTimeOffset", "NominalPercentageOfCardiacPhase"),
    *("NominalCardiacTriggerDelayTime", "NominalPercentageOfRespiratoryPhase", "NominalRespiratoryTriggerDelayTime"),
    *("FrameReferenceTime", "TriggerTime", "EchoTime", "EchoNumbers"),
)
LOOSE = {"TriggerTime", "AcquisitionNumber", "InstanceNumber"}  # may differ from slice to slice of one volume
OF_ONE_VOLUME = ("EchoTime", "DiffusionBValue", "FlipAngle", "KVP", "SliceThickness")  # the same in all its slices
SAME_VALUE = 0.02  # relative
KIND_OF_ONE_VOLUME = ("ComplexImageComponent", "ConvolutionKernel")

Key = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """The frames of one volume, in order along their normal, and what tells it from the others of its series."""

    frames: tuple[Frame, ...]
    grid: Grid
    labels: Mapping[str, float]


def volumes_of(frames: Sequence[Frame], counts: Mapping[str, int]) -> list[Volume]:
    """Split a series into its volumes, on one grid, in their order of acquisition.

    ``counts`` are the numbers of volumes that the series says it has, by DICOM keyword (NumberOfTemporalPositions).

    Raises
    ------
    InputNotUsable
        A code of `check_alike` or `grid_of`; several-stacks, duplicate-positions, incomplete-volumes,
        indistinct-volumes, mixed-content, mixed-acquisitions or mixed-positions.
    """
    check_stacks(frames)
    planes = [frame.plane for frame in frames]
    check_alike(planes)
    places = places_of(planes)
    per_place = np.bincount(places)
    if per_place.max() == 1:
        groups: list[tuple[dict[str, float], list[int]]] = [({}, list(range(len(frames))))]
    else:
        _check_even(frames, places, per_place)
        groups = _groups(frames, places, counts)
    volumes = [_volume([frames[index] for index in members], labels) for labels, members in groups]
    first = volumes[0].grid
    for volume in volumes[1:]:
        if np.abs(volume.grid.affine - first.affine).max() > OFF_GRID_MM:
            raise InputNotUsable("mixed-positions", "the volumes of the series do not lie at the same place")
    return _in_order(volumes)


def check_stacks(frames: Sequence[Frame]) -> None:
    """Refuse groups of slices that a scanner planned as several stacks (PS3.3 C.7.6.16.2.2.4)."""
    stacks = {frame.stack for frame in frames if frame.stack is not None}
    if len(stacks) > 1:
        reason = f"{len(stacks)} stacks of slices (StackID), each with a position of its own, are no one volume"
        raise InputNotUsable("several-stacks", reason)


def _check_even(frames: Sequence[Frame], places: np.ndarray, per_place: np.ndarray) -> None:
    """Every place must have as many frames; none of which differs from another in kind."""
    usual = Counter(per_place.tolist()).most_common(1)[0][0]
    if per_place.min() != per_place.max():
        most, where = int(per_place.max()), int((per_place != usual).sum())
        if usual == 1:
            numbers = {frame.facts.get("AcquisitionNumber") for frame in frames}
            of = f", from {len(numbers)} acquisitions" if len(numbers) > 1 else ""
            reason = f"up to {most} slices lie at the same position, at {where} of {len(per_place)} positions{of}"
            raise InputNotUsable("duplicate-positions", reason)
        reason = f"{usual} slices at most positions, but {per_place.min()} to {most} at {where}: a volume is incomplete"
        raise InputNotUsable("incomplete-volumes", reason)
    for name in sorted({name for frame in frames for name in frame.kind}):
        if len({frame.kind.get(name) for frame in frames}) > 1:
            raise InputNotUsable("mixed-content", f"the series mixes volumes of several kinds: they differ in {name}")


def _groups(
    frames: Sequence[Frame], places: np.ndarray, counts: Mapping[str, int]
) -> list[tuple[dict[str, float], list[int]]]:
    """The frames of each volume, with its labels."""
    telling = _telling(frames, places)
    keys = [tuple(frame.facts.get(name) for name in telling) for frame in frames]
    if not _even(keys, places):
        reason = f"{', '.join(telling)} tell the volumes of the series apart in ways that contradict each other"
        raise InputNotUsable("indistinct-volumes", reason)
    found: dict[Key, list[int]] = {}
    for index, key in enumerate(keys):
        found.setdefault(key, []).append(index)
    names = _needed(telling, list(found))
    labels = [
        {name: value for name, value in zip(telling, key, strict=True) if name in names and value is not None}
        for key in found
    ]
    parts = [_Part(frames=frames, members=members, places=places) for members in found.values()]
    if all(part.volumes == 1 for part in parts):
        return [(label, part.members) for label, part in zip(labels, parts, strict=True)]
    declared = len(frames) // (int(places.max()) + 1) in counts.values()
    for rule in (_by_trigger, _by_number, _by_time, *([_by_order] if declared else [])):
        ranked = [[({}, part.members)] if part.volumes == 1 else rule(part) for part in parts]
        if all(item is not None for item in ranked):
            return [
                ({**label, **more}, members)
                for label, item in zip(labels, ranked, strict=True)
                for more, members in item or ()
            ]
    besides = f" besides {', '.join(names)}" if names else ""
    most = max(part.volumes for part in parts)
    reason = (
        f"{most} slices at each of {places.max() + 1} positions, and nothing{besides} tells for certain which is which"
    )
    raise InputNotUsable("indistinct-volumes", reason)


# --- facts -----------------------------------------------------------------------------------------------------


def _telling(frames: Sequence[Frame], places: np.ndarray) -> list[str]:
    """The facts that take several values, and those equally often at every place."""
    names = {name for frame in frames for name in frame.facts} - LOOSE
    telling = []
    for name in sorted(names, key=lambda name: (IN_TIME.index(name) if name in IN_TIME else len(IN_TIME), name)):
        values = [frame.facts.get(name) for frame in frames]
        if len(set(values)) > 1 and _even(values, places):
            telling.append(name)
    return telling


def _even(values: Sequence[object], places: np.ndarray) -> bool:
    """Whether every place has the same values, equally often."""
    by_place: list[Counter[object]] = [Counter() for _ in range(int(places.max()) + 1)]
    for place, value in zip(places.tolist(), values, strict=True):
        by_place[place][value] += 1
    return all(found == by_place[0] for found in by_place)


def _needed(telling: Sequence[str], keys: Sequence[Key]) -> list[str]:
    """As few of the telling facts as tell the volumes apart, the first ones first; directions whole or not at all."""
    names: list[str] = []
    parts = 1
    stems = list(dict.fromkeys(name.partition("[")[0] for name in telling))
    for stem in stems:
        more = [*names, *(name for name in telling if name.partition("[")[0] == stem)]
        chosen = [telling.index(name) for name in more]
        if (count := len({tuple(key[index] for index in chosen) for key in keys})) > parts:
            names, parts = more, count
    return names


# --- order -----------------------------------------------------------------------------------------------------

Ranked = list[tuple[dict[str, float], list[int]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The frames (``members``, by index) that facts do not tell apart: as many at every place."""

    frames: Sequence[Frame]
    members: list[int]
    places: np.ndarray

    @property
    def volumes(self) -> int:
        return len(self.members) // (int(self.places.max()) + 1)

    def fact(self, name: str) -> np.ndarray | None:
        """The values of a fact, one a member; None where one has none."""
        values = [self.frames[index].facts.get(name) for index in self.members]
        return None if None in values else np.array(values, float)

    def ranked(self, values: np.ndarray | None) -> list[tuple[float, list[int]]] | None:
        """The n-th smallest value of every place together; None unless they are all smaller than the next ones."""
        if values is None:
            return None
        order = np.lexsort((values, self.places[self.members])).reshape(-1, self.volumes)  # one row a place
        ranks = values[order]
        if (ranks.max(axis=0)[:-1] >= ranks.min(axis=0)[1:]).any():
            return None
        members = np.array(self.members)
        return [(float(ranks[:, rank].min()), members[order[:, rank]].tolist()) for rank in range(self.volumes)]


def _by_trigger(part: _Part) -> Ranked | None:
    """By TriggerTime (ms after the R wave), if no slice of a phase comes after one of the next phase."""
    ranked = part.ranked(part.fact("TriggerTime"))
    return None if ranked is None else [({"TriggerTime": start}, members) for start, members in ranked]


def _by_number(part: _Part) -> Ranked | None:
    """By AcquisitionNumber, if each volume has one of its own."""
    values = part.fact("AcquisitionNumber")
    if values is None or len(set(values)) != part.volumes:
        return None
    ranked = part.ranked(values)
    return None if ranked is None else [({"AcquisitionNumber": number}, members) for number, members in ranked]


def _by_time(part: _Part) -> Ranked | None:
    """By the time of acquisition, in s from the first, if each volume was complete before the next began."""
    times = [part.frames[index].acquired_s for index in part.members]
    if None in times:
        return None
    first = min(frame.acquired_s for frame in part.frames if frame.acquired_s is not None)
    ranked = part.ranked(np.array(times, float))
    if ranked is None:
        return None
    return [({"TemporalPositionTimeOffset": round(start - first, 6)}, members) for start, members in ranked]


def _by_order(part: _Part) -> Ranked | None:
    """By InstanceNumber, if it runs volume by volume or place by place."""
    numbers = part.fact("InstanceNumber")
    if numbers is None or len(set(numbers)) != len(numbers):
        return None
    order = np.argsort(numbers)
    members, along = np.array(part.members)[order], part.places[part.members][order]
    by_volume, by_place = along.reshape(part.volumes, -1), along.reshape(-1, part.volumes)
    if (by_volume == by_volume[0]).all():
        chosen = members.reshape(part.volumes, -1)
    elif (by_place == by_place[:, :1]).all():
        chosen = members.reshape(-1, part.volumes).T
    else:
        return None
    return [({"TemporalPositionIndex": float(rank + 1)}, indices.tolist()) for rank, indices in enumerate(chosen)]


# --- one volume ------------------------------------------------------------------------------------------------


def _volume(frames: Sequence[Frame], labels: Mapping[str, float]) -> Volume:
    for name in OF_ONE_VOLUME:
        values = [value for frame in frames if (value := frame.facts.get(name)) is not None]
        if values and (len(values) < len(frames) or max(values) - min(values) > SAME_VALUE * max(values)):
            raise InputNotUsable("mixed-content", f"the slices of one volume differ in {name}")
    for name in KIND_OF_ONE_VOLUME:
        if len({frame.kind.get(name) for frame in frames}) > 1:
            raise InputNotUsable("mixed-content", f"the slices of one volume differ in {name}")
    grid = grid_of([frame.plane for frame in frames])
    ordered = tuple(frames[index] for index in grid.order)
    _check_interleaved(ordered)
    return Volume(frames=ordered, grid=grid, labels=labels)


def _check_interleaved(ordered: Sequence[Frame]) -> None:
    """Two X-ray acquisitions whose slices lie between one another's are two volumes, however even the gaps."""
    numbers = [frame.facts.get("AcquisitionNumber") for frame in ordered if "KVP" in frame.facts]
    runs = 1 + sum(one != other for one, other in pairwise(numbers))
    if runs > len(set(numbers)) > 1:
        reason = f"slices of {len(set(numbers))} acquisitions (AcquisitionNumber) lie between one another"
        raise InputNotUsable("mixed-acquisitions", reason)


def _in_order(volumes: Sequence[Volume]) -> list[Volume]:
    """In order of acquisition: by the labels that follow time, else when they were acquired, else by their numbers."""
    names = [name for name in IN_TIME if all(name in volume.labels for volume in volumes)]

    def key(volume: Volume) -> tuple[object, ...]:
        started = [frame.acquired_s for frame in volume.frames if frame.acquired_s is not None]
        numbers = [frame.facts["InstanceNumber"] for frame in volume.frames if "InstanceNumber" in frame.facts]
        place = min((frame.file, frame.number) for frame in volume.frames)
        labels = tuple(volume.labels[name] for name in names)
        return labels, min(started, default=0.0), min(numbers, default=0.0), place

    return sorted(volumes, key=key)
