"""A CT series of 512 x 512 x 300: from files to a tensor, and through a model, beside plain pydicom and MONAI.

    python tests/benchmarks/bench_volume.py [--syntax plain j2k jls rle] [--rounds 3] [--no-model] [--json]

Reading: each way runs in a process of its own, in turns with the others; figures are medians. ``pydicom`` is what
everybody writes: dcmread, pixel_array, rescale, float32, numpy.stack, torch.from_numpy. ``one`` and ``two`` are
read_image with that many workers, from the object store; ``in-place`` has two, and files that stay where they are,
whose SHA-256 is checked. Memory is the peak of the process beyond what it had after importing everything, plus the
peaks of its decoding processes in full, in volumes of float32. CPU seconds are of the process and its children.

Model: MONAI's SlidingWindowInferer over the prepared volume, alone and inside of medflow's Runner, which reads the
series, prepares it and predicts; in one process, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import JPEG2000LosslessEncoder, JPEGLSLosslessEncoder, RLELosslessEncoder
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.factories_dicom import instance_of, slice_of, to_bytes  # noqa: E402

ENCODERS: dict[str, Any] = {
    "plain": (ExplicitVRLittleEndian, None),
    "j2k": (JPEG2000Lossless, JPEG2000LosslessEncoder),
    "jls": (JPEGLSLossless, JPEGLSLosslessEncoder),
    "rle": (RLELossless, RLELosslessEncoder),
}
WAYS = ("pydicom", "one", "two", "in-place")
SIZE = 512
DISTINCT = 20  # slices that are drawn and encoded; the others repeat them
PATCH = (96, 96, 96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--syntax", nargs="+", choices=ENCODERS, default=["plain", "j2k"])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-model", action="store_true", help="reading only")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(_measure(options.measure[0], Path(options.measure[1]))) + "\n")
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="medflow-volume-") as work:
        for name in options.syntax:
            folder = Path(work) / name
            write_series(folder, name, options.slices)
            found[name] = reading(folder, options.rounds)
            if not options.json:
                _say_reading(name, found[name])
            if name == "plain" and not options.no_model:
                found["model"] = inference(folder, max(1, options.rounds - 1))
                if not options.json:
                    _say_model(found["model"])
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")


# --- the series ------------------------------------------------------------------------------------------------


def write_series(folder: Path, name: str, slices: int) -> None:
    """A series in a folder ``files``, the same files by their SHA-256 in ``objects``."""
    (folder / "files").mkdir(parents=True)
    uid, encoder = ENCODERS[name]
    drawn = [_drawn(number) for number in range(min(DISTINCT, slices))]
    frames = [pixels.tobytes() if encoder is None else _encoded(encoder, pixels) for pixels in drawn]
    for number in range(slices):
        dataset = _header(number)
        dataset.PixelData = frames[number % len(frames)]
        data = to_bytes(dataset, uid)
        (folder / "files" / f"{number:04d}.dcm").write_bytes(data)
        digest = sha256(data).hexdigest()
        target = folder / "objects" / digest[:2] / digest[2:4] / digest
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _drawn(number: int) -> np.ndarray:
    """A body of soft tissue with organs and a scanner's noise: it compresses about as a patient does."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    body = ((x / 200) ** 2 + (y / 150) ** 2 < 1).astype(float)
    organs = sum(
        40 * ((x - 120 * np.cos(k)) ** 2 + (y - 80 * np.sin(k + number / 20)) ** 2 < (20 + 5 * k) ** 2)
        for k in range(5)
    )
    values = 24 + body * (1000 + organs) + generator.normal(size=(SIZE, SIZE)) * (3 + 9 * body)
    return values.clip(0, 4095).astype("<u2")


def _header(number: int) -> Dataset:
    """As many elements as a scanner writes."""
    dataset = slice_of(number, Rows=SIZE, Columns=SIZE, RescaleSlope=1, RescaleIntercept=-1024)
    dataset.PixelSpacing, dataset.ImagePositionPatient = [0.7, 0.7], [-180, -180, 1.25 * number]
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    for element in range(0x10, 0x50):
        dataset.add_new(0x00190000 + (element << 8) // 0x100 + 0x1000, "LO", f"private value {element}")
    return dataset


def _encoded(encoder: Any, pixels: np.ndarray) -> bytes:
    frame = encoder.encode(
        pixels.tobytes(),
        rows=SIZE,
        columns=SIZE,
        samples_per_pixel=1,
        bits_allocated=16,
        bits_stored=12,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
    )
    return encapsulate([frame])


# --- reading ---------------------------------------------------------------------------------------------------


def reading(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds, CPU seconds and peak memory in volumes of each way, medians."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--measure", way, str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout))
    checks = {one["sum"] for runs in found.values() for one in runs}
    if len(checks) != 1:
        raise SystemExit("the ways gave different numbers")
    return {
        way: {name: statistics.median(run[name] for run in runs) for name in ("s", "cpu_s", "volumes")}
        for way, runs in found.items()
    }


def _measure(way: str, folder: Path) -> dict[str, float]:
    """One way, here and now."""
    prepare = _preparation(way, folder)
    paths = sorted((folder / "files").iterdir())
    for path in paths:
        path.read_bytes()  # the system has them in memory, whichever way comes first
    before, cpu = _memory("VmRSS"), _cpu()
    started = time.perf_counter()
    tensor, _affine = prepare(paths)
    seconds, spent = time.perf_counter() - started, _cpu() - cpu
    peak = _memory("VmHWM") - before + sum(_memory("VmHWM", pid) for pid in _children())
    for pid in _children():
        spent += _cpu_of(pid)
    total = tensor.double()
    check = float(total.sum()) + float((total[:, 7, :] * 3).sum())
    return {"s": seconds, "cpu_s": spent, "volumes": peak / (tensor.numel() * 4), "sum": check}


def _preparation(way: str, folder: Path) -> Callable[[Sequence[Path]], tuple[Any, np.ndarray]]:
    """Everything is imported here, and what ingest would have stored is known before the clock starts."""
    import pydicom
    import torch

    from medflow.dicom.volume import read_image
    from medflow.plugin import ImagingInput
    from medflow.store import FolderObjects

    def pydicom_stack(paths: Sequence[Path]) -> tuple[Any, np.ndarray]:
        slices = [pydicom.dcmread(path) for path in paths]
        slices.sort(key=lambda item: item.ImagePositionPatient[2])
        volume = np.stack(
            [(item.pixel_array * item.RescaleSlope + item.RescaleIntercept).astype(np.float32) for item in slices]
        )
        first, last = slices[0], slices[-1]
        affine = np.eye(4)
        affine[:3, 0] = np.array(first.ImageOrientationPatient[:3]) * first.PixelSpacing[1]
        affine[:3, 1] = np.array(first.ImageOrientationPatient[3:]) * first.PixelSpacing[0]
        affine[:3, 2] = np.subtract(last.ImagePositionPatient, first.ImagePositionPatient) / (len(slices) - 1)
        affine[:3, 3] = first.ImagePositionPatient
        return torch.from_numpy(volume), affine

    if way == "pydicom":
        return pydicom_stack
    objects = FolderObjects(folder / "objects")
    instances = [instance_of(path) for path in sorted((folder / "files").iterdir())]
    if way != "in-place":
        instances = [replace(instance, path=None) for instance in instances]
    workers = 1 if way == "one" else 2

    def medflow(_paths: Sequence[Path]) -> tuple[Any, np.ndarray]:
        image = read_image(instances, objects, ImagingInput(modality=("CT",)), workers=workers)
        assert image.affine is not None
        return torch.from_numpy(image.array), image.affine

    return medflow


def _memory(name: str, pid: int | str = "self") -> int:
    """Bytes, of a process that may have ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def _children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _say_reading(name: str, found: dict[str, dict[str, float]]) -> None:
    base = found["pydicom"]
    for way, figures in found.items():
        ratio = base["s"] / figures["s"]
        sys.stdout.write(
            f"{name:6} {way:9} {figures['s']:6.2f} s  {ratio:5.2f} times as fast  "
            f"{figures['cpu_s']:6.2f} s of CPU  {figures['volumes']:4.2f} volumes\n"
        )
    sys.stdout.flush()


# --- a model ---------------------------------------------------------------------------------------------------


def inference(folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of the inferer alone and of all of it, medians, and how much longer all of it takes."""
    from medflow.dicom.volume import read_image
    from medflow.inference.lane import Lane
    from medflow.inference.loaded import LoadedModel
    from medflow.inference.runner import Runner
    from medflow.plugin import Case, ImagingInput
    from medflow.store import FolderObjects

    model = _model()
    model.load("cpu")
    objects = FolderObjects(folder / "objects")
    instances = [replace(instance_of(path), path=None) for path in sorted((folder / "files").iterdir())]

    def opener() -> Case:
        return _case(read_image(instances, objects, ImagingInput(modality=("CT",)), workers=2))

    ready = model.prepare(opener())
    model.predict([ready[..., : PATCH[0], : PATCH[1], : PATCH[2]]])  # torch gets ready as well
    alone, whole = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        model.predict([ready])
        alone.append(time.perf_counter() - started)
        runner = Runner(LoadedModel(model, Lane("cpu")), threads=2)
        started = time.perf_counter()
        outcomes = [outcome for batch in runner.run([opener]) for outcome in batch]
        whole.append(time.perf_counter() - started)
        if outcomes[0].error is not None:
            raise outcomes[0].error
    figures = {"alone_s": statistics.median(alone), "whole_s": statistics.median(whole)}
    return {**figures, "longer": figures["whole_s"] / figures["alone_s"] - 1}


def _case(image: Any) -> Any:
    from datetime import UTC, datetime

    from medflow.plugin import Case, Unit, UnitKind

    return Case(unit=Unit(kind=UnitKind.SERIES, id=1), prediction_time=datetime.now(UTC), inputs={"image": image})


def _model() -> Any:
    """A small MONAI UNet behind MONAI's SlidingWindowInferer, as a plugin would ship it."""
    import torch
    from monai.inferers.inferer import SlidingWindowInferer
    from monai.networks.nets.unet import UNet

    from medflow.plugin import (
        SNOMED,
        Coding,
        ImagingInput,
        Model,
        ModelCard,
        ModelSpec,
        Prediction,
        Segment,
        UnitKind,
    )

    class Small(Model[Any]):
        spec = ModelSpec(
            name="small-unet",
            version="1",
            title="A UNet of random weights",
            unit=UnitKind.SERIES,
            accepts=(ImagingInput(modality=("CT",)),),
            outputs=(Segment(name="liver", body_site=Coding(system=SNOMED, code="10200004"), valid_ml=(0, 1e9)),),
            card=ModelCard(intended_use="measuring", training_data="none", licence="Apache-2.0"),
        )

        def load(self, device: str) -> None:
            torch.manual_seed(0)
            self.network = UNet(3, 1, 2, channels=(8, 16), strides=(2,)).to(device).eval()
            self.inferer = SlidingWindowInferer(PATCH, sw_batch_size=1, overlap=0.25)

        def prepare(self, case: Any) -> torch.Tensor:
            volume = torch.from_numpy(case.image.array)
            return volume.add_(1024).div_(2048).clamp_(0, 1)[None, None]

        def predict(self, batch: Sequence[torch.Tensor]) -> list[Prediction]:
            with torch.inference_mode():
                return [Prediction(values={"liver": self._mask(volume)}) for volume in batch]

        def _mask(self, volume: torch.Tensor) -> np.ndarray:
            logits = self.inferer(volume, self.network)
            assert isinstance(logits, torch.Tensor)
            return (logits[0, 1] > logits[0, 0]).numpy()

    return Small()


def _say_model(found: dict[str, float]) -> None:
    sys.stdout.write(
        f"model  the inferer alone {found['alone_s']:.2f} s, from files to mask {found['whole_s']:.2f} s: "
        f"{100 * found['longer']:.1f} % longer\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
