"""Models that report the variants of the same samples at once share rows, and none waits for the other for good."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest

from medflow import scoring, steps
from medflow.registry import Registry
from medflow.scoring import LoadedModels, Terms
from medflow.store import Store, outbox
from tests.models import registered, renamed
from tests.variant_models import GcShift, genome, vcf


@pytest.mark.parametrize("engine", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_models_that_come_to_the_same_variants_in_another_order_take_turns(
    store: Store, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = vcf(tmp_path / "in.vcf", genome(tmp_path / "genome.fa"))
    chosen = settings.model_copy(update={"references": {"GRCh38": tmp_path / "genome.fa"}, "sample_system": "urn:s"})
    models = [registered(GcShift), registered(renamed(GcShift, "again"))]
    registry = Registry(models={model.name: model for model in models}, broken=())
    site = steps.Site(settings=chosen, store=store, registry=registry)
    steps.ingest(site, steps.source_of("vcf", [path]))
    assert [steps.select(site, model).selected for model in models] == [2, 2]
    queue_many, both = outbox.queue_many, Barrier(2)

    def against_one_another(connection: Any, outgoing: Mapping[Any, Any]) -> None:
        """Sample by sample, the models from another end each; each waits until the other holds its first."""
        of_results = sorted((job, items) for job, items in outgoing.items() if job is not None)
        for item in of_results[:: 1 if 1 in outgoing else -1]:
            queue_many(connection, dict([item]))
            with suppress(BrokenBarrierError):
                both.wait(timeout=0.5)
        queue_many(connection, {job: items for job, items in outgoing.items() if job is None})

    monkeypatch.setattr(outbox, "queue_many", against_one_another)
    loaded = LoadedModels(chosen)
    with ThreadPoolExecutor(2) as pool:
        scored = pool.map(lambda model: scoring.score_chunk(store, chosen, model, loaded, Terms()), models)
        done = [tally.done for tally in scored]

    assert done == [2, 2]
