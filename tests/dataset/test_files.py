"""The one reader of a picture: what it reads it reads alike, and what it refuses it refuses in one line, at once."""

import os

import numpy as np
import pytest
from made import numbered, save
from PIL import Image

from dataset import files, registry
from dataset.files import Files, list_images, read_image, read_square
from utils import CommandError

QUADRANTS = np.full((32, 32, 3), 240, np.uint8)
QUADRANTS[:, :16] = 200, 30, 30
QUADRANTS[:16, :16] = 30, 30, 200


def turned(path, image, **options) -> None:
    """An image that stands upright only when its EXIF tag is followed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(path, exif=exif, **options)


def transparent(path, image) -> None:
    pixels = np.array(image.convert("RGBA"))
    pixels[:, 16:] = 0  # black where it cannot be seen; the corner of QUADRANTS is nearly white
    Image.fromarray(pixels).save(path)


WRITERS = {
    "plain.png": lambda path, image: image.save(path),
    "exif.png": turned,
    "exif.jpg": lambda path, image: turned(path, image, quality=95),
    "palette.png": lambda path, image: image.convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(path),
    "clear.png": transparent,
    "lossless.webp": lambda path, image: image.save(path, lossless=True),
    "c.tiff": lambda path, image: image.save(path),
    "D.BMP": lambda path, image: image.save(path, "BMP"),
    "p.ppm": lambda path, image: image.save(path),
    "cmyk.jpg": lambda path, image: image.convert("CMYK").save(path, quality=95),
    "frames.gif": lambda path, image: image.save(path, save_all=True, append_images=[Image.new("RGB", (32, 32))]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_one_picture_however_it_is_stored(tmp_path, name):
    WRITERS[name](tmp_path / name, Image.fromarray(QUADRANTS))
    assert list_images(tmp_path) == [name]
    pixels = read_image(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 32, 32)
    found = pixels.transpose(1, 2, 0)[[4, 4, 28], [4, 28, 4]].astype(int)  # three corners
    assert np.abs(found - QUADRANTS[[4, 4, 28], [4, 28, 4]]).max() <= 15


def header(width: int, height: int) -> bytes:
    """A PNG of so many pixels a side, which are not there."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(went-off) (w) file closefile showpage\n"


@pytest.mark.parametrize("content, culprit", [
    (b"", "cannot identify"), (b"words", "cannot identify"), (POSTSCRIPT, "cannot identify"),
    (header(10_000, 10_000), "10000x10000"), (header(14_000, 14_000), "pixels"), (header(8, 8), "not a readable"),
    (b"\x89PNG\r\n\x1a\n", "not a readable"), (b"II*\0\xff\xff\xff\xff", "cannot identify"),
])
def test_what_is_no_picture_or_too_large_is_refused_unopened(in_tmp, content, culprit, recwarn):
    (in_tmp / "a.png").write_bytes(content)
    with pytest.raises(CommandError, match=r"^[^\n]*a\.png[^\n]*$") as caught:
        read_image(in_tmp / "a.png")
    assert culprit in str(caught.value)
    assert not (in_tmp / "went-off").exists() and not list(recwarn)


def test_only_the_named_formats_are_opened(monkeypatch, tmp_path):
    asked = []
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda path, formats=None: asked.append(formats) or plain(path, formats=formats))
    save(tmp_path / "a.png", QUADRANTS)
    read_image(tmp_path / "a.png")
    assert asked == [files.FORMATS] and "EPS" not in files.FORMATS


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere.png", path)])
def test_pipes_folders_and_links_to_nowhere_are_named_and_not_waited_for(tmp_path, make):
    make(tmp_path / "a.png")
    with pytest.raises(CommandError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_linked_folders_count_and_circles_end(tmp_path):
    numbered(tmp_path / "elsewhere", ["1.png", "below/2.png"])
    numbered(tmp_path / "set", ["0.png"])
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "set", tmp_path / "set" / "circle")
    os.symlink("nowhere", tmp_path / "set" / "dangling")
    assert list_images(tmp_path / "set") == ["0.png", "linked/1.png", "linked/below/2.png"]
    parts = [registry.load("folder", split, root=tmp_path / "set", size=8) for split in registry.SPLITS]
    assert sum(map(len, parts)) == 3


def test_a_square_is_the_middle_or_the_crop(tmp_path):
    pixels = np.zeros((12, 20, 3), np.uint8)
    pixels[4:8, 8:12] = 255
    save(tmp_path / "a.png", pixels)
    assert (read_square(tmp_path / "a.png", 4) == 255).all() and read_square(tmp_path / "a.png").shape == (3, 12, 12)
    assert (Files(tmp_path, ["a.png"], 4).read(np.array([0]), 4) == 255).all()
    with pytest.raises(CommandError, match="20x12 pixels, less than 16x16"):
        read_square(tmp_path / "a.png", 16)
