"""Sample data made by a seeded generator: for `medflow demo`, for tests, and for training on a known truth."""

from medflow.sample.files import ISSUER_SYSTEMS, SampleData, pydicom_files, write_sample
from medflow.sample.phantom import LABELS, Anatomy, Phantom, draw_anatomy, grid_affine, phantom, render

__all__ = [
    "ISSUER_SYSTEMS",
    "LABELS",
    "Anatomy",
    "Phantom",
    "SampleData",
    "draw_anatomy",
    "grid_affine",
    "phantom",
    "pydicom_files",
    "render",
    "write_sample",
]
