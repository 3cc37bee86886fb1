"""Image files: the one reader of a picture, folders of pictures, looking for a set's files and fetching them.

Formats are read by the few lines they need, never by running what is in them. torchvision downloads.
"""

from __future__ import annotations

import http.client
import os
import shutil
import stat
import tarfile
import tempfile
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.base import Spec, resize, text_identity
from utils import UNREADABLE, CommandError, first_line

# Endings of pictures, and the formats that Pillow may open them as: no PostScript, which would start Ghostscript.
ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 2**26  # of a picture: 8,192 x 8,192, some 300 MB while it is read


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
        squares = (read_square(self.folder / self.names[row], self.crop) for row in rows)
        return np.concatenate([resize(square[None], size) for square in squares])

    def identity(self) -> str:
        return text_identity(len(self.names), *(f"{name}\0{_bytes(self.folder / name)}\0" for name in self.names))


def _bytes(path: Path) -> int:
    """The size of a file; -1 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def read_square(path: Path, crop: int | None = None) -> np.ndarray:
    """The central square of a picture, `crop` pixels a side or as large as can be: uint8 [3, side, side]."""
    return central_square(read_image(path), crop, str(path))  # of [3, H, W]


def central_square(pixels: np.ndarray, crop: int | None = None, name: str = "the picture") -> np.ndarray:
    """[..., H, W] -> [..., side, side], `crop` pixels a side or as large as can be. CommandError for a smaller one."""
    height, width = pixels.shape[-2:]
    side = crop or min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if top < 0 or left < 0:
        raise CommandError(f"{name} is {width}x{height} pixels, less than {side}x{side}")
    return pixels[..., top : top + side, left : left + side]


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB [3, H, W], upright, on white where it is transparent; of several frames the first.

    Raises CommandError for what is no file or not one of FORMATS, is broken, deeper than 8 bits a channel, or larger
    than MAX_PIXELS.
    """
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise CommandError(f"{path} is not a file")
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of large pictures, which the bound below refuses
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise CommandError(f"{path} is {width}x{height} pixels, more than {MAX_PIXELS:,}: shrink it first")
            deep = _is_deep(image)
            image.load()
            if deep:
                raise CommandError(f"{path} has more than 8 bits a channel ({image.mode}): convert it first")
            return np.array(upright_rgb(image)).transpose(2, 0, 1)  # a copy, that torch may take
    except FileNotFoundError:
        raise CommandError(f"{path} does not exist") from None
    except Image.DecompressionBombError:
        raise CommandError(f"{path} has more than {MAX_PIXELS:,} pixels: shrink it first") from None
    except (*UNREADABLE, SyntaxError, ArithmeticError) as error:
        raise CommandError(f"{path} is not a readable image: {first_line(error)}") from None


def _is_deep(image) -> bool:
    """Whether a Pillow image, not yet loaded, has more than 8 bits a channel: of colours it would keep 8 silently.

    BGR;16 are the 16 bits of a whole pixel.
    """
    codings = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in image.tile]
    return image.mode.startswith(("I", "F")) or any(
        ";16" in coding and coding != "BGR;16" if isinstance(coding, str) else image.format == "PPM" and coding > 255
        for args in codings for coding in args)


def upright_rgb(image):
    """A Pillow image as RGB, turned as its EXIF says, composited on white where it has transparency."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def list_images(folder: Path) -> list[str]:
    """Paths of all images below a folder, relative to it, sorted; linked folders count, what is hidden stays so."""
    names, seen = [], {os.path.realpath(folder)}
    for place, below, files in os.walk(folder, followlinks=True):
        folders = sorted((os.path.join(place, name) for name in below if not name.startswith(".")),
                         key=lambda path: (os.path.islink(path), path))  # a folder before what links to it
        below[:] = [os.path.basename(path) for path in folders if _is_new(path, seen)]
        relative = Path(place).relative_to(folder)
        names += [
            (relative / name).as_posix()
            for name in files
            if Path(name).suffix.lower() in ENDINGS and not name.startswith(".")
        ]
    return sorted(names)


def _is_new(folder: str, seen: set[str]) -> bool:
    """False for a linked folder that would be read twice, or lead around in a circle."""
    real = os.path.realpath(folder)
    if real in seen:
        return False
    seen.add(real)
    return True


def image_folder(spec: Spec, folder: Path) -> list[str]:
    """The images below a set's folder. Raises CommandError where there are none, with what to put there."""
    names = list_images(folder)
    if not names:
        raise CommandError(f"--dataset {spec.name}: no images in {folder}; what to put there: {spec.source}")
    return names


# ---------------------------------------------------------------------------------------------------------------------
# Looking for files, and fetching them


def find(places: list[Path], names: list[str]) -> dict[str, Path] | None:
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


def find_or_fetch(spec: Spec, root: Path, places: list[Path], names: list[str], url: str,
                  fetch: Callable[[Path], object]) -> dict[str, Path]:
    """The files of a set, downloaded if they are nowhere. Raises CommandError that says what to put where."""
    if found := find(places, names):
        return found
    reason = _fetch(root, url, fetch)
    if not reason and (found := find(places, names)):
        return found
    looked = ", ".join(str(place) for place in places)
    why = f"; the download failed: {reason}" if reason else ""
    wanted = f"no {', '.join(names)} in {looked}; what to put there: {spec.source}"
    raise CommandError(f"--dataset {spec.name}: {wanted}{why}")


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


def by_torchvision(name: str) -> Callable[[Path], object]:
    def fetch(folder: Path):
        import torchvision

        return getattr(torchvision.datasets, name)(folder, download=True)

    return fetch


def by_url(url: str, below: str) -> Callable[[Path], object]:
    def fetch(folder: Path):
        from torchvision.datasets.utils import download_url

        download_url(url, folder / below)

    return fetch
