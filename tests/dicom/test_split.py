"""Which slice belongs to which volume: by what headers say completely, by an order that is plain, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.dicom.frames import Frame
from medflow.dicom.geometry import planes_of
from medflow.dicom.split import Volume, volumes_of
from medflow.errors import InputNotUsable
from tests.factories_dicom import slice_of

(PLANE,) = planes_of(slice_of())


def _frame(z: float, *, number: int = 0, acquired: float | None = None, shift: float = 0.0, **facts: float) -> Frame:
    position = np.array([-10.0 + shift, -20.0, 2.5 * z])
    plane = replace(PLANE, position=position)
    return Frame(file=0, number=number, plane=plane, facts=facts, acquired_s=acquired, kind={"ImageType": "AXIAL"})


def _series(
    volumes: int, slices: int, fact: Callable[[int, int], Mapping[str, Any]], order: Sequence[int] | None = None
) -> list[Frame]:
    """Volume by volume, or in any order; ``fact`` says of (volume, slice) what its header holds."""
    frames = [
        _frame(z, number=volume * slices + z, **fact(volume, z)) for volume in range(volumes) for z in range(slices)
    ]
    return frames if order is None else [frames[index] for index in order]


def _members(volumes: Sequence[Volume], slices: int) -> list[set[int]]:
    """Which of the series' volumes the frames of each volume are of; fails unless they are in order of place."""
    assert all([frame.number % slices for frame in volume.frames] == list(range(slices)) for volume in volumes)
    return [{frame.number // slices for frame in volume.frames} for volume in volumes]


def _refusal(frames: Sequence[Frame], counts: Mapping[str, int] | None = None) -> InputNotUsable:
    with pytest.raises(InputNotUsable) as caught:
        volumes_of(frames, counts or {})
    return caught.value


FACTS = [
    *("TemporalPositionIndex", "EchoTime", "DiffusionBValue", "NominalPercentageOfCardiacPhase", "FlipAngle"),
    *("InversionTime", "FrameReferenceTime", "TriggerTime", "AcquisitionNumber", "KVP"),
]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(FACTS), st.integers(2, 6), st.integers(2, 7), st.data())
def test_one_fact_splits_a_series_in_whatever_order_its_files_come(
    name: str, volumes: int, slices: int, data: Any
) -> None:
    order = data.draw(st.permutations(range(volumes * slices)))

    found = volumes_of(_series(volumes, slices, lambda v, z: {name: 10.0 + v, "InstanceNumber": v}, order), {})

    assert _members(found, slices) == [{volume} for volume in range(volumes)]
    assert [dict(volume.labels) for volume in found] == [{name: 10.0 + volume} for volume in range(volumes)]


def test_a_single_volume_has_no_labels() -> None:
    (volume,) = volumes_of(_series(1, 4, lambda v, z: {"EchoTime": 30.0, "AcquisitionNumber": z}), {})

    assert (len(volume.frames), volume.labels) == (4, {})


def test_two_facts_together() -> None:
    found = volumes_of(_series(6, 3, lambda v, z: {"EchoTime": 5.0 + v % 2, "TemporalPositionIndex": v // 2 + 1.0}), {})

    assert _members(found, 3) == [{volume} for volume in range(6)]  # by time first, then by echo
    assert dict(found[1].labels) == {"TemporalPositionIndex": 1.0, "EchoTime": 6.0}


def test_facts_that_say_the_same_are_named_once() -> None:
    found = volumes_of(_series(2, 3, lambda v, z: {"EchoTime": 5.0 + v, "EchoNumbers": v + 1.0}), {})

    assert [dict(volume.labels) for volume in found] == [{"EchoTime": 5.0}, {"EchoTime": 6.0}]


def test_directions_of_diffusion_and_repeated_zeros_are_told_apart() -> None:
    directions = [None, (1, 0, 0), (0, 1, 0), None]  # b 0 was acquired at the start and at the end

    def facts(volume: int, _z: int) -> dict[str, float]:
        gradient = directions[volume]
        named = {f"DiffusionGradientOrientation[{index}]": value for index, value in enumerate(gradient or ())}
        return {"DiffusionBValue": 1000.0 if gradient else 0.0, "acquired": float(volume), **named}

    found = volumes_of(_series(4, 3, facts), {})

    assert _members(found, 3) == [{0}, {1}, {2}, {3}]
    assert [dict(volume.labels) for volume in found] == [
        {"DiffusionBValue": 0.0, "TemporalPositionTimeOffset": 0.0},
        {"DiffusionBValue": 1000.0}
        | {f"DiffusionGradientOrientation[{i}]": value for i, value in enumerate((1, 0, 0))},
        {"DiffusionBValue": 1000.0}
        | {f"DiffusionGradientOrientation[{i}]": value for i, value in enumerate((0, 1, 0))},
        {"DiffusionBValue": 0.0, "TemporalPositionTimeOffset": 3.0},
    ]


def test_volumes_acquired_one_after_another_are_told_apart_by_time() -> None:
    found = volumes_of(_series(3, 4, lambda v, z: {"acquired": 100 + v * 2 + z * 0.4}), {})

    assert _members(found, 4) == [{0}, {1}, {2}]
    assert [dict(volume.labels) for volume in found] == [{"TemporalPositionTimeOffset": 2.0 * v} for v in range(3)]


def test_a_heart_that_beats_unevenly_still_has_its_phases_in_order() -> None:
    found = volumes_of(_series(3, 4, lambda v, z: {"TriggerTime": v * 40.0 + z}), {})

    assert [dict(volume.labels) for volume in found] == [{"TriggerTime": v * 40.0} for v in range(3)]


@pytest.mark.parametrize("facts", [{"TriggerTime": 25.0}, {"acquired": 25.0}])
def test_an_order_in_which_volumes_overlap_tells_nothing(facts: dict[str, float]) -> None:
    ((name, pace),) = facts.items()
    frames = _series(3, 4, lambda v, z: {name: v * pace + z * 10})

    assert _refusal(frames).code == "indistinct-volumes"


@pytest.mark.parametrize("numbered", ["by volume", "by place"])
def test_instance_numbers_count_where_the_series_says_how_many_volumes_it_has(numbered: str) -> None:
    by_volume = numbered == "by volume"
    frames = _series(3, 4, lambda v, z: {"InstanceNumber": 1.0 + (v * 4 + z if by_volume else z * 3 + v)})

    assert _members(volumes_of(frames[::-1], {"NumberOfTemporalPositions": 3}), 4) == [{0}, {1}, {2}]
    assert _refusal(frames).code == "indistinct-volumes"
    assert _refusal(frames, {"NumberOfTemporalPositions": 4}).code == "indistinct-volumes"


def test_instance_numbers_in_no_order_tell_nothing() -> None:
    numbers = iter([1, 5, 2, 9, 3, 4, 6, 7, 8, 10, 11, 12])
    frames = _series(3, 4, lambda v, z: {"InstanceNumber": float(next(numbers))})

    assert _refusal(frames, {"NumberOfTemporalPositions": 3}).code == "indistinct-volumes"


def test_facts_that_contradict_each_other_refuse_the_series() -> None:
    def facts(volume: int, z: int) -> dict[str, float]:
        return {"EchoTime": 5.0 + volume, "TemporalPositionIndex": float(volume if z < 2 else 1 - volume)}

    error = _refusal(_series(2, 4, facts))

    assert (error.code, "contradict" in error.message) == ("indistinct-volumes", True)


def test_a_fact_that_splits_only_some_places_does_not_count() -> None:
    frames = _series(2, 4, lambda v, z: {"EchoTime": 5.0 + v if z < 3 else 5.0})

    assert _refusal(frames).code == "indistinct-volumes"


def test_a_volume_that_lacks_a_slice_refuses_the_series() -> None:
    frames = _series(5, 4, lambda v, z: {"TemporalPositionIndex": float(v)})

    assert _refusal(frames[:-1]).code == "incomplete-volumes"


def test_a_slice_twice_refuses_the_series() -> None:
    frames = _series(1, 6, lambda v, z: {"AcquisitionNumber": 1.0})

    error = _refusal([*frames, _frame(2, AcquisitionNumber=2.0)])

    assert error.code == "duplicate-positions"
    assert "up to 2 slices lie at the same position, at 1 of 6 positions, from 2 acquisitions" in error.message


def test_slices_missing_in_every_volume_are_noticed() -> None:
    frames = [frame for frame in _series(2, 6, lambda v, z: {"EchoTime": 5.0 + v}) if frame.number % 6 != 3]

    assert _refusal(frames).code == "missing-slices"


def test_volumes_beside_one_another_are_refused() -> None:
    frames = [_frame(z, EchoTime=5.0 + v, shift=3.0 * v) for v in range(2) for z in range(4)]

    assert _refusal(frames).code == "mixed-positions"


@pytest.mark.parametrize("name", ["EchoTime", "DiffusionBValue", "FlipAngle", "KVP"])
def test_one_volume_has_one_contrast(name: str) -> None:
    assert _refusal(_series(1, 6, lambda v, z: {name: 100.0 + 5 * (z % 2)})).code == "mixed-content"
    assert len(volumes_of(_series(1, 6, lambda v, z: {name: 100.0 + (z % 2)}), {})) == 1  # within 2 %
    assert _refusal(_series(1, 6, lambda v, z: {name: 100.0} if z else {})).code == "mixed-content"


@pytest.mark.parametrize("name", ["ComplexImageComponent", "ConvolutionKernel"])
def test_one_volume_is_of_one_kind(name: str) -> None:
    frames = [replace(frame, kind={name: "A" if frame.number % 2 else "B"}) for frame in _series(1, 6, lambda v, z: {})]

    assert _refusal(frames).code == "mixed-content"


def test_volumes_of_two_kinds_are_no_volumes_of_one_series() -> None:
    frames = _series(2, 4, lambda v, z: {"EchoTime": 5.0 + v})
    mixed = [
        replace(frame, kind={"ComplexImageComponent": "MAGNITUDE" if frame.number < 4 else "PHASE"}) for frame in frames
    ]

    error = _refusal(mixed)

    assert (error.code, "ComplexImageComponent" in error.message) == ("mixed-content", True)


def test_two_scans_between_one_another_are_not_one_of_half_the_distance() -> None:
    frames = _series(1, 8, lambda v, z: {"KVP": 120.0, "AcquisitionNumber": float(z % 2)})
    one_after_the_other = _series(1, 8, lambda v, z: {"KVP": 120.0, "AcquisitionNumber": float(z // 4)})

    assert _refusal(frames).code == "mixed-acquisitions"
    assert len(volumes_of(one_after_the_other, {})) == 1


def test_two_reconstructions_between_one_another_are_told_by_their_thickness() -> None:
    frames = _series(1, 8, lambda v, z: {"SliceThickness": 5.0 if z % 2 else 2.5})

    error = _refusal(frames)

    assert (error.code, "SliceThickness" in error.message) == ("mixed-content", True)


def test_stacks_that_a_scanner_planned_are_not_mixed() -> None:
    frames = [replace(frame, stack="1" if frame.number < 3 else "2") for frame in _series(1, 6, lambda v, z: {})]

    assert _refusal(frames).code == "several-stacks"
