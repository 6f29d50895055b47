"""The explanation of one case as heat maps in the object store: DICOM objects on the images that they explain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from medflow.dicom.maker import KIND, HeatMap, Maker
from medflow.errors import InputNotUsable
from medflow.inference.explaining import Explanations, explained_image
from medflow.inputs import image_instances
from medflow.plugin import Case, Image, ImagingInput, ModelSpec
from medflow.records import ResultObject
from medflow.store import Store, result_objects
from medflow.store.jobs import Job


def keep_heat_maps(
    store: Store, spec: ModelSpec, job: Job, case: Case, explanation: Explanations, maker: Maker
) -> list[ResultObject]:
    """Write the heat maps of a checked explanation, each on the image that its output is about; safe in any thread.

    What explains a time series or a sequence is no heat map, and is left to `medflow.contributions`.

    Raises
    ------
    InputNotUsable
        explanation-not-stored: there is no image that it could lie on. Or the images are no longer what the case was
        read from.
    """
    maps = _by_image(spec, case, explanation)
    if not maps:
        return []
    from medflow.dicom.heatmap import write_heat_maps  # with pydicom, for which only models of images wait
    from medflow.dicom.plan import plan_volume

    with store.reading() as connection:
        instances = image_instances(connection, spec, job)
    kept: list[ResultObject] = []
    for name, of_image in maps.items():
        image = case.inputs[name]
        assert isinstance(image, Image)  # noqa: S101 - `explained_image` finds no other
        plan = plan_volume(instances[name], store.objects, _declared(spec, name))
        for made in write_heat_maps(plan, store.objects, of_image, image.array, maker):
            store.objects.put(made.data)
            kept.append(made.record)
    return kept


def are_drawn(explanation: Explanations) -> bool:
    """Whether there are pictures to make of an explanation, which takes a while."""
    return any(isinstance(item, np.ndarray) for item in explanation.values())


def _by_image(spec: ModelSpec, case: Case, explanation: Explanations) -> Mapping[str, dict[str, np.ndarray]]:
    maps: defaultdict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for output, values in explanation.items():
        if not isinstance(values, np.ndarray):
            continue  # kept with the result itself
        found = explained_image(spec, case, output)
        if found is None:
            raise InputNotUsable("explanation-not-stored", f"{output} is explained by no image of the case")
        maps[found[0]][output] = values
    return maps


def read_heat_maps(store: Store, spec: ModelSpec, job: Job, case: Case, *, image: str) -> dict[str, list[HeatMap]]:
    """The heat maps that are kept of a job, by output, of those that lie on one of its images.

    Raises
    ------
    InputNotUsable
        file-missing, heat-map-unreadable, or as for `plan_volume`.
    """
    from medflow.dicom.heatmap import read_heat_map
    from medflow.dicom.plan import plan_volume

    with store.reading() as connection:
        made = [item for item in result_objects.of_job(connection, job.id) if item.kind == KIND]
        here = [item for item in made if (found := explained_image(spec, case, item.outputs[0])) and found[0] == image]
        if not here:
            return {}
        instances = image_instances(connection, spec, job)[image]
    plan = plan_volume(instances, store.objects, _declared(spec, image))
    maps: defaultdict[str, list[HeatMap]] = defaultdict(list)
    for item in here:
        try:
            data = store.objects.get(item.sha256)
        except KeyError:
            raise InputNotUsable("file-missing", "the heat map is no longer in the object store") from None
        maps[item.outputs[0]].append(read_heat_map(data, plan))
    return dict(maps)


def _declared(spec: ModelSpec, name: str) -> ImagingInput:
    declared = spec.input(name)
    assert isinstance(declared, ImagingInput)  # noqa: S101 - no other input is an image
    return declared
