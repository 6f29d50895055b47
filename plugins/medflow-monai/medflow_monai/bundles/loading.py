"""What stands in for a file: medflow's images, given to a bundle's own ``LoadImaged`` as NIfTI and PNG readers would.

The transform stays the bundle's: how it stacks several files, which metadata it keeps and how it casts are its options.
MONAI's own readers are never constructed: of what they would read there is nothing, and one of them registers a decoder
with pydicom, which would then decode medflow's objects in the whole process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.transforms.io.array import LoadImage
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.transform import MapTransform
from monai.utils.misc import ensure_tuple, ensure_tuple_rep

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


class _NoReaders(LoadImage):
    """MONAI's ``LoadImage`` with its options, reading by the reader that it is called with alone."""

    def __init__(  # not its own: that constructs every reader there is
        self,
        image_only: bool = True,
        dtype: Any = np.float32,
        ensure_channel_first: bool = False,
        simple_keys: bool = False,
        prune_meta_pattern: str | None = None,
        prune_meta_sep: str = ".",
    ) -> None:
        self.auto_select, self.expanduser = False, False
        self.image_only, self.dtype = image_only, dtype
        self.ensure_channel_first, self.simple_keys = ensure_channel_first, simple_keys
        self.pattern, self.sep = prune_meta_pattern, prune_meta_sep
        self.readers = []


class GivenImaged(LoadImaged):
    """MONAI's ``LoadImaged`` without readers; options that are only a reader's, and the reader, are passed over."""

    def __init__(
        self,
        keys: Any,
        reader: Any = None,
        dtype: Any = np.float32,
        meta_keys: Any = None,
        meta_key_postfix: Any = "meta_dict",
        overwriting: bool = False,
        image_only: bool = True,
        ensure_channel_first: bool = False,
        simple_keys: bool = False,
        prune_meta_pattern: str | None = None,
        prune_meta_sep: str = ".",
        allow_missing_keys: bool = False,
        **_: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)  # not LoadImaged's, for its readers
        self._loader = _NoReaders(
            image_only, dtype, ensure_channel_first, simple_keys, prune_meta_pattern, prune_meta_sep
        )
        self.meta_keys = ensure_tuple_rep(None, len(self.keys)) if meta_keys is None else ensure_tuple(meta_keys)
        if len(self.keys) != len(self.meta_keys):
            raise ValueError(f"LoadImaged has {len(self.keys)} keys, but {len(self.meta_keys)} meta_keys")
        self.meta_key_postfix = ensure_tuple_rep(meta_key_postfix, len(self.keys))
        self.overwriting = overwriting


class Loading:
    """A bundle's ``LoadImaged`` with the reader it is to use; only for the keys that there are images for."""

    def __init__(self, transform: LoadImaged, reader: CaseReader | None = None) -> None:
        self.transform, self.reader = transform, reader

    def __call__(self, data: Mapping[str, Any]) -> dict[Any, Any]:
        """Load the images named in ``data``."""
        return self.transform(dict(data), self.reader)
