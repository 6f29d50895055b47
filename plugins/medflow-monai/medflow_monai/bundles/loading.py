"""What stands in for a file: medflow's images, given to a bundle's own ``LoadImaged`` as NIfTI and PNG readers would.

The transform stays the bundle's: how it stacks several files, which metadata it keeps and how it casts are its options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.transforms.io.dictionary import LoadImaged

from medflow.plugin import Image

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class CaseReader(ImageReader):
    """Reads "files" that are the inputs of a case, by their names.

    A volume (z, y, x) with its affine to LPS becomes what nibabel gives of the same volume: (x, y, z), RAS. A single
    image (rows, columns) becomes what Pillow gives of a picture: (columns, rows), without geometry, and with
    ``repeat`` colours if that is not 0.
    """

    def __init__(self, images: Mapping[str, Image], *, repeat: int = 0) -> None:
        self._images, self._repeat = images, repeat

    def verify_suffix(self, filename: Sequence[str] | str) -> bool:
        """Every name is taken."""
        return True

    def read(self, data: Sequence[str] | str, **kwargs: Any) -> list[Image]:
        """The images of these names."""
        return [self._images[name] for name in ([data] if isinstance(data, str) else data)]

    def get_data(self, img: Sequence[Image]) -> tuple[np.ndarray, dict[str, Any]]:
        """The array, several stacked as channels, and the metadata of the first."""
        arrays = [np.ascontiguousarray(image.array.T) for image in img]
        meta = _metadata(img[0], arrays[0].shape)
        if self._repeat:
            meta["original_channel_dim"] = -1
            return np.repeat(arrays[0][..., None], self._repeat, axis=-1), meta
        if len(arrays) == 1:
            return arrays[0], meta
        meta["original_channel_dim"] = 0
        return np.stack(arrays), meta


def _metadata(image: Image, shape: tuple[int, ...]) -> dict[str, Any]:
    meta: dict[str, Any] = {"spatial_shape": np.asarray(shape), "original_channel_dim": float("nan")}
    if image.affine is not None and len(shape) == 3:
        affine = LPS_TO_RAS @ image.affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        meta |= {"affine": affine, "original_affine": affine.copy(), "space": "RAS", "as_closest_canonical": False}
        meta |= {"pixdim": np.asarray([1.0, *spacing, 0, 0, 0, 0], dtype=np.float32)}  # as in a NIfTI header
    return meta


class Loading:
    """A bundle's ``LoadImaged`` with the reader it is to use; only for the keys that there are images for."""

    def __init__(self, transform: LoadImaged, reader: CaseReader | None = None) -> None:
        self.transform, self.reader = transform, reader

    def __call__(self, data: Mapping[str, Any]) -> dict[Any, Any]:
        """Load the images named in ``data``."""
        return self.transform(dict(data), self.reader)
