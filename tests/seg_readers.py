"""Segmentations as other software reads them: highdicom, and pydicom's frames put in place by what they refer to."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import highdicom
import numpy as np
import pydicom

Slices = Sequence[tuple[str, int]]  # SOP Instance UID and frame, numbered from 0, of each slice


def by_highdicom(data: bytes, slices: Slices) -> dict[str, np.ndarray]:
    """(z, y, x) by label, asked for by source image or frame."""
    found = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(BytesIO(data)))
    uids = [uid for uid, _ in slices]
    if len(set(uids)) == len(uids):
        pixels = found.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    else:
        frames = [frame + 1 for _, frame in slices]
        pixels = found.get_pixels_by_source_frame(uids[0], frames, assert_missing_frames_are_empty=True)
    labels = [found.get_segment_description(number).segment_label for number in found.segment_numbers]
    return {label: pixels[..., place] for place, label in enumerate(labels)}


def by_pydicom(data: bytes, slices: Slices) -> dict[str, np.ndarray]:
    """(z, y, x) by label; of a fractional segmentation the stored levels."""
    dataset = pydicom.dcmread(BytesIO(data))
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    labels = {item.SegmentNumber: item.SegmentLabel for item in dataset.SegmentSequence}
    masks = {label: np.zeros((len(slices), dataset.Rows, dataset.Columns), np.uint8) for label in labels.values()}
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for pixels, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        identified = group if "SegmentIdentificationSequence" in group else shared
        number = identified.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        key = (source.ReferencedSOPInstanceUID, int(source.get("ReferencedFrameNumber", 1)) - 1)
        masks[labels[number]][list(slices).index(key)] = pixels
    return masks
