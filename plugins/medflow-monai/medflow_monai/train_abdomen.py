"""Trains the phantom segmentation: ``python -m medflow_monai.train_abdomen``. Needs no data but the generator's.

Phantoms are drawn on grids of many spacings, tilts and orientations, and go through the same preparation as a case;
the truth on the model's grid comes from the phantom's formulas. Held-out phantoms come from other seeds.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from safetensors.torch import save_file
from torch import Tensor, nn

from medflow.sample import LABELS, Anatomy, draw_anatomy, grid_affine, render
from medflow_monai.abdomen import ORGANS, PATCH, WEIGHTS, network, segment, unlike_phantom
from medflow_monai.volumes import grid_to_lps, to_input_grid, to_model_grid

log = logging.getLogger("train_abdomen")
SEED = 20260302
TRAINING, HELD_OUT = 160, 24  # phantoms
STEPS, BATCH = 2400, 2
FIELD_MM = ((228.0, 340.0), (255.0, 420.0), (345.0, 480.0))  # S, P, L: between what and what a grid covers
ORGANS_MM = (225.0, 230.0, 300.0)  # S, P, L: what the organs may take, and the field always holds


def main() -> None:
    """Train, write the weights and log the metrics that the model card quotes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / WEIGHTS.file)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    assert list(ORGANS) == list(LABELS)  # noqa: S101 - the network's classes are the phantoms' labels

    net = train([example(number) for number in range(TRAINING)], arguments.steps)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, arguments.out)
    report(net)
    log.info("%s sha256 %s", arguments.out.name, sha256(arguments.out.read_bytes()).hexdigest())


def scan(number: int) -> tuple[Anatomy, np.ndarray, np.ndarray, np.ndarray]:
    """The phantom of this number on a grid of its own: anatomy, HU (z, y, x), labels (z, y, x), affine to LPS mm."""
    rng = np.random.default_rng([SEED, number])
    anatomy = draw_anatomy(rng)
    orientation = (("axial",) * 3 + ("coronal", "sagittal"))[rng.integers(5)]
    finest = 1.5 if number % 4 == 0 else 2.5  # fine grids are block-averaged, which leaves less noise; and are slow
    between, within = float(rng.uniform(finest, 6.5)), float(rng.uniform(finest, 2 * finest + 1))
    spacing = (between, within, within)
    field = np.array([rng.uniform(*limits) for limits in FIELD_MM])
    along = field[list({"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}[orientation])]
    slices, rows, columns = (int(size) for size in np.ceil(along / spacing))
    shape = (slices, rows, columns)
    affine = grid_affine(
        shape, spacing, orientation, tilt_deg=float(rng.uniform(-12, 12)), head_first=bool(rng.integers(2))
    )
    slack = (field - ORGANS_MM)[::-1] / 2
    affine[:3, 3] += rng.uniform(-slack, slack).clip(-40, 40)  # nobody lies exactly in the middle
    hu, labels = render(anatomy, rng, shape, affine)
    return anatomy, hu, labels, affine


def example(number: int) -> tuple[Tensor, Tensor]:
    """The phantom of this number on the model's grid: intensities (1, x, y, z), shares of each class (5, x, y, z).

    A voxel of 5 mm at an organ's edge is partly organ: its share is counted on a grid twice as fine.
    """
    anatomy, hu, _, affine = scan(number)
    volume, grid = to_model_grid(hu, affine)
    _, x, y, z = volume.shape
    fine = grid_to_lps(grid)
    fine[:3, 3] -= fine[:3, :3].sum(axis=1) / 4
    fine[:3, :3] /= 2
    _, truth = render(anatomy, np.random.default_rng(0), (2 * z, 2 * y, 2 * x), fine)
    classes = np.arange(len(ORGANS) + 1)[:, None, None, None, None, None, None]
    shares = (truth.reshape(z, 2, y, 2, x, 2) == classes).mean(axis=(2, 4, 6), dtype=np.float32)
    return volume, torch.from_numpy(np.ascontiguousarray(shares.transpose(0, 3, 2, 1)))


def train(examples: list[tuple[Tensor, Tensor]], steps: int) -> nn.Module:
    """Dice and cross entropy on random patches, with a little change of contrast and noise."""
    net = network().train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
    loss_of = DiceCELoss(softmax=True, include_background=False, batch=True)
    for step, (x, y) in enumerate(patches(examples, steps)):
        x = (x * (1 + 0.08 * (torch.rand(BATCH, 1, 1, 1, 1) - 0.5)) + 0.02 * torch.randn_like(x)).clamp(0, 1)
        loss = loss_of(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            log.info("step %d of %d, loss %.4f", step, steps, loss.item())
    return net.eval()


def patches(examples: list[tuple[Tensor, Tensor]], steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of patches (n, 1, x, y, z); a third of them reach beyond the volume, as the sliding window's do."""
    rng = np.random.default_rng([SEED, 10**6])
    for _ in range(steps):
        chosen = [examples[index] for index in rng.integers(len(examples), size=BATCH)]
        pairs = [_patch(volume, labels, rng) for volume, labels in chosen]
        yield torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


def _patch(volume: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    pads = [max(0, edge - size) for edge, size in zip(PATCH, volume.shape[1:], strict=True)]
    margin = [side for pad in reversed(pads) for side in (pad // 2, pad - pad // 2)]  # last axis first
    volume, labels = nn.functional.pad(volume, margin), nn.functional.pad(labels, margin)
    labels[0] += 1 - labels.sum(dim=0)  # what was added is background
    starts = [int(rng.integers(size - edge + 1)) for edge, size in zip(PATCH, volume.shape[1:], strict=True)]
    window = (slice(None), *(slice(start, start + edge) for start, edge in zip(starts, PATCH, strict=True)))
    return volume[window], labels[window]


def report(net: nn.Module) -> None:
    """Dice against the rendered labels and volume error against the formulas, on held-out phantoms' own grids."""
    dice: dict[str, list[float]] = {name: [] for name in LABELS}
    errors: dict[str, list[float]] = {name: [] for name in LABELS}
    refused = 0
    for number in range(1000, 1000 + HELD_OUT):
        anatomy, hu, truth, affine = scan(number)
        volume, grid = to_model_grid(hu, affine)
        probabilities = segment(net, volume)
        confidence, labels = probabilities.max(dim=0)
        reason = unlike_phantom(volume[0].numpy(), labels.numpy(), confidence.numpy())
        if reason:
            refused += 1
            log.info("phantom %d out of scope: %s", number, reason)
        found = to_input_grid(probabilities, grid, hu.shape, affine)
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        for name, label in LABELS.items():
            ours, theirs = found == label, truth == label
            dice[name].append(float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())))
            errors[name].append(float(ours.sum() * voxel_ml / anatomy.truth_ml[name] - 1))
    for name in LABELS:
        log.info(
            "%s: Dice mean %.4f least %.4f, volume error mean %+.2f %% mean absolute %.2f %% largest %.2f %%",
            name,
            np.mean(dice[name]),
            min(dice[name]),
            100 * np.mean(errors[name]),
            100 * np.mean(np.abs(errors[name])),
            100 * max(map(abs, errors[name])),
        )
    log.info("held-out phantoms: %d, called out of scope: %d", HELD_OUT, refused)


if __name__ == "__main__":
    main()
