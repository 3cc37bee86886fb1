"""Compare two sets of images: Frechet and kernel distances between their features.

* `Moments`, `frechet_distance`, `jackknife_error`, `kernel_distance`: arrays in, numbers out, all in float64.
* `folder_images`, `dataset_images`: numbered `Images` from files, or from a data set.
* `measure`: the `Statistics` of images under an extractor; `compare`: every number of a pair, with its provenance.

FID: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule". KID: Binkowski et al. 2018, "Demystifying MMD
GANs".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
from tqdm import tqdm

from dataset import registry
from dataset.files import list_images, read_image
from metrics.extractors import Extractor
from utils import CommandError, read_npz, write_npz

KEPT_FEATURES = 10_000  # features kept for the kernel distance: a uniform draw of the images
JACKKNIFE_BLOCKS = 10
MOST_DIMS, LARGEST = 8192, 1e30  # of statistics read from a file: what no extractor gives
TOLERANCE = 1e-3  # of a covariance's largest entry: rounding of float16 is within it
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000


# ---------------------------------------------------------------------------------------------------------------------
# Distances: arrays in, numbers out


class Moments:
    """Mean and covariance of rows that stream by, in float64. Memory depends on the dimensions alone.

    Batches are joined by the update of Chan, Golub and LeVeque (1983), which loses no digits to a large mean. Rows are
    gathered to a few hundred before each update, since the update costs dims^2 whatever the number of rows.
    """

    GATHER = 512

    def __init__(self, dims: int):
        self._count, self._mean, self._scatter = 0, np.zeros(dims), np.zeros((dims, dims))
        self._pending: list[np.ndarray] = []

    def update(self, features: np.ndarray) -> None:
        """Add rows, [N, dims] of any float type."""
        self._pending.append(np.asarray(features, dtype=np.float64))
        if sum(map(len, self._pending)) >= self.GATHER:
            self._settle()

    def merge(self, other: Moments) -> None:
        """Add all rows of `other`, which another process may have gathered."""
        other._settle()
        self._settle()
        self._absorb(other._count, other._mean, other._scatter)

    def without(self, part: Moments) -> Moments:
        """The moments of the rows that are not in `part`, whose rows must all be in here."""
        part._settle()
        self._settle()
        rest = Moments(len(self._mean))
        rest._count = self._count - part._count
        rest._mean = (self._count * self._mean - part._count * part._mean) / rest._count
        delta = part._mean - rest._mean
        shift = rest._count * part._count / self._count
        rest._scatter = self._scatter - part._scatter - shift * np.outer(delta, delta)
        return rest

    @property
    def count(self) -> int:
        """Rows seen."""
        self._settle()
        return self._count

    @property
    def mean(self) -> np.ndarray:
        """[dims]"""
        self._settle()
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """[dims, dims], unbiased (divided by count - 1). Raises ValueError with fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows, not {self._count}")
        return self._scatter / (self._count - 1)

    def _settle(self) -> None:
        if self._pending:
            rows = np.concatenate(self._pending)
            self._pending = []
            if len(rows):
                mean = rows.mean(axis=0)
                self._absorb(len(rows), mean, (rows - mean).T @ (rows - mean))

    def _absorb(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self._count + count
        delta = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(delta, delta * (self._count * count / max(total, 1)))
        self._mean = self._mean + delta * (count / max(total, 1))
        self._count = total


def frechet_distance(mu1: np.ndarray, cov1: np.ndarray, mu2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Frechet distance of N(mu1, cov1) and N(mu2, cov2), Heusel et al. 2017, eq. 6:

        |mu1 - mu2|^2 + tr(cov1) + tr(cov2) - 2 tr sqrt(cov1 cov2)

    With cov = S S^T the eigenvalues of cov1 cov2 are the squared singular values of S1^T S2, so that the last trace is
    the sum of these singular values: no matrix square root, and no complex numbers.

    mu [d], cov [d, d] symmetric and positive semidefinite, of any rank. Raises ValueError where a value is not finite.
    """
    arrays = [np.asarray(array, dtype=np.float64) for array in (mu1, cov1, mu2, cov2)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("means or covariances hold values that are not finite")
    mu1, cov1, mu2, cov2 = arrays
    product = _factor(cov1).T @ _factor(cov2)  # [rank1, rank2]
    if product.shape == cov1.shape:
        # Squaring loses half of the digits of small singular values. In the sum it matters only where they should be
        # zero, and it is four times as fast: so it is the way for full rank, and for full rank alone.
        singular = np.sqrt(np.linalg.eigvalsh(product.T @ product).clip(min=0))
    else:
        singular = scipy.linalg.svdvals(product)
    difference = mu1 - mu2
    return float(difference @ difference + np.trace(cov1) + np.trace(cov2) - 2 * singular.sum())


def _factor(cov: np.ndarray) -> np.ndarray:
    """S [d, rank] with S S^T = cov: Cholesky with pivoting, which stops where only rounding errors are left."""
    packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(cov, lower=1)
    factor = np.empty((len(cov), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    return factor


def jackknife_error(blocks: Sequence[Moments], statistic: Callable[[Moments], float]) -> float:
    """Standard error of `statistic` by the delete-a-block jackknife (Efron and Stein 1981), blocks of equal size.

    One evaluation of `statistic` a block; no features need to be kept. What all deletions share, such as the bias of
    FID in the number of images, cancels.
    """
    whole = Moments(len(blocks[0].mean))
    for block in blocks:
        whole.merge(block)
    values = np.array([statistic(whole.without(block)) for block in blocks])
    return float(np.sqrt((len(blocks) - 1) * values.var()))


def kernel_distance(
    features1: np.ndarray,
    features2: np.ndarray,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """KID: mean and standard deviation over subsets of the unbiased squared MMD, Binkowski et al. 2018, section 4.

    The kernel is k(x, y) = (x.y / dims + 1)^3. Each subset is drawn without replacement, as many rows of features1
    [N1, dims] as of features2 [N2, dims]: `subset_size`, or all of the smaller set. Where that takes both sets whole
    there is one subset, and the deviation is nan. Raises ValueError with fewer than two rows.
    """
    size = min(subset_size, len(features1), len(features2))
    if size < 2:
        raise ValueError("a kernel distance needs two rows on either side")
    if size == len(features1) == len(features2):
        subsets = 1
    generator = np.random.default_rng(seed)
    values = np.empty(subsets)
    for k in range(subsets):
        rows = [generator.choice(len(side), size, replace=False) for side in (features1, features2)]
        values[k] = _squared_mmd(features1[rows[0]].astype(np.float64), features2[rows[1]].astype(np.float64))
    return float(values.mean()), float(values.std(ddof=1)) if subsets > 1 else float("nan")


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared MMD, Binkowski et al. 2018, eq. 4: pairs of a row with itself are left out."""
    size, dims = x.shape

    def kernel(a, b):
        linear = a @ b.T / dims + 1
        return linear * linear * linear  # [size, size]; a tenth of the time of ** 3

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return within / (size * (size - 1)) - 2 * xy.mean()


# ---------------------------------------------------------------------------------------------------------------------
# Images: numbered, read by the batch


@dataclass(frozen=True)
class Images:
    """Images 0 .. count - 1 of one shape; `read` turns numbers [B] into uint8 pixels [B, *shape]."""

    source: str
    count: int
    shape: tuple[int, int, int]
    read: Callable[[np.ndarray], np.ndarray]


def image_files(folder: str | Path) -> list[Path]:
    """The image files of a folder and its subfolders, sorted by path; hidden ones, and sheets of samples, left out.

    A `grid.png` beside numbered `sample-000000.png`, as `--mode eval` writes them, is a sheet of these samples.
    Raises CommandError for fewer than two.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CommandError(f"image folder {folder} does not exist")
    names = list_images(folder)
    numbered = {Path(name).parent for name in names if re.fullmatch(r"sample-[0-9]{6,}\.png", Path(name).name)}
    files = [folder / name for name in names if Path(name).name != "grid.png" or Path(name).parent not in numbered]
    if not files:
        raise CommandError(f"image folder {folder} holds no images")
    if len(files) < 2:
        raise CommandError(f"image folder {folder} holds one image, {files[0].name}: a covariance needs at least two")
    return files


def folder_images(folder: str | Path, channels: int, num_workers: int = 1) -> Images:
    """The images of a folder as RGB (channels 3) or grey (channels 1), read as training does, by `num_workers` threads.

    Raises CommandError naming the file that is broken, not of 8 bits, or of another size than the first.
    """
    files = image_files(folder)
    shape = _decode(files[0], channels).shape
    pool = ThreadPoolExecutor(num_workers)

    def one(number):
        pixels = _decode(files[number], channels)
        if pixels.shape != shape:
            raise CommandError(
                f"{files[number]} is {_size_text(pixels.shape)}, but {files[0].name} is {_size_text(shape)}: "
                "all images of a folder must have one size"
            )
        return pixels

    return Images(str(folder), len(files), shape, lambda numbers: np.stack(list(pool.map(one, numbers))))


def _decode(path: Path, channels: int) -> np.ndarray:
    """uint8 [channels, H, W]: upright, on white where it is transparent, as training reads it."""
    return np.ascontiguousarray(registry.recolour(read_image(path)[None], channels)[0])


def _size_text(shape: Sequence[int]) -> str:
    """Width x height, of a shape [..., H, W]."""
    return f"{shape[-1]}x{shape[-2]}"


def dataset_images(name: str, data_dir: str, split: str, channels: int) -> Images:
    """The images of a data set's split with these channels, their levels spread over 0 .. 255.

    Raises CommandError for a set that is unknown, absent, or holds no images.
    """
    if name in registry.SPECS and registry.SPECS[name].kind == "points":
        raise CommandError(f"data set '{name}' holds points, not images")
    dataset = registry.load(name, split, root=data_dir, channels=channels)

    def read(numbers):
        raw = dataset.raw(numbers).numpy()
        return raw if dataset.levels == 256 else np.rint(raw * (255 / (dataset.levels - 1))).astype(np.uint8)

    return Images(f"{name} ({split})", len(dataset), dataset.shape, read)


def _batches(images: Images, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (numbers [B], pixels [B, C, H, W]); the next batch is read while the caller works on this one."""
    numbers = [np.arange(k, min(k + batch_size, images.count)) for k in range(0, images.count, batch_size)]
    with ThreadPoolExecutor(1) as ahead:
        pending = ahead.submit(images.read, numbers[0])
        for current, following in zip(numbers, [*numbers[1:], None], strict=True):
            pixels = pending.result()
            if following is not None:
                pending = ahead.submit(images.read, following)
            yield current, pixels


# ---------------------------------------------------------------------------------------------------------------------
# Statistics: what is kept of a set of images


@dataclass(frozen=True)
class Statistics:
    """What is kept of a set of images.

    mean        [dims]; covariance [dims, dims]
    features    [K, dims] float32 of a uniform draw of at most KEPT_FEATURES images, for the kernel distance
    identity    extractor, resize and weights (`Extractor.identity`)
    size        (height, width) of the images before any resizing
    blocks      moments of interleaved blocks of the images, for the jackknife; empty when read from a file

    Of statistics that another program wrote, count, features, identity and size are not known: None.
    """

    source: str
    count: int | None
    mean: np.ndarray
    covariance: np.ndarray
    features: np.ndarray | None
    identity: dict[str, str] | None
    size: tuple[int, int] | None
    blocks: tuple[Moments, ...] = ()


def measure(images: Images, extractor: Extractor, batch_size: int = 64) -> Statistics:
    """Stream images through an extractor. The result does not depend on the batch size, but for rounding.

    Raises CommandError where the extractor does not take images of this size, or gives features that are not finite.
    """
    if extractor.size is not None and images.shape[-2:] != (extractor.size, extractor.size):
        raise CommandError(
            f"{images.source}: images are {_size_text(images.shape)}, "
            f"but this classifier takes {extractor.size}x{extractor.size}"
        )
    kept = np.zeros(images.count, dtype=bool)
    kept[np.random.default_rng(0).permutation(images.count)[:KEPT_FEATURES]] = True
    block_count = JACKKNIFE_BLOCKS if images.count >= 2 * JACKKNIFE_BLOCKS else 1
    blocks, rows = [], []
    progress = tqdm(total=images.count, desc=f"features of {images.source}", unit="image", disable=None)
    for numbers, pixels in _batches(images, batch_size):
        features = extractor(pixels)  # [B, dims]
        if not np.isfinite(features).all():
            raise CommandError(f"{images.source}: the {extractor.name} gives features that are not finite")
        blocks = blocks or [Moments(features.shape[1]) for _ in range(block_count)]
        for k, block in enumerate(blocks):
            block.update(features[numbers % block_count == k])
        rows.append(features[kept[numbers]])
        progress.update(len(numbers))
    progress.close()
    whole = Moments(len(blocks[0].mean))
    for block in blocks:
        whole.merge(block)
    return Statistics(
        images.source, images.count, whole.mean, whole.covariance, np.concatenate(rows), extractor.identity(),
        images.shape[-2:], tuple(blocks),
    )


def write_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write an .npz file. Its `mu` and `sigma` are named as pytorch-fid names them, which can read it."""
    write_npz(
        path, mu=statistics.mean, sigma=statistics.covariance, count=statistics.count, features=statistics.features,
        size=statistics.size, **statistics.identity,
    )


def read_statistics(path: str | Path) -> Statistics:
    """Read what `write_statistics` wrote, or pytorch-fid or clean-fid, whose files hold mu and sigma alone.

    Raises CommandError for a file that is missing, broken, or holds what no images have: values that are not finite,
    shapes that do not fit, a covariance that is not symmetric or has negative variances.
    """
    arrays = read_npz(path, "mu", "sigma")
    mean, covariance = _moments_of(path, arrays["mu"], arrays["sigma"])
    if "extractor" not in arrays:
        return Statistics(str(path), None, mean, covariance, None, None, None)
    names = ("count", "features", "size", "extractor", "resize", "weights")
    count, features, size, *identity = (read_npz(path, *names)[name] for name in names)
    for name, array, shape in (("count", count, ()), ("size", size, (2,))):
        if array.shape != shape or array.dtype.kind not in "iu" or (array < 1).any():
            raise CommandError(f"{path}: {name} must be {' by '.join(map(str, shape)) or 'one'} whole number(s) from 1")
    if features.dtype.kind != "f" or features.ndim != 2 or features.shape[1] != len(mean) or len(features) < 2:
        raise CommandError(f"{path}: features must be numbers [K, {len(mean)}], they are {_described(features)}")
    if not np.isfinite(features).all():
        raise CommandError(f"{path}: features holds values that are not finite")
    if any(array.dtype.kind != "U" or array.shape for array in identity):
        raise CommandError(f"{path}: extractor, resize and weights must be a word each")
    identity = dict(zip(names[-3:], map(str, identity), strict=True))
    return Statistics(str(path), int(count), mean, covariance, features, identity, tuple(map(int, size)))


def _moments_of(path: str | Path, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mean [dims] and covariance [dims, dims] in float64. Raises CommandError for what no features can have."""
    for name, array, axes in (("mu", mean, 1), ("sigma", covariance, 2)):
        if array.dtype.kind not in "fiu" or array.ndim != axes or array.shape != (array.shape[0],) * axes:
            shape = "[dims]" if axes == 1 else "[dims, dims]"
            raise CommandError(f"{path}: {name} must be numbers {shape}, it is {_described(array)}")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not 1 <= len(mean) == len(covariance) <= MOST_DIMS:
        raise CommandError(f"{path}: mu has {len(mean)} dimensions and sigma {len(covariance)}: they must be equal, "
                           f"from 1 to {MOST_DIMS}")
    for name, array in (("mu", mean), ("sigma", covariance)):
        if not np.isfinite(array).all() or abs(array).max() > LARGEST:
            raise CommandError(f"{path}: {name} holds values that are not finite, or beyond {LARGEST:g}")
    scale = abs(covariance).max()
    if abs(covariance - covariance.T).max() > TOLERANCE * scale:
        raise CommandError(f"{path}: sigma is not symmetric, as a covariance is")
    covariance = (covariance + covariance.T) / 2
    if (least := np.linalg.eigvalsh(covariance)[0]) < -TOLERANCE * scale:
        raise CommandError(f"{path}: sigma has negative variances (eigenvalue {least:.3g}): it is no covariance")
    return mean, covariance


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def refuse_unlike(reference: Statistics, source: str, identity: dict[str, str], size: tuple[int, int],
                  dims: int) -> None:
    """Raise CommandError where images of `source`, of this size, measured so, do not compare with the reference.

    Of statistics that another program wrote, only the number of features is known, `dims` of the measured images.
    """
    if reference.identity is None:
        if len(reference.mean) != dims:
            raise CommandError(f"{reference.source} holds {len(reference.mean)} features, and not the {dims} of "
                               f"--extractor {identity['extractor']}")
        return
    for name, value in identity.items():
        if reference.identity[name] != value:
            raise CommandError(
                f"{reference.source} was measured with {name} '{reference.identity[name]}', and not '{value}': "
                "measure both alike (gen_fid_stats.py and calc_fid.py with the same flags)"
            )
    if reference.size != size:
        raise CommandError(
            f"{source} holds images of {_size_text(size)}, {reference.source} is of {_size_text(reference.size)}: "
            "save the reference images at the samples' size (run.py --mode save_original_img)"
        )


def compare(reference: Statistics, measured: Statistics) -> dict:
    """FID and KID of `measured` against `reference`, with what a reader needs to trust them.

    Where the reference is another program's mu and sigma, its extractor is 'unknown' and there is no KID.

    `fid_se` is the error from the finite number of measured images, the reference held fixed; None below 20 images.
    `kid_sd` is over subsets, and not the error of the mean; None where there is but one subset.
    Raises CommandError for images of another extractor or another size.
    """
    refuse_unlike(reference, measured.source, measured.identity, measured.size, len(measured.mean))

    def distance(mean, covariance):
        return frechet_distance(mean, covariance, reference.mean, reference.covariance)

    error = None
    if len(measured.blocks) > 1:
        error = jackknife_error(measured.blocks, lambda part: distance(part.mean, part.covariance))
    return {
        "fid": max(distance(measured.mean, measured.covariance), 0.0),  # below zero by rounding alone
        "fid_se": error,
        "fid_se_method": error and f"jackknife over {len(measured.blocks)} blocks of the images, the reference fixed",
        **_kernel_record(reference, measured),
        **measured.identity,
        "count": measured.count,
        "reference_count": reference.count,
        "source": measured.source,
        "reference": reference.source,
        "reference_extractor": (reference.identity or {"extractor": "unknown"})["extractor"],
        "size": list(measured.size),
        "note": _note(reference, measured),
    }


def _kernel_record(reference: Statistics, measured: Statistics) -> dict:
    """KID; None where the reference keeps no features."""
    if reference.features is None:
        return {"kid": None, "kid_sd": None, "kid_method": None}
    kid, kid_sd = kernel_distance(reference.features, measured.features)
    drawn = min(KID_SUBSET_SIZE, len(reference.features), len(measured.features))
    return {
        "kid": kid,
        "kid_sd": None if np.isnan(kid_sd) else kid_sd,
        "kid_method": f"unbiased, cubic kernel, {1 if np.isnan(kid_sd) else KID_SUBSETS} subsets of {drawn} a side",
    }


def _note(reference: Statistics, measured: Statistics) -> str:
    notes = []
    if measured.identity["extractor"] != "inception":
        notes.append("not comparable with Inception FID")
    if reference.identity is None:
        notes.append("the reference's extractor settings are unknown: its file holds mu and sigma alone, so no KID")
    return "; ".join(notes)
