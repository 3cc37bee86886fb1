"""A picture of one's own is cut as the data set cuts its own."""

import numpy as np
import pytest
from PIL import Image

from dataset import registry
from experiment.pictures import as_batch


@pytest.mark.parametrize("name, size, side", [
    ("celeba", (178, 218), 148), ("celeba", (64, 64), 64), ("celeba", (148, 200), 148), ("folder", (178, 218), 178),
    ("cifar10", (40, 32), 32),
])
def test_the_crop_is_the_data_sets(tmp_path, name, size, side):
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = 255
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", picture, pixels):
        x = as_batch(given, registry.SPECS[name], (3, 16, 16))
        assert x.shape == (1, 3, 16, 16) and x.min() > 0.99
