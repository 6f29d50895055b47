"""What a bundle finds at a place in the patient lies there on the series' own grid, however its axes run."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from medflow.plugin import Image

SHAPE, SPACING = (5, 6, 7), (3.0, 1.5, 2.0)  # z, y, x: no two alike
ORIENTATIONS = [(axes, signs) for axes in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]
CORNER = (
    "import torch\n\n"
    "class Corner(torch.nn.Module):\n"
    '    """The voxel where all axes start, which run to the right, the front and the head; and what is bright."""\n\n'
    "    def __init__(self):\n        super().__init__()\n        self.scale = torch.nn.Parameter(torch.ones(1))\n\n"
    "    def forward(self, x):\n"
    "        first, bright = torch.zeros_like(x), (x > 0.5).float()\n"
    "        first[:, :, 0, 0, 0] = self.scale\n"
    "        return torch.cat([1 - torch.maximum(first, bright), first * 2, bright], dim=1)\n"
)


@pytest.fixture
def corner(zoo, tmp_path, loaded):
    """A bundle that orients to RAS, marks a corner of what it is given, and goes back."""
    config = zoo.spleen_config(network_def={"_target_": "scripts.corner.Corner"})
    config["inferer"] = {"_target_": "SimpleInferer"}
    config["preprocessing"]["transforms"] = [
        step for step in config["preprocessing"]["transforms"] if step["_target_"] != "Spacingd"
    ]
    channels = {"0": "background", "1": "corner", "2": "bright"}
    meta = zoo.metadata(zoo.tensor("segmentation", num_channels=3, channel_def=channels))
    bundle = zoo.write_bundle(tmp_path / "corner", config, meta, {"model": {"scale": zoo.torch.ones(1)}})
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "__init__.py").touch()
    (bundle / "scripts" / "corner.py").write_text(CORNER)
    site = {"code": "108369006", "display": "Marker", "site": "12738006"}
    return loaded(bundle, labels={"corner": site, "bright": site})


def test_in_all_48_orientations(zoo, corner):
    for axes, signs in ORIENTATIONS:
        directions = np.zeros((3, 3))
        directions[axes, range(3)] = signs  # columns: where x, y and z of the array run, in LPS
        affine = np.eye(4)
        affine[:3, :3] = directions * SPACING[::-1]
        affine[:3, 3] = (-120.5, 33.25, 700)
        array = np.full(SHAPE, -500, np.float32)
        array[0, 1, 2] = array[3, 0, 0] = 500
        image = Image(array=array, spacing_mm=SPACING, affine=affine, modality="CT")

        [prediction] = corner.predict([corner.prepare(zoo.case_of(image=image))])
        found = {name: np.asarray(mask) for name, mask in prediction.values.items()}

        indices = np.stack(np.meshgrid(*[np.arange(size) for size in SHAPE], indexing="ij"))[::-1]
        left, back, head = np.einsum("ij,j...->i...", affine[:3, :3], indices) + affine[:3, 3].reshape(3, 1, 1, 1)
        leftmost = (left == left.max()) & (back == back.max()) & (head == head.min())
        assert leftmost.sum() == 1
        np.testing.assert_array_equal(found["corner"], leftmost)
        np.testing.assert_array_equal(found["bright"], (array > 0) & ~leftmost)
