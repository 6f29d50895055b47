"""The masks of one case as DICOM segmentations in the object store, and back from there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from medflow.dicom.maker import Maker
from medflow.errors import InputNotUsable, MedflowError, PredictionInvalid, place_of
from medflow.inference.results import image_of
from medflow.inputs import image_instances
from medflow.plugin import ImagingInput, LabelMask, Mask, ModelSpec, Prediction, Segment
from medflow.records import Result, ResultObject
from medflow.store import Store
from medflow.store.jobs import Job


def has_segments(spec: ModelSpec) -> bool:
    """Whether a model answers with masks."""
    return any(isinstance(output, Segment) for output in spec.outputs)


def keep_segmentations(
    store: Store, spec: ModelSpec, job: Job, prediction: Prediction, results: Sequence[Result], maker: Maker
) -> tuple[list[Result], list[ResultObject]]:
    """Write the masks among checked results, each on the slices of its image; safe in any thread.

    Returns the results, those of segments with the SHA-256 of the object that has their mask, and the objects.

    Raises
    ------
    InputNotUsable
        The images are no longer what the case was read from.
    PredictionInvalid
        segmentation-failed: the masks cannot be written; the reason is in the source's headers, most often.
    """
    masks = _by_image(spec, prediction, results)
    if not masks:
        return list(results), []
    try:
        objects = _written(store, spec, job, masks, maker)
    except MedflowError:
        raise
    except Exception as error:  # highdicom's checks of what a header says; their text may quote it
        reason = f"the masks cannot be written as DICOM ({type(error).__name__} at {place_of(error)})"
        raise PredictionInvalid("segmentation-failed", reason) from None
    digests = {output: item.sha256 for item in objects for output in item.outputs}
    return [replace(result, mask=digests.get(result.output)) for result in results], objects


def _by_image(
    spec: ModelSpec, prediction: Prediction, results: Sequence[Result]
) -> Mapping[str, list[tuple[Segment, Mask]]]:
    masks: dict[str, list[tuple[Segment, Mask]]] = defaultdict(list)
    for result in results:
        output = spec.output(result.output)
        if isinstance(output, Segment) and result.out_of_scope is None:
            value = prediction.values[output.name]
            mask = value if isinstance(value, LabelMask) else np.asarray(value)
            masks[image_of(spec, output)].append((output, mask))
    return masks


def _written(
    store: Store, spec: ModelSpec, job: Job, masks: Mapping[str, list[tuple[Segment, Mask]]], maker: Maker
) -> list[ResultObject]:
    from medflow.dicom.plan import plan_volume  # with pydicom and highdicom, for which only models of images wait
    from medflow.dicom.seg import write_segmentations

    with store.reading() as connection:
        instances = image_instances(connection, spec, job)
    objects: list[ResultObject] = []
    for name, drawn in masks.items():
        image = spec.input(name)
        assert isinstance(image, ImagingInput)  # noqa: S101 - `image_of` names no other
        plan = plan_volume(instances[name], store.objects, image)
        for made in write_segmentations(plan, store.objects, drawn, maker):
            store.objects.put(made.data)
            objects.append(made.record)
    return objects


def read_masks(
    store: Store, spec: ModelSpec, job: Job, results: Sequence[Result], *, image: str
) -> dict[str, np.ndarray]:
    """The masks that a job's results name, of those that lie on one of its images, on that image's grid.

    Raises
    ------
    InputNotUsable
        file-missing, not-a-segmentation (a mask that was kept by an earlier version), or as for `plan_volume`.
    """
    from medflow.dicom.plan import plan_volume
    from medflow.dicom.seg import read_segmentation

    wanted = {
        result.output: result.mask
        for result in results
        if result.mask and isinstance(output := spec.output(result.output), Segment) and image_of(spec, output) == image
    }
    if not wanted:
        return {}
    with store.reading() as connection:
        instances = image_instances(connection, spec, job)[image]
    declared = spec.input(image)
    assert isinstance(declared, ImagingInput)  # noqa: S101 - `image_of` names no other
    plan = plan_volume(instances, store.objects, declared)
    found = {digest: read_segmentation(_object(store, digest), plan) for digest in set(wanted.values())}
    return {output: found[digest][output] for output, digest in wanted.items()}


def _object(store: Store, digest: str) -> bytes:
    try:
        return store.objects.get(digest)
    except KeyError:
        raise InputNotUsable("file-missing", "the segmentation is no longer in the object store") from None
