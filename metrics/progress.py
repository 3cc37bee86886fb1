"""FID while a model trains: the same 1,000 samples every time, against the first training images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import plots
from dataset import registry
from metrics import extractors, fid

SAMPLES, REFERENCE_IMAGES = 1_000, 5_000


class Progress:
    """Measures samples of a model that trains against the first images of its training set.

    classifier  checkpoint of train_classifier.py --images, for images too small for EfficientNet
    Raises CommandError where the extractor's weights are absent or of other data, or there are fewer than 20 images.
    """

    def __init__(self, dataset: registry.Dataset, classifier: str | Path, device: torch.device, batch_size: int):
        if min(dataset.shape[1:]) >= extractors.EFFICIENTNET_LEAST:
            self.extractor = extractors.efficientnet(device)
        else:
            self.extractor = extractors.classifier(classifier, device)
        self.extractor.refuse_data(f"the data set {dataset.spec.name}", registry.identity(dataset))
        self.shape, self.batch_size = dataset.shape, batch_size
        images = fid.images_of(dataset, self.extractor.channels, REFERENCE_IMAGES)
        self.reference = fid.measure(images, self.extractor)

    def __call__(self, draw: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """{fid, fid_se} of 1,000 samples; `draw` turns numbers int64 [B] into samples [B, C, H, W] in [-1, 1].

        Processes of torchrun share the samples, and all get the result.
        """

        def read(numbers: np.ndarray) -> np.ndarray:
            pixels = plots.to_uint8(draw(torch.from_numpy(numbers))).transpose(0, 3, 1, 2)
            return registry.recolour(pixels, self.extractor.channels)

        images = fid.Images("samples", SAMPLES, (self.extractor.channels, *self.shape[1:]), read)
        found = fid.frechet(self.reference, fid.measure(images, self.extractor, self.batch_size))
        return {"fid": found.value, "fid_se": found.se}
