"""Compare two sets of images by their features: FID, KID, precision, recall, density, coverage.

* `folder_images`, `dataset_images`: numbered `Images` from files, or from a data set.
* `measure`: the `Statistics` of images under an extractor; processes of torchrun share the images.
* `compare`: every number of a pair, with its error and its provenance. The formulas are those of `distances.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import distributed
from dataset import registry
from dataset.files import list_images, read_image
from metrics.distances import (
    BLOCKS,
    COVERAGE_K,
    MANIFOLD_K,
    Moments,
    Nearest,
    Resampled,
    extrapolated,
    frechet_distance,
    jackknife,
    joined,
    kernel_distance,
    neighbour_scores,
)
from metrics.extractors import PREPROCESSING, Extractor
from utils import CommandError, progress_bar, read_npz, write_npz

KEPT_FEATURES = 10_000  # features kept for KID and neighbours: a uniform draw of the images
MOST_DIMS, LARGEST = 8192, 1e30  # of statistics read from a file: what no extractor gives
TOLERANCE = 1e-3  # of a covariance's largest entry: rounding of float16 is within it


# ---------------------------------------------------------------------------------------------------------------------
# Images: numbered, read by the batch


@dataclass(frozen=True)
class Images:
    """Images 0 .. count - 1 of one shape; `read` turns numbers [B] into uint8 pixels [B, *shape], `name` says which."""

    source: str
    count: int
    shape: tuple[int, int, int]
    read: Callable[[np.ndarray], np.ndarray]
    name: Callable[[int], str] = str


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

    def read(numbers):
        return np.stack(list(pool.map(one, numbers)))

    return Images(str(folder), len(files), shape, read, lambda number: str(files[number]))


def _decode(path: Path, channels: int) -> np.ndarray:
    """uint8 [channels, H, W]: upright, on white where it is transparent, as training reads it."""
    return np.ascontiguousarray(registry.recolour(read_image(path)[None], channels)[0])


def _size_text(shape: Sequence[int]) -> str:
    """Width x height, of a shape [..., H, W]."""
    return f"{shape[-1]}x{shape[-2]}"


def dataset_images(name: str, data_dir: str, split: str, extractor: Extractor) -> Images:
    """The images of a data set's split with the extractor's channels, their levels spread over 0 .. 255.

    Raises CommandError for a set that is unknown, absent, holds no images, or is not the one that the extractor was
    trained on.
    """
    if name in registry.SPECS and registry.SPECS[name].kind == "points":
        raise CommandError(f"data set '{name}' holds points, not images")
    dataset = registry.load(name, split, root=data_dir)
    extractor.refuse_data(f"{name} in {data_dir}", registry.identity(dataset))
    return images_of(dataset, extractor.channels)


def images_of(dataset: registry.Dataset, channels: int, limit: int | None = None) -> Images:
    """The first images of an open data set with these channels, their levels spread over 0 .. 255."""

    def read(numbers):
        raw = registry.recolour(dataset.raw(numbers).numpy(), channels)
        return raw if dataset.levels == 256 else np.rint(raw * (255 / (dataset.levels - 1))).astype(np.uint8)

    source = f"{dataset.spec.name} ({dataset.split})"
    count = min(len(dataset), limit or len(dataset))
    return Images(source, count, (channels, *dataset.shape[1:]), read, lambda number: f"{source} {number}")


def _batches(images: Images, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (numbers [B], pixels [B, C, H, W]) of this process's batches; the next is read while the caller works."""
    numbers = [np.arange(k, min(k + batch_size, images.count)) for k in range(0, images.count, batch_size)]
    numbers = numbers[distributed.rank() :: distributed.world()]
    with ThreadPoolExecutor(1) as ahead:
        pending = [ahead.submit(images.read, part) for part in numbers[:1]]
        for current, following in zip(numbers, [*numbers[1:], None], strict=True):
            pixels = pending.pop().result()
            if following is not None:
                pending.append(ahead.submit(images.read, following))
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


def measure(images: Images, extractor: Extractor, batch_size: int = 64, nearest: Nearest | None = None) -> Statistics:
    """Stream images through an extractor. The result does not depend on the batch size, but for rounding.

    Processes of torchrun take every so many batches each, and all of them get the whole result.
    nearest     is handed every image's features
    Raises CommandError where the extractor does not take images of this size, or gives features that are not finite.
    """
    extractor.refuse(images.source, *images.shape[-2:])
    kept = np.zeros(images.count, dtype=bool)
    kept[np.random.default_rng(0).permutation(images.count)[:KEPT_FEATURES]] = True
    block_count = BLOCKS if images.count >= 2 * BLOCKS else 1
    blocks = [Moments(extractor.dims) for _ in range(block_count)]
    rows, places = [np.empty((0, extractor.dims), np.float32)], [np.empty(0, np.int64)]
    progress = progress_bar(total=images.count, desc=f"features of {images.source}", unit="image",
                            disable=None if distributed.is_main() else True)
    for numbers, pixels in _batches(images, batch_size):
        features = extractor(pixels)  # [B, dims]
        if not np.isfinite(features).all():
            raise CommandError(f"{images.source}: the {extractor.name} gives features that are not finite")
        for k, block in enumerate(blocks):
            block.update(features[numbers % block_count == k])
        rows.append(features[kept[numbers]])
        places.append(numbers[kept[numbers]])
        if nearest is not None:
            nearest.update(numbers, features)
        progress.update(len(numbers) * distributed.world())
    progress.close()
    for block in blocks:
        block.share()
    if nearest is not None:
        nearest.share()
    parts = distributed.gather_objects((np.concatenate(places), np.concatenate(rows)))
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    features = np.concatenate([rows for _, rows in parts])[order]
    whole = joined(blocks)
    return Statistics(
        images.source, images.count, whole.mean, whole.covariance, features, extractor.identity(),
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
    refuse_sizes(reference.source, reference.size, source, size)


def refuse_sizes(reference: str, wanted: Sequence[int], source: str, size: Sequence[int]) -> None:
    """Raise CommandError where images of `source` have another (height, width) than those of the reference."""
    if tuple(wanted) != tuple(size):
        raise CommandError(
            f"{source} holds images of {_size_text(size)}, {reference} is of {_size_text(wanted)}: "
            "save the reference images at the samples' size (run.py --mode save_original_img)"
        )


def frechet(reference: Statistics, measured: Statistics, limit: bool = False) -> Resampled:
    """FID of `measured` against `reference`, or its limit for infinitely many measured images.

    Error and bias are those from the finite number of measured images, the reference held fixed; None below 20.
    Raises CommandError for images of another extractor or another size, and for the limit of fewer than 20 images.
    """
    refuse_unlike(reference, measured.source, measured.identity, measured.size, len(measured.mean))

    def distance(part: Moments) -> float:
        return frechet_distance(part.mean, part.covariance, reference.mean, reference.covariance)

    if not limit:
        return jackknife(measured.blocks, distance)
    if len(measured.blocks) < 2:
        raise CommandError(f"{measured.source} holds {measured.count} images: --extrapolate needs {2 * BLOCKS}")
    return extrapolated(measured.blocks, distance)


def compare(reference: Statistics, measured: Statistics, extrapolate: bool = False) -> dict:
    """All scores of `measured` against `reference`, with what a reader needs to trust them.

    Each score has its error `_se`: that of the finite number of measured images, the reference held fixed; None where
    there are too few. `fid_bias` is what the finite number adds to the expectation of FID, to first order in 1/N.
    extrapolate     adds `fid_infinity`, FID in the limit of infinitely many measured images
    Where the reference is another program's mu and sigma, its extractor is 'unknown' and there is FID alone.
    Raises CommandError for images of another extractor or another size.
    """
    distance = frechet(reference, measured)
    scores = {"fid": Resampled(max(distance.value, 0.0), distance.se)}  # below zero by rounding alone
    if extrapolate:
        scores["fid_infinity"] = frechet(reference, measured, limit=True)
    scores |= _pair_scores(reference, measured)
    identity = measured.identity
    return {
        **{name: score and score.value for name, score in scores.items()},
        **{f"{name}_se": score and score.se for name, score in scores.items()},
        "fid_bias": distance.bias,
        "error_method": f"jackknife over {BLOCKS} blocks of the images measured, the reference held fixed",
        "kid_method": f"unbiased squared MMD, cubic kernel, of {len(measured.features)} images against "
                      f"{0 if reference.features is None else len(reference.features)}",
        "neighbours": {"precision, recall": MANIFOLD_K, "density, coverage": COVERAGE_K},
        **identity,
        "preprocessing": PREPROCESSING[identity["extractor"], identity["resize"]],
        "count": measured.count,
        "reference_count": reference.count,
        "source": measured.source,
        "reference": reference.source,
        "reference_extractor": (reference.identity or {"extractor": "unknown"})["extractor"],
        "size": list(measured.size),
        "note": _note(reference, measured),
    }


def _pair_scores(reference: Statistics, measured: Statistics) -> dict[str, Resampled | None]:
    """KID and the neighbours' scores of the features that were kept; None where there are none, or too few."""
    scores: dict[str, Resampled | None] = dict.fromkeys(("kid", "precision", "recall", "density", "coverage"))
    if reference.features is None:
        return scores
    scores["kid"] = kernel_distance(reference.features, measured.features)
    if min(len(reference.features), len(measured.features)) >= 2 * (COVERAGE_K + 1):
        scores |= neighbour_scores(reference.features, measured.features)
    return scores


def _note(reference: Statistics, measured: Statistics) -> str:
    notes = []
    if measured.identity["extractor"] != "inception":
        notes.append("not comparable with Inception FID")
    if measured.count <= len(measured.mean):
        notes.append(f"fewer images than the {len(measured.mean)} features: FID is far from its limit")
    if reference.identity is None:
        notes.append("the reference's extractor settings are unknown: its file holds mu and sigma alone, so no KID")
    return "; ".join(notes)
