"""Image files as they are published: where each set lies under --data_dir, how its format is read, how it is fetched.

A reader takes --data_dir and returns a `Source`. Formats are read by the few lines they need, never by running what is
in them: the pickles of CIFAR-10 pass an unpickler that knows arrays and nothing else. torchvision downloads.
"""

from __future__ import annotations

import gzip
import http.client
import os
import pickle
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataset.labels import FFHQ_ATTRIBUTES, celeba_table, ffhq_features, ffhq_table, read_labels, read_lines, to_classes
from utils import CommandError, first_line

# What to fetch from where, and where to put it under --data_dir.
MNIST = "the four IDX files, plain or .gz, of https://ossci-datasets.s3.amazonaws.com/mnist/ into mnist/ or MNIST/raw/"
FMNIST = (
    "the four IDX files, plain or .gz, of https://github.com/zalandoresearch/fashion-mnist (or of Debian's package"
    " dataset-fashion-mnist) into fmnist/ or FashionMNIST/raw/"
)
CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, unpacked into cifar-10-batches-py/"
CELEBA = (
    "img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt of"
    " https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html into celeba/"
)
FFHQ = (
    "the images of https://github.com/NVlabs/ffhq-dataset into ffhq/; labels, if any, from the json/ folder of"
    " https://github.com/DCGM/ffhq-features-dataset into ffhq/json/, or a table of one's own as ffhq/ffhq_labels.csv"
)
CHAIRS = "https://www.di.ens.fr/willow/research/seeing3Dchairs/data/rendered_chairs.tar, unpacked into chairs/"
DSPRITES = "the .npz of https://github.com/google-deepmind/dsprites-dataset into dsprites/"
SHAPES3D_FILE = "https://storage.googleapis.com/3d-shapes/3dshapes.h5 into 3dshapes/"
FOLDER = "--data_dir is itself the folder of images, nested or not, with a labels.csv if there is one"

_DEBIAN_FMNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
_DSPRITES_FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_DSPRITES_URL = f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{_DSPRITES_FILE}"
_3DSHAPES_URL = "https://storage.googleapis.com/3d-shapes/3dshapes.h5"
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Source:
    """A whole set, before a split is taken.

    images  `len(images)`, `images.ready` (already an array?), `images.read(rows, size)` -> uint8 [B, C, size, size]
    labels  int64 [N, K] or None
    splits  official ones, as rows; None: cut at random
    told    what the files tell of a Spec: labels, label_names, factor_sizes
    """

    images: Arrays | Files | H5Rows
    labels: np.ndarray | None
    splits: dict[str, np.ndarray] | None = None
    told: dict = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------------
# Three places where images lie


@dataclass(frozen=True)
class Arrays:
    """Images in memory, uint8 [N, C, H, W] of `levels` values."""

    values: np.ndarray
    levels: int = 256
    ready = True

    def __len__(self) -> int:
        return len(self.values)

    def read(self, rows: np.ndarray, size: int) -> np.ndarray:
        return resize(self.values[rows], size, self.levels)


@dataclass(frozen=True)
class Files:
    """Image files, cut to their central square (of `crop` pixels, where given) and resized."""

    folder: Path
    names: list[str]
    crop: int | None = None
    ready = False

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: np.ndarray, size: int) -> np.ndarray:
        return np.concatenate([resize(self._square(self.folder / self.names[row])[None], size) for row in rows])

    def _square(self, path: Path) -> np.ndarray:
        pixels = read_image(path)  # [3, H, W]
        side = self.crop or min(pixels.shape[1:])
        top, left = ((extent - side) // 2 for extent in pixels.shape[1:])
        if top < 0 or left < 0:
            raise CommandError(f"{path} is {pixels.shape[2]}x{pixels.shape[1]} pixels, less than {side}x{side}")
        return pixels[:, top : top + side, left : left + side]


@dataclass(frozen=True)
class H5Rows:
    """The array `images` of an HDF5 file, uint8 [N, H, W, C]; opened at each read, so that processes share nothing."""

    path: Path
    count: int
    ready = False

    def __len__(self) -> int:
        return self.count

    def read(self, rows: np.ndarray, size: int) -> np.ndarray:
        with _open_h5(self.path) as file:
            images = np.stack([file["images"][row] for row in rows])
        return resize(images.transpose(0, 3, 1, 2), size)


def resize(images: np.ndarray, size: int, levels: int = 256) -> np.ndarray:
    """Square uint8 images [B, C, H, H] -> uint8 [B, C, size, size], antialiased; stretched to 256 levels if changed."""
    if images.shape[-1] == size:
        return np.ascontiguousarray(images)
    import torch

    values = torch.from_numpy(np.ascontiguousarray(images)).float() * (255 / (levels - 1))
    values = torch.nn.functional.interpolate(values, (size, size), mode="bilinear", antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8).numpy()


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB [3, H, W], upright, on white where it is transparent. CommandError if unreadable."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith(("I", "F")):
                raise CommandError(f"{path} has more than 8 bits a channel ({image.mode}): convert it first")
            image = ImageOps.exif_transpose(image).convert("RGBA")
    except FileNotFoundError:
        raise CommandError(f"{path} does not exist") from None
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise CommandError(f"{path} is not a readable image: {first_line(error)}") from None
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB")).transpose(2, 0, 1)


def list_images(folder: Path) -> list[str]:
    """Paths of all images below a folder, relative to it, sorted; what is hidden stays so."""
    names = []
    for place, below, files in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        relative = Path(place).relative_to(folder)
        names += [
            (relative / name).as_posix()
            for name in files
            if Path(name).suffix.lower() in _IMAGES and not name.startswith(".")
        ]
    return sorted(names)


# ---------------------------------------------------------------------------------------------------------------------
# Looking for files, and fetching them


def _find(places: list[Path], names: list[str]) -> dict[str, Path] | None:
    """The first place that holds every one of the names, plain or with .gz after it."""
    for place in places:
        found = {}
        for name in names:
            for path in (place / name, place / f"{name}.gz"):
                if path.is_file():
                    found.setdefault(name, path)
        if len(found) == len(names):
            return found
    return None


def _find_or_fetch(dataset: str, root: Path, places: list[Path], names: list[str], source: str, url: str,
                   fetch: Callable[[Path], object]) -> dict[str, Path]:
    """The files of a set, downloaded if they are nowhere. Raises CommandError that says what to put where."""
    if found := _find(places, names):
        return found
    reason = _fetch(root, url, fetch)
    if not reason and (found := _find(places, names)):
        return found
    raise _missing(dataset, places, names, source, reason)


def _missing(dataset: str, places: list[Path], names: list[str], source: str, reason: str = "") -> CommandError:
    looked = ", ".join(str(place) for place in places)
    why = f"; the download failed: {reason}" if reason else ""
    return CommandError(f"--dataset {dataset}: no {', '.join(names)} in {looked}; what to put there: {source}{why}")


def _fetch(root: Path, url: str, fetch: Callable[[Path], object]) -> str:
    """Download into a folder of its own, then move into `root`; a failure leaves nothing. Returns its reason, or ''."""
    new = not root.exists()
    try:
        with urllib.request.urlopen(url, timeout=10):  # is anybody there? torchvision would try for minutes
            pass
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            fetch(Path(folder))
            for path in [path for path in Path(folder).rglob("*") if path.is_file()]:
                target = root / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    except (OSError, RuntimeError, ValueError, ImportError, http.client.HTTPException, tarfile.TarError) as error:
        if new:
            shutil.rmtree(root, ignore_errors=True)
        return first_line(error)
    return ""


def _by_torchvision(name: str) -> Callable[[Path], object]:
    def fetch(folder: Path):
        import torchvision

        return getattr(torchvision.datasets, name)(folder, download=True)

    return fetch


def _by_url(url: str, below: str) -> Callable[[Path], object]:
    def fetch(folder: Path):
        from torchvision.datasets.utils import download_url

        download_url(url, folder / below)

    return fetch


# ---------------------------------------------------------------------------------------------------------------------
# mnist, fmnist: IDX files


def read_idx(path: Path, axes: int) -> np.ndarray:
    """An IDX file of bytes, plain or gzipped: uint8 with so many axes. Raises CommandError if it is anything else."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise CommandError(f"{path} cannot be read (truncated?): {error}") from None
    if content[:4] != bytes([0, 0, 8, axes]):
        raise CommandError(f"{path} is not an IDX file of bytes with {axes} axes")
    shape = np.frombuffer(content, ">u4", axes, offset=4) if len(content) >= 4 + 4 * axes else [-1]
    if len(content) != 4 + 4 * axes + np.prod(shape, dtype=np.int64):
        raise CommandError(f"{path} is truncated: {len(content)} bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _idx_reader(dataset: str, places: Callable[[Path], list[Path]], source: str, torchvision_name: str, url: str):
    def read(root: Path) -> Source:
        parts = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        found = _find_or_fetch(dataset, root, places(root), parts, source, url, _by_torchvision(torchvision_name))
        images, labels = ([read_idx(found[part], axes) for part in parts[k::2]] for k, axes in ((0, 3), (1, 1)))
        for part, pictures, targets in zip(parts[::2], images, labels, strict=True):
            if len(pictures) != len(targets) or pictures.shape[1] != pictures.shape[2] or targets.max() > 9:
                raise CommandError(f"{found[part]}: {len(pictures)} square images need as many labels of 0 to 9")
        return Source(
            Arrays(np.concatenate(images)[:, None]),
            np.concatenate(labels).astype(np.int64)[:, None],
            _official(len(images[0]), len(images[1])),
        )

    return read


def _official(train: int, test: int) -> dict[str, np.ndarray]:
    """Rows of a set published as a training and a test part: the last tenth of the training part validates."""
    first = train - max(1, train // 10)
    return {"train": np.arange(first), "val": np.arange(first, train), "test": np.arange(train, train + test)}


# ---------------------------------------------------------------------------------------------------------------------
# cifar10: pickled batches


class _ArrayUnpickler(pickle.Unpickler):
    """Knows how to rebuild arrays, and nothing that could run."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return self._ALLOWED[module, name]


def _read_cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 3, 32, 32] and int64 [N]."""
    try:
        with open(path, "rb") as file:
            record = _ArrayUnpickler(file, encoding="bytes").load()
        images, labels = record[b"data"], np.asarray(record[b"labels"], dtype=np.int64)
    except (OSError, EOFError, pickle.UnpicklingError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} is not a batch of CIFAR-10: {type(error).__name__}: {error}") from None
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
        raise CommandError(f"{path}: data must be uint8 [{len(labels)}, 3072], it is {images.dtype} {images.shape}")
    return images.reshape(-1, 3, 32, 32), labels


def _cifar10(root: Path) -> Source:
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    places = [root / "cifar-10-batches-py", root / "cifar10"]
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    found = _find_or_fetch("cifar10", root, places, names, CIFAR10, url, _by_torchvision("CIFAR10"))
    images, labels = zip(*(_read_cifar_batch(found[name]) for name in names), strict=True)
    splits = _official(sum(map(len, images[:5])), len(images[5]))
    return Source(Arrays(np.concatenate(images)), np.concatenate(labels)[:, None], splits)


# ---------------------------------------------------------------------------------------------------------------------
# celeba


def _celeba(root: Path) -> Source:
    """Aligned faces, 178x218: the central 148 pixels; 40 attributes; the official partition."""
    folder, names = root / "celeba", ["list_attr_celeba.txt", "list_eval_partition.txt"]
    url = "https://drive.google.com"
    found = _find_or_fetch("celeba", root, [folder], names, CELEBA, url, _by_torchvision("CelebA"))
    attributes = tuple(read_lines(found[names[0]])[1].split())
    table = celeba_table(found[names[0]], 2, len(attributes), {-1, 1})
    parts = celeba_table(found[names[1]], 0, 1, {0, 1, 2})
    if table.keys() != parts.keys():
        raise CommandError(f"{folder}: {names[0]} and {names[1]} do not list the same files")
    pictures = folder / "img_align_celeba"
    absent = table.keys() - set(os.listdir(pictures) if pictures.is_dir() else ())
    if absent:
        raise CommandError(f"{pictures / min(absent)} does not exist, though {names[0]} lists it: {CELEBA}")
    files = sorted(table)
    labels = (np.array([table[name] for name in files]) > 0).astype(np.int64)
    part = np.array([parts[name][0] for name in files])
    splits = {split: np.flatnonzero(part == k) for k, split in enumerate(_SPLITS)}
    told = {"label_names": attributes, "factor_sizes": (2,) * len(attributes)}
    return Source(Files(pictures, files, crop=148), labels, splits, told)


# ---------------------------------------------------------------------------------------------------------------------
# dsprites, 3dshapes: arrays with factors


def _dsprites(root: Path) -> Source:
    places = [root / "dsprites", root]
    fetch = _by_url(_DSPRITES_URL, "dsprites")
    path = _find_or_fetch("dsprites", root, places, [_DSPRITES_FILE], DSPRITES, _DSPRITES_URL, fetch)[_DSPRITES_FILE]
    try:
        with np.load(path, allow_pickle=False) as archive:  # its `metadata` is a pickle, and stays closed
            images, labels = archive["imgs"], archive["latents_classes"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CommandError(f"{path} is not the .npz of dSprites: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2] or images.max() > 1:
        raise CommandError(f"{path}: imgs must be uint8 [N, H, H] of 0 and 1, it is {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images), 6):
        raise CommandError(f"{path}: latents_classes must be integers [{len(images)}, 6], it is {labels.shape}")
    images *= 255
    return Source(Arrays(images[:, None]), labels.astype(np.int64))


def _open_h5(path: Path):
    try:
        import h5py
    except ImportError:
        raise CommandError(f"{path} is read with h5py: pip install h5py") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise CommandError(f"{path} is not a readable .h5 file: {error}") from None


def _3dshapes(root: Path) -> Source:
    fetch = _by_url(_3DSHAPES_URL, "3dshapes")
    names, places = ["3dshapes.h5"], [root / "3dshapes", root]
    path = _find_or_fetch("3dshapes", root, places, names, SHAPES3D_FILE, _3DSHAPES_URL, fetch)["3dshapes.h5"]
    with _open_h5(path) as file:
        for name in ("images", "labels"):
            if name not in file:
                raise CommandError(f"{path} has no array '{name}'")
        images, values = file["images"], file["labels"][()]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
            raise CommandError(f"{path}: images must be uint8 [N, H, H, 3], it is {images.dtype} {images.shape}")
        if values.shape != (len(images), 6) or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
            raise CommandError(f"{path}: labels must be finite numbers [{len(images)}, 6], it is {values.shape}")
        count = len(images)
    factors = [np.unique(column, return_inverse=True)[1] for column in values.T]  # values, in order -> 0, 1, 2 ...
    return Source(H5Rows(path, count), np.stack(factors, axis=1).astype(np.int64))


# ---------------------------------------------------------------------------------------------------------------------
# folder, chairs, ffhq: folders of images


def _image_folder(dataset: str, folder: Path, source: str) -> list[str]:
    names = list_images(folder)
    if not names:
        raise CommandError(f"--dataset {dataset}: no images in {folder}; what to put there: {source}")
    return names


def _chairs(root: Path) -> Source:
    return Source(Files(root / "chairs", _image_folder("chairs", root / "chairs", CHAIRS)), None)


def _folder(root: Path) -> Source:
    """Any images; folders named train, val and test, where all three are there, are the splits."""
    names = _image_folder("folder", root, FOLDER)
    top = np.array([name.split("/")[0] if "/" in name else "" for name in names])
    splits = {split: np.flatnonzero(top == split) for split in _SPLITS}
    if not all(map(len, splits.values())):
        splits = None
    table = root / "labels.csv"
    labels, told = to_classes(table, *read_labels(table, names)) if table.is_file() else (None, {})
    return Source(Files(root, names), labels, splits, told)


def _ffhq(root: Path) -> Source:
    """Faces; age, gender and glasses as three binary attributes. Faces without features leave the set."""
    folder = root / "ffhq"
    names = _image_folder("ffhq", folder, FFHQ)
    told = {"label_names": FFHQ_ATTRIBUTES, "factor_sizes": (2, 2, 2)}
    if (folder / "ffhq_labels.csv").is_file():
        labels = ffhq_table(folder / "ffhq_labels.csv", names)
    elif (folder / "json").is_dir():
        features = {name: ffhq_features(folder / "json" / f"{Path(name).stem}.json") for name in names}
        names = [name for name in names if features[name]]
        labels = np.array([features[name] for name in names], dtype=np.int64).reshape(-1, 3)
    else:
        return Source(Files(folder, names), None, told={"labels": "none"})
    return Source(Files(folder, names), labels, told=told)


READERS: dict[str, Callable[[Path], Source]] = {
    "mnist": _idx_reader(
        "mnist", lambda root: [root / "MNIST" / "raw", root / "mnist"], MNIST,
        "MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/train-labels-idx1-ubyte.gz",
    ),
    "fmnist": _idx_reader(
        "fmnist", lambda root: [root / "FashionMNIST" / "raw", root / "fmnist", _DEBIAN_FMNIST], FMNIST,
        "FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz",
    ),
    "cifar10": _cifar10,
    "celeba": _celeba,
    "ffhq": _ffhq,
    "chairs": _chairs,
    "dsprites": _dsprites,
    "3dshapes": _3dshapes,
    "folder": _folder,
}
