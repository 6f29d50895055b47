"""A mask made of an image's own voxels is, on every source frame, what pydicom alone finds in that frame.

Nothing here asks the code under test where anything lies: sources are written from their positions, read frame by frame
by pydicom, and the segmentations by highdicom, asked for by the frames they refer to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medflow.dicom.derived import Maker
from medflow.dicom.seg import read_segmentation, write_segmentations
from medflow.dicom.volume import plan_volume, read_image
from medflow.plugin import SNOMED, Coding, Image, ImagingInput, LabelMask, Mask, Segment
from medflow.records import Instance, Instant
from medflow.store import FolderObjects
from tests.factories_dicom import instance_of, write_series
from tests.oriented_series import HANDED, Source, frames_by_pydicom
from tests.seg_readers import by_highdicom

NOWHERE = FolderObjects(Path("no-such-folder"))
BRIGHT = Segment(
    name="bright", body_site=Coding(system=SNOMED, code="10200004", display="Liver structure"), valid_ml=(0, 1e6)
)
BRIGHTER = replace(BRIGHT, name="brighter")
MAKER = Maker(
    model="bright", version="1", title="Bright", digest="ab" * 32, identity=("key",), issued=Instant(utc_us=1)
)
THRESHOLDS = (0.5, 90.5)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    """Any of the 48 orders of axes, as it is or turned, with noise for pixels: no two slices are alike."""
    axes = draw(st.sampled_from(HANDED))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    tilted = draw(st.booleans())
    if tilted:  # only the table's way may be askew to the slices: it goes along the patient
        spacing, rows_a_slice = (3.0, 0.75, draw(st.sampled_from([0.75, 0.5]))), draw(st.sampled_from([1, 2, -1, -2]))
        askew = np.arctan2(rows_a_slice * spacing[1], spacing[0])
        axes = np.diag(draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3))) @ _about_left(askew)
    else:
        if draw(st.booleans()):
            turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
            axes = turn @ axes
        spacing, rows_a_slice = draw(st.tuples(*[st.sampled_from([0.4, 0.9765625, 1.5, 3.0])] * 3)), 0
    count = draw(st.integers(3, 6))
    kind = draw(st.sampled_from(["<i2", "<u2", "<u1", "<i1"]))
    limits = np.iinfo(kind)
    per_slice: st.SearchStrategy[list[float]] = st.lists(
        st.sampled_from([1.0, 2.0] if tilted else [1.0, 2.0, 0.5, 3.25, 0.00731]), min_size=count, max_size=count
    )
    return Source(
        pixels=random.integers(limits.min, limits.max, (count, 5, 7), endpoint=True).astype(kind),
        axes=axes,
        spacing=spacing,
        slopes=draw(per_slice),
        intercepts=[-float(random.integers(0, limits.max)) for _ in range(count)],
        order=draw(st.permutations(range(count))),
        numbers=draw(st.permutations(range(1, count + 1))),
        rows_a_slice=rows_a_slice,
    )


def _about_left(angle: float) -> np.ndarray:
    return np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])


def instances_of(paths: Sequence[Path]) -> list[Instance]:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    return [
        instance_of(path, sop_instance_uid=str(header.SOPInstanceUID), sop_class_uid=str(header.SOPClassUID))
        for path, header in zip(paths, headers, strict=True)
    ]


def values_at(image: Image, places: np.ndarray) -> np.ndarray:
    """What the image has at LPS places, each within a hundredth of a voxel of one."""
    assert image.affine is not None
    indices = (np.linalg.inv(image.affine) @ np.concatenate([places, np.ones((*places.shape[:-1], 1))], -1)[..., None])[
        ..., :3, 0
    ]
    nearest = np.rint(indices).astype(int)
    assert np.abs(indices - nearest).max() < 0.01
    assert nearest.min() >= 0
    return image.array[nearest[..., 2], nearest[..., 1], nearest[..., 0]]


def drawn(image: Image, form: str) -> list[tuple[Segment, Mask]]:
    """What lies above two thresholds: apart, one within the other, or as two labels of one map."""
    bright, brighter = image.array > THRESHOLDS[0], image.array > THRESHOLDS[1]
    labels = np.where(brighter, 7, np.where(bright, 3, 1)).astype(np.uint8)
    masks: dict[str, tuple[Mask, Mask]] = {
        "apart": (bright & ~brighter, brighter),
        "overlapping": (bright, brighter),
        "labels": (LabelMask(labels=labels, value=3), LabelMask(labels=labels, value=7)),
    }
    return list(zip((BRIGHT, BRIGHTER), masks[form], strict=True))


def expected(values: np.ndarray, form: str) -> dict[str, np.ndarray]:
    bright, brighter = values > THRESHOLDS[0], values > THRESHOLDS[1]
    return {"bright": bright if form == "overlapping" else bright & ~brighter, "brighter": brighter}


@given(sources(), st.booleans(), st.sampled_from(["apart", "overlapping", "labels"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_mask_on_each_source_frame_is_what_that_frame_shows(
    tmp_path_factory: pytest.TempPathFactory, source: Source, enhanced: bool, form: str
) -> None:
    paths = write_series(tmp_path_factory.mktemp("source"), source.enhanced() if enhanced else source.datasets())
    instances, spec = instances_of(paths), ImagingInput(modality=("CT",))
    plan, image = plan_volume(instances, NOWHERE, spec), read_image(instances, NOWHERE, spec)
    frames = frames_by_pydicom(paths)
    masks = drawn(image, form)

    (made,) = write_segmentations(plan, NOWHERE, masks, MAKER)

    assert plan.straightened == bool(source.rows_a_slice)
    for values, places in frames.values():
        rounding = 1e-3 if plan.straightened else 0.0  # rows between which a tilted slice is interpolated
        np.testing.assert_allclose(values_at(image, places), values.astype(np.float32), rtol=0, atol=rounding)
    shown = expected(np.stack([values.astype(np.float32) for values, _ in frames.values()]), form)
    written = by_highdicom(made.data, list(frames))
    for name, mask in shown.items():
        np.testing.assert_array_equal(written[name], mask)
    ours = read_segmentation(made.data, plan)
    for segment, mask in masks:
        np.testing.assert_array_equal(plan.on_source(ours[segment.name]), plan.on_source(np.asarray(mask)))
