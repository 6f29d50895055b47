"""No picture is in two places, and nothing but the seed decides where it is."""

from __future__ import annotations

import numpy as np
import pytest

from medflow_monai.xray_data import SHARES, Part, parts, read, same_pictures


@pytest.fixture
def pictures():
    """Six unlike pictures, uint8 (n, 32, 32), larger than what is stored so that they can be moved."""
    return np.random.default_rng(0).integers(60, 200, (6, 32, 32), dtype=np.uint8)


@pytest.fixture
def written(tmp_path):
    def write(train, validation):
        path = tmp_path / "data.npz"
        labels = [np.arange(len(split))[:, None] % 2 for split in (train, validation)]
        np.savez(path, train_images=train, train_labels=labels[0], val_images=validation, val_labels=labels[1])
        return path

    return write


def cut(pictures, down=0, right=0):
    return pictures[..., 2 + down : 30 + down, 2 + right : 30 + right]


def test_a_repeat_is_kept_once_and_what_is_in_validation_leaves_training(written, pictures):
    one = cut(pictures)

    split, validation = read(written(one[[0, 1, 2, 1, 3]], one[[3, 4]]))

    assert len(split.labels) == 3
    assert split.labels.tolist() == [0, 1, 0]  # the first of each
    assert len(validation.labels) == 2


@pytest.mark.parametrize(("down", "right"), [(0, 2), (-1, 1), (2, -2)])
def test_a_repeat_that_was_moved_or_made_brighter_is_one(pictures, down, right):
    moved = cut(pictures[:1], down, right) * 0.6 + 90

    assert same_pictures(np.concatenate([cut(pictures), moved]))[-1] == same_pictures(cut(pictures))[0]
    assert len(np.unique(same_pictures(np.concatenate([cut(pictures), moved])))) == len(pictures)


def test_every_part_has_its_share_of_each_class_and_no_picture_is_in_two():
    numbers = np.arange(1000, dtype=np.float32)[:, None, None] * np.ones((28, 28), dtype=np.float32)
    split = Part(pictures=numbers, labels=np.repeat([0, 1], [100, 900]))

    found = parts(split)

    for name, share in SHARES.items():
        assert [(found[name].labels == label).sum() for label in (0, 1)] == pytest.approx([100 * share, 900 * share])
    everywhere = np.concatenate([part.pictures[:, 0, 0] for part in found.values()])
    assert np.array_equal(np.sort(everywhere), np.arange(1000))
    assert np.array_equal(parts(split)["test"].pictures, found["test"].pictures)
