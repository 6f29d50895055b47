"""Real stays through the whole path: what is delivered is what the model says of the published files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks import bench_set_a

STAYS = 60


@pytest.mark.realdata
def test_delivered_risks_are_the_plugins_own(realdata: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("medflow_risk", reason="the plugin medflow-risk is not installed")

    found = bench_set_a.run(realdata("set-a"), realdata("loinc.csv"), tmp_path, limit=STAYS)

    assert found["ingest"]["stored"] == found["ingest"]["offered"] == found["resources"]
    assert found["ingest again"]["unchanged"] == found["resources"]
    assert found["score"]["done"] == found["stays"]
    assert found["score again"]["selected"] == 0
    assert found["auroc_equal"]
    assert found["largest_difference"] < 1e-6
    assert found["evaluated"] == found["score"]["done"]
    assert found["auroc_evaluated"]["value"] == pytest.approx(found["auroc_plugin"], abs=1e-6)
