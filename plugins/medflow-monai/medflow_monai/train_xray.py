"""Trains the pneumonia classifier and says how good it is: ``python -m medflow_monai.train_xray --data FILE.npz``.

The training split is cut in three by `xray_data.parts`: one part is learnt from, one gives the calibration, the
threshold and the limits of the scope, and nothing is decided on the third, nor on the validation split. There is no
early stopping: the last weights are taken, averaged over steps. ``--evaluate`` scores both with the weights as shipped.
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

from medflow.inference.weights import load_weights
from medflow_monai.xray import THRESHOLD, WEIGHTS, calibrated, network, scope_distances, unlike_training
from medflow_monai.xray_data import SEED, Part, parts, read
from medflow_monai.xray_figures import reliability, report

log = logging.getLogger("train_xray")
STEPS = 1500
BATCH = 64
AXES = 48
AVERAGING = 0.995  # of the weights, over steps


def main() -> None:
    """Train and write the weights, or evaluate those that are shipped; log the figures that the model card quotes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="pneumoniamnist_trainval.npz")
    parser.add_argument("--evaluate", action="store_true", help="score the weights as shipped, and train nothing")
    parser.add_argument("--plot", type=Path, help="with --evaluate: where to write the reliability plot, a PNG")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / WEIGHTS.file, help="where weights go")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    split, validation = read(arguments.data)
    part = parts(split)
    if arguments.evaluate:
        evaluate({"test": part["test"], "validation": validation}, arguments.plot)
    else:
        fit(part["train"], part["calibration"], arguments.steps, arguments.out)


def fit(learnt_from: Part, held: Part, steps: int, out: Path) -> None:
    """Train on one part, calibrate on the other, and write the weights; the figures logged are not for the card."""
    torch.manual_seed(SEED)
    net = train(learnt_from, steps, np.random.default_rng(SEED))
    logits = logits_of(net, held.pictures)
    calibration = fit_calibration(logits, held.labels)
    probability = positive(logits, calibration)
    threshold = best_threshold(probability, held.labels)
    scope = fit_scope(learnt_from.pictures, held.pictures)
    tensors = {**net.state_dict(), "calibration": calibration}
    tensors.update({f"scope.{name}": value for name, value in scope.items()})
    save_file({name: value.contiguous() for name, value in tensors.items()}, out)
    log.info("threshold %.2f temperature %.3f offset %.3f", threshold, *calibration.tolist())
    report("calibration part, which the threshold was chosen on", probability, held.labels, threshold)
    log.info("%s sha256 %s", out.name, sha256(out.read_bytes()).hexdigest())


def evaluate(held_out: dict[str, Part], plot: Path | None) -> None:
    """Log the figures of the shipped weights on parts that had no part in making them."""
    tensors = load_weights("medflow_monai", WEIGHTS)
    calibration = tensors.pop("calibration")
    scope = {name: tensors.pop(f"scope.{name}") for name in ("mean", "basis", "limits")}
    net = network().eval()
    net.load_state_dict(tensors)
    drawn = {}
    for name, part in held_out.items():
        probability = positive(logits_of(net, part.pictures), calibration)
        report(name, probability, part.labels, THRESHOLD)
        outside = unlike_training(torch.from_numpy(part.pictures), scope).sum()
        log.info("  out of scope: %d", outside)
        drawn[name] = (probability, part.labels)
    if plot is not None:
        plot.write_bytes(reliability(drawn))


def train(part: Part, steps: int, rng: np.random.Generator) -> nn.Module:
    """The network after ``steps`` batches in which both classes are drawn equally often, whatever their share."""
    net = network()
    averaged = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGING), use_buffers=True
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    members = [np.flatnonzero(part.labels == label) for label in (0, 1)]
    x, y = torch.from_numpy(part.pictures)[:, None], torch.from_numpy(part.labels)
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


def fit_scope(pictures: np.ndarray, others: np.ndarray) -> dict[str, Tensor]:
    """What chests look like, see `xray.unlike_training`: mean and principal axes of pictures, limits from others.

    Pictures lie closer to axes that were fitted to them than any new one does, so the limits come from new ones.
    """
    flat = torch.from_numpy(pictures).flatten(1)
    mean = flat.mean(0)
    _, spread, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    basis = axes[:AXES] / (spread[:AXES, None] / len(flat) ** 0.5)
    new = torch.from_numpy(others)
    inside, beside = scope_distances(new, mean, basis)
    limits = torch.stack([inside.quantile(0.999), beside.quantile(0.999), new.flatten(1).std(dim=1).quantile(0.001)])
    return {"mean": mean, "basis": basis, "limits": limits}


if __name__ == "__main__":
    main()
