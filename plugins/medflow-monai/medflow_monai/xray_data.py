"""PneumoniaMNIST for training and for judging: no picture in two places, and a part that nothing is decided on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from medflow_monai.pictures import EDGE, small_picture

log = logging.getLogger(__name__)
SEED = 20260301
SHARES = {"train": 0.65, "calibration": 0.15, "test": 0.2}  # of each class of the training split
SAME = 0.98  # correlation from which two pictures are one: different ones of the data set reach 0.971
SHIFT = 2  # pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Pictures (n, 28, 28) float32 in 0..1 and their labels (n,): 1 pneumonia, 0 normal."""

    pictures: np.ndarray
    labels: np.ndarray

    def chosen(self, which: np.ndarray) -> Part:
        """Those of a mask or of indices."""
        return Part(pictures=self.pictures[which], labels=self.labels[which])


def read(path: Path) -> tuple[Part, Part]:
    """The training split without repeats and without what is also in the validation split, and the validation split."""
    with np.load(path) as data:
        train, validation = (
            Part(
                pictures=np.stack([small_picture(picture) for picture in data[f"{split}_images"]]),
                labels=data[f"{split}_labels"][:, 0].astype(np.int64),
            )
            for split in ("train", "val")
        )
    group = same_pictures(np.concatenate([train.pictures, validation.pictures]))
    ours, theirs = group[: len(train.labels)], group[len(train.labels) :]
    in_validation = np.isin(ours, theirs)
    first = np.zeros(len(ours), dtype=bool)
    first[np.unique(ours, return_index=True)[1]] = True
    kept = first & ~in_validation
    log.info(
        "training split: %d pictures, %d left out because they are in validation, %d as repeats",
        len(ours),
        in_validation.sum(),
        (~first & ~in_validation).sum(),
    )
    return train.chosen(kept), validation


def parts(split: Part) -> dict[str, Part]:
    """`SHARES` of the training split, the same share of each class, drawn by `SEED` alone."""
    rng = np.random.default_rng(SEED)
    names = list(SHARES)
    place = np.zeros(len(split.labels), dtype=int)
    for label in np.unique(split.labels):
        members = rng.permutation(np.flatnonzero(split.labels == label))
        ends = np.round(np.cumsum(list(SHARES.values())) * len(members)).astype(int)
        for number, piece in enumerate(np.split(members, ends[:-1])):
            place[piece] = number
    return {name: split.chosen(place == number) for number, name in enumerate(names)}


def same_pictures(pictures: np.ndarray) -> np.ndarray:
    """A number per picture (n, 28, 28), the same for those that show the same: exact repeats and near ones.

    Two pictures are one if their inner parts correlate by `SAME` or more when one is moved by up to `SHIFT` pixels.
    Correlation does not see brightness and contrast. What is linked over a third picture is one as well.
    """
    stay = slice(SHIFT, EDGE - SHIFT)
    still = _normalised(pictures[:, stay, stay])
    alike = np.zeros((len(pictures),) * 2, dtype=bool)
    for down in range(-SHIFT, SHIFT + 1):
        for right in range(-SHIFT, SHIFT + 1):
            rows, columns = slice(SHIFT + down, EDGE - SHIFT + down), slice(SHIFT + right, EDGE - SHIFT + right)
            alike |= still @ _normalised(pictures[:, rows, columns]).T >= SAME
    return connected_components(csr_array(alike), directed=False)[1]


def _normalised(pictures: np.ndarray) -> np.ndarray:
    """Flat pictures (n, pixels) of mean 0 and length 1, so that a product of two is their correlation."""
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-6)
