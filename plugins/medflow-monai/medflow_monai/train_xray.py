"""Trains the pneumonia classifier: ``python -m medflow_monai.train_xray --data pneumoniamnist_trainval.npz``.

The training split is cut in two: the larger part is learnt from, the rest gives the calibration and the threshold.
The validation split is only ever scored, at the end; training pictures that are also in it are left out.
"""

from __future__ import annotations

import argparse
import logging
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medflow_monai.pictures import small_picture
from medflow_monai.xray import WEIGHTS, calibrated, network, scope_distances, unlike_training

log = logging.getLogger("train_xray")
SEED = 20260301
HELD_OUT = 0.2
BATCH = 64
AXES = 48
AVERAGING = 0.995  # of the weights, over steps


def main() -> None:
    """Train, write the weights and log the metrics that the model card quotes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="pneumoniamnist_trainval.npz")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / WEIGHTS.file)
    parser.add_argument("--epochs", type=int, default=24)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)

    pictures, labels, val_pictures, val_labels = read(arguments.data)
    held = held_out(labels, rng)
    net = train(pictures[~held], labels[~held], arguments.epochs, rng)
    held_logits = logits_of(net, pictures[held])
    calibration = fit_calibration(held_logits, labels[held])
    threshold = best_threshold(positive(held_logits, calibration), labels[held])
    scope = fit_scope(pictures)
    tensors = {**net.state_dict(), "calibration": calibration}
    tensors.update({f"scope.{name}": value for name, value in scope.items()})
    save_file({name: value.contiguous() for name, value in tensors.items()}, arguments.out)

    log.info("threshold %.2f temperature %.3f offset %.3f", threshold, *calibration.tolist())
    report("held out of training", positive(held_logits, calibration), labels[held], threshold)
    report("validation", positive(logits_of(net, val_pictures), calibration), val_labels, threshold)
    outside = unlike_training(torch.from_numpy(val_pictures), scope).float().mean()
    log.info("validation pictures out of scope: %.4f", outside)
    log.info("%s sha256 %s", arguments.out.name, sha256(arguments.out.read_bytes()).hexdigest())


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and validation pictures (n, 28, 28) and labels (n,); pictures of both splits count as validation."""
    with np.load(path) as data:
        splits = {name: data[name] for name in ("train_images", "train_labels", "val_images", "val_labels")}
    seen = {picture.tobytes() for picture in splits["val_images"]}
    fresh = np.array([picture.tobytes() not in seen for picture in splits["train_images"]])
    log.info("training pictures: %d, left out because they are in validation: %d", fresh.sum(), (~fresh).sum())
    train_pictures = np.stack([small_picture(picture) for picture in splits["train_images"][fresh]])
    val_pictures = np.stack([small_picture(picture) for picture in splits["val_images"]])
    return train_pictures, splits["train_labels"][fresh, 0], val_pictures, splits["val_labels"][:, 0]


def held_out(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask of the pictures kept for calibration and threshold, the same share of each class."""
    mask = np.zeros(labels.shape, dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        mask[members[: round(HELD_OUT * len(members))]] = True
    return mask


def train(pictures: np.ndarray, labels: np.ndarray, epochs: int, rng: np.random.Generator) -> nn.Module:
    """Both classes are drawn equally often, so a probability speaks of a prevalence of one half."""
    net = network()
    averaged = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGING), use_buffers=True
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    members = [np.flatnonzero(labels == label) for label in (0, 1)]
    x, y = torch.from_numpy(pictures)[:, None], torch.from_numpy(labels.astype(np.int64))
    net.train()
    for step in range(steps):
        chosen = np.concatenate([rng.choice(group, BATCH // 2) for group in members])
        loss = loss_of(net(varied(x[chosen])), y[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        averaged.update_parameters(net)
        if step % 200 == 0:
            log.info("step %d of %d, loss %.4f", step, steps, loss.item())
    return averaged.module.eval()


def varied(x: Tensor) -> Tensor:
    """Pictures (n, 1, 28, 28) a little moved, turned, scaled, and with other contrast and noise."""
    n = len(x)
    turn, scale = (torch.rand(n) - 0.5) * 0.26, 1 + (torch.rand(n) - 0.5) * 0.2
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = turn.cos() * scale
    theta[:, 0, 1], theta[:, 1, 0] = -turn.sin() * scale, turn.sin() * scale
    theta[:, :, 2] = (torch.rand(n, 2) - 0.5) * 0.2
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    x = nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    gamma = torch.exp((torch.rand(n, 1, 1, 1) - 0.5) * 0.6)
    gain = 1 + (torch.rand(n, 1, 1, 1) - 0.5) * 0.2
    return (x.clamp(1e-4, 1) ** gamma * gain + 0.02 * torch.randn_like(x)).clamp(0, 1)


def logits_of(net: nn.Module, pictures: np.ndarray) -> Tensor:
    """Logits (n, 2)."""
    with torch.inference_mode():
        return torch.cat([net(part[:, None]) for part in torch.from_numpy(pictures).split(256)]).clone()


def fit_calibration(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Temperature and offset (2,) of least cross entropy, each class weighing the same (Platt 1999, Guo 2017)."""
    y = torch.from_numpy(labels.astype(np.float64))
    weight = torch.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    margin = (logits[:, 1] - logits[:, 0]).double()
    values = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)  # log temperature, offset
    optimiser = torch.optim.LBFGS([values], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = nn.functional.binary_cross_entropy_with_logits(margin / values[0].exp() + values[1], y, weight)
        found.backward()
        return found

    optimiser.step(loss)
    return torch.stack([values[0].exp(), values[1]]).detach().float()


def positive(logits: Tensor, calibration: Tensor) -> np.ndarray:
    """Calibrated probabilities of pneumonia (n,)."""
    return calibrated(logits, calibration)[:, 1].numpy()


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The middle of the thresholds with the highest sensitivity + specificity."""
    candidates = np.linspace(0.02, 0.98, 97)
    gains = [(scores[labels == 1] >= t).mean() + (scores[labels == 0] < t).mean() for t in candidates]
    return round(float(np.median(candidates[np.isclose(gains, max(gains))])), 2)


def fit_scope(pictures: np.ndarray) -> dict[str, Tensor]:
    """Mean, principal axes and limits of what training pictures look like; see `xray.unlike_training`."""
    flat = torch.from_numpy(pictures).flatten(1)
    mean = flat.mean(0)
    _, spread, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    basis = axes[:AXES] / (spread[:AXES, None] / len(flat) ** 0.5)
    inside, beside = scope_distances(torch.from_numpy(pictures), mean, basis)
    limits = torch.stack([inside.quantile(0.999), beside.quantile(0.999), flat.std(dim=1).quantile(0.001)])
    return {"mean": mean, "basis": basis, "limits": limits}


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative (ties count half)."""
    one, none = scores[labels == 1], scores[labels == 0]
    return float((np.sign(one[:, None] - none[None, :]) / 2 + 0.5).mean())


def report(name: str, scores: np.ndarray, labels: np.ndarray, threshold: float) -> None:
    """Log what the model card says of a split."""
    called = scores >= threshold
    log.info(
        "%s: n %d (pneumonia %d) AUC %.4f sensitivity %.3f specificity %.3f accuracy %.3f Brier %.4f",
        name,
        len(labels),
        labels.sum(),
        area_under_curve(scores, labels),
        called[labels == 1].mean(),
        (~called[labels == 0]).mean(),
        (called == labels).mean(),
        np.mean((scores - labels) ** 2),
    )


if __name__ == "__main__":
    main()
