"""A CT abdomen whose truth is known exactly: ellipsoids in a body, so that volumes follow from a formula.

The anatomy is drawn once in patient coordinates (DICOM LPS, millimetres, PS3.3 C.7.6.2.1.1) and can then be imaged on
any grid: any spacing, any orientation. It looks like an abdomen only as far as a test or a demonstration needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi, radians, sin
from typing import Literal, NamedTuple

import numpy as np

LABELS: Mapping[str, int] = {"liver": 1, "spleen": 2, "left_kidney": 3, "right_kidney": 4}
Orientation = Literal["axial", "coronal", "sagittal"]

_AIR_HU, _FAT_HU, _MUSCLE_HU, _BONE_HU = -1000.0, -95.0, 50.0, 450.0
_NOISE_HU = 18.0
_GAP = 1.06  # organs are kept apart as if each were this much larger
_TRIES = 200

# name: (mean HU, centre LPS mm, semi-axes mm) - of a contrast-enhanced CT, portal venous phase
_ORGANS: Mapping[str, tuple[float, tuple[float, float, float], tuple[float, float, float]]] = {
    "liver": (105.0, (-62.0, -18.0, 28.0), (62.0, 50.0, 52.0)),
    "spleen": (135.0, (88.0, 38.0, 32.0), (26.0, 34.0, 42.0)),
    "left_kidney": (190.0, (62.0, 46.0, -44.0), (24.0, 23.0, 42.0)),
    "right_kidney": (190.0, (-58.0, 52.0, -50.0), (24.0, 23.0, 42.0)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ellipsoid:
    """An ellipsoid turned about the patient's long axis. ``centre_mm`` is (L, P, S); ``angle_deg`` from L towards P."""

    hu: float
    centre_mm: tuple[float, float, float]
    semi_axes_mm: tuple[float, float, float]
    angle_deg: float = 0.0

    @property
    def volume_ml(self) -> float:
        """4/3 pi abc."""
        a, b, c = self.semi_axes_mm
        return 4 / 3 * pi * a * b * c / 1000

    def radius2(self, points: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """Squared distance from the centre in units of the semi-axes: below 1 is inside. ``points`` are L, P, S mm."""
        left, posterior, superior = (point - at for point, at in zip(points, self.centre_mm, strict=True))
        turn = radians(self.angle_deg)
        a, b, c = self.semi_axes_mm
        return (
            ((cos(turn) * left + sin(turn) * posterior) / a) ** 2
            + ((cos(turn) * posterior - sin(turn) * left) / b) ** 2
            + (superior / c) ** 2
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """One person's abdomen: the body's semi-axes (L, P) and the organs by the names in `LABELS`."""

    body_mm: tuple[float, float]
    organs: Mapping[str, Ellipsoid]

    @property
    def truth_ml(self) -> dict[str, float]:
        """Volume of each organ in mL, from its formula."""
        return {name: organ.volume_ml for name, organ in self.organs.items()}


class Phantom(NamedTuple):
    """``hu`` float32 (z, y, x) in Hounsfield units, ``labels`` uint8 (z, y, x), ``truth_ml`` by organ."""

    hu: np.ndarray
    labels: np.ndarray
    truth_ml: dict[str, float]


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one person: sizes, places and densities vary, organs never touch."""
    for _ in range(_TRIES):
        build = rng.uniform(0.92, 1.08)
        organs = {
            name: Ellipsoid(
                hu=hu + rng.normal(0, 6),
                centre_mm=_triple(np.array(centre) * build + rng.uniform(-6, 6, 3)),
                semi_axes_mm=_triple(np.array(semi) * build * rng.uniform(0.85, 1.1, 3)),
                angle_deg=float(rng.uniform(-15, 15)),
            )
            for name, (hu, centre, semi) in _ORGANS.items()
        }
        body = (float(152 * build * rng.uniform(0.97, 1.05)), float(108 * build * rng.uniform(0.97, 1.05)))
        if _apart(list(organs.values()), body):
            return Anatomy(body_mm=body, organs=organs)
    raise RuntimeError("no anatomy without touching organs was found; the nominal organs are too close together")


def grid_affine(
    shape_zyx: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    orientation: Orientation = "axial",
    *,
    tilt_deg: float = 0.0,
    head_first: bool = True,
) -> np.ndarray:
    """The affine (4, 4) from array indices (x, y, z, 1) to LPS mm of a grid centred on the patient's origin.

    ``spacing_mm`` is (z, y, x). ``tilt_deg`` turns the grid about the patient's long axis; ``head_first`` False stacks
    the slices the other way round.
    """
    directions = {
        "axial": [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
        "coronal": [(1, 0, 0), (0, 0, -1), (0, 1, 0)],
        "sagittal": [(0, 1, 0), (0, 0, -1), (-1, 0, 0)],
    }[orientation]
    turn = radians(tilt_deg)
    rotation = np.array([[cos(turn), -sin(turn), 0], [sin(turn), cos(turn), 0], [0, 0, 1]])
    axes = rotation @ np.array(directions, dtype=float).T
    if not head_first:
        axes[:, 2] *= -1
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(spacing_mm[::-1])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape_zyx[::-1]) - 1) / 2)
    return affine


def render(
    anatomy: Anatomy, rng: np.random.Generator, shape_zyx: tuple[int, int, int], affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Image an anatomy on a grid: ``hu`` float32, ``labels`` uint8, both (z, y, x); a voxel is what its centre is."""
    points = _points(shape_zyx, affine)
    left, posterior, _ = points
    edge = (left / anatomy.body_mm[0]) ** 2 + (posterior / anatomy.body_mm[1]) ** 2
    hu = np.full(shape_zyx, _AIR_HU, dtype=np.float32)
    hu[edge < 1] = _FAT_HU
    hu[edge < 0.8] = _MUSCLE_HU
    spine = (0.0, 0.6 * anatomy.body_mm[1])
    hu[(left - spine[0]) ** 2 + (posterior - spine[1]) ** 2 < 19.0**2] = _BONE_HU
    aorta = (8.0, spine[1] - 32)
    hu[(left - aorta[0]) ** 2 + (posterior - aorta[1]) ** 2 < 10.0**2] = 170.0
    labels = np.zeros(shape_zyx, dtype=np.uint8)
    for name, organ in anatomy.organs.items():
        inside = organ.radius2(points) < 1
        hu[inside] = organ.hu
        labels[inside] = LABELS[name]
    hu += rng.normal(0, _NOISE_HU, shape_zyx).astype(np.float32)
    return np.clip(hu, -1024, 3071), labels


def phantom(
    rng: np.random.Generator,
    shape_zyx: tuple[int, int, int] = (40, 64, 64),
    spacing_mm: tuple[float, float, float] = (6.0, 5.5, 5.5),
) -> Phantom:
    """Draw a person and image them axially: columns run to the left, rows to the back, slices to the head.

    Raises
    ------
    ValueError
        The grid does not hold all organs, so the volumes would not be the truth of the picture.
    """
    anatomy = draw_anatomy(rng)
    half_lps = np.array(shape_zyx[::-1]) * np.array(spacing_mm[::-1]) / 2
    reach = np.max([np.abs(o.centre_mm) + _extent(o) for o in anatomy.organs.values()], axis=0)
    if np.any(reach > half_lps):
        need = ", ".join(f"{2 * size:.0f}" for size in reach[::-1])
        raise ValueError(f"the grid is too small for the organs: it must cover ({need}) mm in (z, y, x)")
    hu, labels = render(anatomy, rng, shape_zyx, grid_affine(shape_zyx, spacing_mm))
    return Phantom(hu, labels, anatomy.truth_ml)


def _points(shape_zyx: tuple[int, int, int], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, y, x = np.ogrid[: shape_zyx[0], : shape_zyx[1], : shape_zyx[2]]
    left, posterior, superior = (row[0] * x + row[1] * y + row[2] * z + row[3] for row in affine[:3])
    return left, posterior, superior


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _extent(organ: Ellipsoid) -> np.ndarray:
    """Half the size of the organ's box along L, P, S in mm."""
    turn = radians(organ.angle_deg)
    a, b, c = organ.semi_axes_mm
    return np.array([np.hypot(a * cos(turn), b * sin(turn)), np.hypot(a * sin(turn), b * cos(turn)), c])


def _apart(organs: list[Ellipsoid], body_mm: tuple[float, float]) -> bool:
    """Whether no organ, a little enlarged, touches another one or leaves the body; seen on a 6 mm grid."""
    shape = (44, 40, 56)
    points = _points(shape, grid_affine(shape, (6.0, 6.0, 6.0)))
    inside = [organ.radius2(points) < _GAP**2 for organ in organs]
    body = (points[0] / body_mm[0]) ** 2 + (points[1] / body_mm[1]) ** 2 < 0.85
    return bool(np.sum(inside, axis=0).max() <= 1 and np.all(body | ~np.any(inside, axis=0)))
