"""Maps of where in the picture the information of z or a label lies (information_maps), and where a denoiser uses z."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dataset import shapes3d
from dataset.registry import Dataset
from experiment.measuring import Sample
from information.maps import Gaps, Map, arrays, maps
from plots import to_uint8
from utils import write_npz

BANDS, POINTS = 6, 4  # of log-SNR; points a band
MAPPED = 200  # images
ENTRIES = 6  # of z, those that the denoiser relies on most


class Maps:
    """Measures maps on the first images of a sample and collects them under their names."""

    def __init__(self, sample: Sample, ends: tuple[float, float], seed: int):
        self.sample, self.seed = sample, seed
        self.edges = np.linspace(*ends, BANDS + 1).tolist()
        self.count = min(MAPPED, sample.count)
        self.found: dict[str, Map] = {}

    def add(self, gaps: Gaps) -> None:
        masks, batches = masks_of(self.sample.dataset), self.sample.batches(range(self.count))
        self.found |= maps(gaps, batches, self.edges, POINTS, self.seed, masks)

    def write(self, path: Path) -> dict:
        """Write the pictures to an .npz file; returns what a result file says of them."""
        mean = torch.cat([x for _, x in self.sample.batches(range(self.count))]).mean(0, keepdim=True)
        write_npz(path, **arrays(self.found, self.edges), average=to_uint8(mean)[0])
        return {"images": self.count, "logsnr_edges": self.edges, "points_a_band": POINTS,
                "of": {name: one.columns(shapes3d.MATERIALS) for name, one in self.found.items()}}


def masks_of(dataset: Dataset):
    """index [B] -> [B, 3, H, W], how much of each pixel is floor, wall and object; None where nobody knows."""
    if dataset.spec.name != "shapes3d":
        return None
    return lambda index: torch.from_numpy(shapes3d.coverage(dataset.rows[index.cpu().numpy()], dataset.spec.size))
