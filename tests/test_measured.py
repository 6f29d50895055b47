"""What is measured in masks is what pydicom and a pocket calculator give, however many threads are at work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from medflow import steps
from medflow.config import load_settings
from medflow.plugin import Prediction
from medflow.registry import Registry
from medflow.store import Store, history, result_objects
from tests.factories_dicom import write_series
from tests.imaging_models import BrightTissue
from tests.models import registered
from tests.oriented_series import HANDED, Source, frames_by_pydicom

COUNT = 12
THRESHOLD = 300


class Bright(BrightTissue):
    """Marks what is above a threshold."""

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """The mask of each."""
        return [Prediction(values={"bright": volume > THRESHOLD}) for volume in batch]


def source(number: int) -> Source:
    """The n-th of several series, each along other axes, with other spacings and rescales, in an order of its own."""
    random = np.random.default_rng(number)
    slices = int(random.integers(3, 7))
    return Source(
        series=number + 1,
        pixels=random.integers(0, 2000, (slices, 5, 7)).astype("<i2"),
        axes=HANDED[number * 7 % len(HANDED)],
        spacing=(random.choice([1.25, 3.0]), random.choice([0.5, 0.75]), random.choice([0.6, 0.9])),
        slopes=random.choice([1.0, 0.5, 1.5], slices).tolist(),
        intercepts=random.integers(-1024, 0, slices).astype(float).tolist(),
        order=random.permutation(slices).tolist(),
        numbers=(1 + random.permutation(slices)).tolist(),
    )


def scored(
    home: Path, folders: Sequence[Path], workers: int
) -> list[tuple[float | None, int | None, float | None, str]]:
    """Of each series mL, voxels, mean, and the UID of its segmentation, which follows from every voxel."""
    settings = load_settings(home=home, workers=workers)
    with closing(Store(settings).open()) as store:
        registry = Registry(models={"bright-tissue": registered(Bright)}, broken=())
        site = steps.Site(settings=settings, store=store, registry=registry)
        for folder in folders:  # one after the other: job n is of series n
            assert steps.ingest(site, steps.source_of("dicom", sorted(folder.iterdir()))).rejected == 0
        assert steps.score(site).done == len(folders)
        found = []
        with store.reading() as connection:
            for number in range(1, len(folders) + 1):
                view = history.job_view(connection, number)
                assert view is not None
                (result,) = view.results
                (made,) = result_objects.of_job(connection, number)
                found.append((result.value, result.voxels, result.mean, made.sop_instance_uid))
    return found


def test_series_in_four_threads_measure_what_they_do_one_by_one_and_what_pydicom_says(tmp_path: Path) -> None:
    sources = [source(number) for number in range(COUNT)]
    folders = [tmp_path / "in" / str(one.series) for one in sources]
    for number, (folder, one) in enumerate(zip(folders, sources, strict=True)):
        write_series(folder, one.enhanced() if number % 3 == 0 else one.datasets())

    together, alone = (scored(tmp_path / f"home{workers}", folders, workers) for workers in (4, 1))

    assert together == alone
    for (volume, voxels, mean, _), folder, one in zip(together, folders, sources, strict=True):
        frames = frames_by_pydicom(sorted(folder.iterdir()))
        values = np.stack([values for values, _ in frames.values()])
        inside = values[values > THRESHOLD]
        assert voxels == inside.size > 0
        assert volume == pytest.approx(inside.size * np.prod(one.spacing) / 1000, rel=1e-9)
        assert mean == pytest.approx(inside.mean(), rel=1e-6)
