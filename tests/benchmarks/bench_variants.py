"""Variants scored, from the VCF file to their effects, against the bare forward pass of the same network.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_variants.py [--variants 100000] [--device cpu] [--json]

A genome and a bgzip file of two samples are made up (`bench_windows`), so many variants in all. Each sample is one
case: medflow's runner reads and prepares the second while splice-variant scores the first, as in a run. Then the same
ensemble is given as many windows of 60 bases as it was given for them, ready on the device and in batches of the same
size, and does nothing else. Printed are the seconds of both, and how much of the bare speed is left (1 is all of it).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from medflow.genomics.reference import Reference
from medflow.genomics.variants import read_variants
from medflow.inference.lane import Lane
from medflow.inference.loaded import LoadedModel
from medflow.inference.runner import Runner
from medflow.plugin import Case, SequenceInput
from medflow.records import Unit, UnitKind
from medflow_genomics.encoding import LENGTH
from medflow_genomics.passes import AT_ONCE
from medflow_genomics.variants import OUTPUT, REPORT_FROM, SpliceVariant
from tests.benchmarks.bench_windows import made_up

SAMPLES = ("one", "two")
BATCHES = 64  # different ones, that the bare pass goes round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=100_000, help="of both samples together")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = SpliceVariant()
    model.load(options.device)
    with tempfile.TemporaryDirectory(prefix="medflow-variants-") as name:
        folder = Path(name)
        path = made_up(folder, options.variants // len(SAMPLES))
        with Reference(folder / "genome.fa") as reference, counted(model) as windows:
            found = scored(model, path, reference, options.device)
    found |= {"windows": sum(windows), "forward_s": bare(model, sum(windows), options.device)}
    found |= {"of_forward": found["forward_s"] / found["scored_s"], "threads": torch.get_num_threads()}
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    sys.stdout.write(
        f"{found['variants']} variants scored: {found['scored_s']:.1f} s, {found['wait_s']:.1f} s of them waiting for "
        f"files and windows; {found['reported']} reported, {found['open']} out of scope\n"
        f"bare forward pass, {found['windows']} windows: {found['forward_s']:.1f} s, {found['threads']} threads\n"
        f"of the bare speed: {found['of_forward']:.2f}\n"
    )


def scored(model: SpliceVariant, path: Path, reference: Reference, device: str) -> dict[str, Any]:
    """Both samples, read, prepared and predicted."""
    runner = Runner(LoadedModel(model, Lane(device)), threads=1)
    started = time.perf_counter()
    effects = []
    for outcomes in runner.run([opener(path, sample, reference) for sample in SAMPLES]):
        for outcome in outcomes:
            if outcome.prediction is None:
                raise SystemExit(f"a sample was not scored: {outcome.error}")
            effects.append(np.asarray(outcome.prediction.values[OUTPUT]))
    seconds = time.perf_counter() - started
    together = np.concatenate(effects)
    return {
        "variants": len(together),
        "scored_s": seconds,
        "wait_s": runner.seconds["wait"],
        "reported": int((together >= REPORT_FROM).any(1).sum()),
        "open": int(np.isnan(together).any(1).sum()),
    }


def opener(path: Path, sample: str, reference: Reference) -> Callable[[], Case]:
    """Reads a sample as a run does."""
    (wanted,) = SpliceVariant.spec.accepts
    if not isinstance(wanted, SequenceInput):
        raise TypeError("splice-variant takes variants")

    def opening() -> Case:
        read = read_variants(path, sample, wanted=wanted, reference=reference, regions=None, index=None)
        return Case(
            unit=Unit(kind=UnitKind.SAMPLE, id=SAMPLES.index(sample) + 1),
            prediction_time=datetime(2026, 1, 1, tzinfo=UTC),
            inputs={wanted.name: read.windows},
        )

    return opening


@contextmanager
def counted(model: SpliceVariant) -> Iterator[Sequence[int]]:
    """How many windows each pass through the network had, as they go by."""
    seen: list[int] = []
    ensemble = network_of(model)
    hook = ensemble.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    try:
        yield seen
    finally:
        hook.remove()


def bare(model: SpliceVariant, windows: int, device: str) -> float:
    """Seconds of the network alone on so many windows, which lie ready."""
    ensemble, size = network_of(model), AT_ONCE[torch.device(device).type]
    drawn = torch.randint(0, 4, (BATCHES, size, LENGTH), generator=torch.Generator().manual_seed(1)).to(device)
    with torch.inference_mode():
        ensemble(drawn[0]).cpu()
        started = time.perf_counter()
        for number in range(windows // size):
            ensemble(drawn[number % BATCHES])
        ensemble(drawn[0][: windows % size]).cpu()  # which waits for all before it
        return time.perf_counter() - started


def network_of(model: SpliceVariant) -> torch.nn.Module:
    if model._ensemble is None:
        raise SystemExit("the model is not loaded")
    return model._ensemble


if __name__ == "__main__":
    main()
