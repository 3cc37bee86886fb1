"""The modes about images and their two latents, z and x_T: reconstruction, change of one latent, interpolation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import config as config_module
import plots
from config import Command
from dataset import registry
from experiment import Autoencoder, Trained, batches_of, open_trained
from metrics.reconstruction import image_errors, over_draws, summary
from modes.latents import label_arrays, origin, refuse_given
from rng import Rng
from utils import CommandError, check_writable, locked, progress_bar, versions, write_json, write_npz

QUALITY_IMAGES = 1_000
RANDOM_IMAGES = 64  # of them, decoded from random x_T too
VALUES = 11  # of each latent dimension
SHOWN_DIMENSIONS = 64  # at most, in one sheet
SHOWN_IMAGES = 8
PATH_POINTS = 10


def shown(measure: str, errors: dict) -> str:
    """A mean with its standard error, where it has one, and its unit."""
    error = errors[f"{measure}_se"]
    spread = "" if error is None else f" +- {error:.2g}"
    return f"{measure.upper()} {errors[measure]:.4g}{spread}{' dB' if measure == 'psnr' else ''}"


def quality(coder: Autoencoder, back: Tensor, x: Tensor) -> str:
    """How well `back` reconstructs x [B, *shape] from its own latents, in words."""
    errors = summary([image_errors(back, x)])
    way = f"{coder.sampler}, {len(coder.grid) - 1} steps" if coder.has_noise else "the decoder"
    return f"reconstruction by {way}: MSE {errors['mse']:.3g}, PSNR {errors['psnr']:.1f} dB"


def latent_quality(command: Command) -> None:
    """Mode `latent_quality`: z and x_T of held-out images, and how well the images are reconstructed from them.

    Reconstructions from the inferred x_T are measured on all images, those from --sampling_number random x_T each on
    the first RANDOM_IMAGES.
    """
    trained = open_trained(command)
    config, coder = trained.config, trained.autoencoder()
    refuse_given(trained)
    for root in ("imgs", "models"):
        check_writable(config_module.folder(config, root))
    result, folder = trained.results("latent_quality.json"), config_module.folder(config, "imgs") / "latent_quality"
    dataset = trained.load_data(config.split or "test")
    count = min(len(dataset), config.num_images or QUALITY_IMAGES)
    with locked(folder):  # the numbers, the codes and the pictures are of one call
        latents, inferred, (x, z, x_T, back) = reconstruct_split(trained, coder, dataset, count)
        draws = random_reconstructions(coder, z, x, config.sampling_number, config.r_seed)
        random = [over_draws([image_errors(draw, x) for draw in draws])]
        record = {
            "images": count, "split": dataset.split, "steps": len(coder.grid) - 1, "inversion": coder.sampler,
            "inferred": summary(inferred),
            "random": summary(random) | {"images": len(x), "draws": len(draws)}, "versions": versions(),
            **trained.provenance(),
        }
        write_json(result, record)
        labels = np.zeros((count, 0), np.int64) if dataset.labels is None else dataset.labels[:count]
        path = config_module.folder(config, "models") / "latent_quality.npz"
        write_npz(path, **latents, labels=labels, attr_names=label_arrays(dataset, count)["attr_names"],
                  split=np.array(dataset.split), **origin(trained))
        draw_quality(x, x_T, back, draws, dataset.split, folder, config.format)
    print(f"{count} images by {coder.sampler}, {len(coder.grid) - 1} steps, and its inversion")
    for name in ("inferred", "random"):
        print(f"{name:8} x_T: " + ", ".join(shown(measure, record[name]) for measure in ("mse", "psnr", "ssim")))
    print(f"{path}; pictures in {folder}")


def reconstruct_split(trained: Trained, coder: Autoencoder, dataset: registry.Dataset, count: int):
    """({z, x_T} of the first images of a split, their errors, batch by batch, and the first RANDOM_IMAGES themselves:
    x, z or None, x_T and the images that these give back)."""
    config, codes, noises, errors, kept = trained.config, [], [], [], []
    with progress_bar(total=count, desc="inverting", unit="img") as bar:
        for _, x in batches_of(dataset, config.batch_size, trained.device, range(count), config.num_workers):
            z, x_T = coder.encode(x)
            back = coder.decode(z, x_T)
            codes.append(torch.zeros(len(x), 0) if z is None else z.cpu())
            noises.append(x_T.cpu())
            errors.append(image_errors(back, x))
            if len(kept) * config.batch_size < RANDOM_IMAGES:
                kept.append((x, z, x_T, back))
            bar.update(len(x))
    first = [None if part[0] is None else torch.cat(part)[:RANDOM_IMAGES] for part in zip(*kept, strict=True)]
    return {"z": torch.cat(codes).numpy(), "x_T": torch.cat(noises).numpy()}, errors, first


def draw_quality(x: Tensor, x_T: Tensor, back: Tensor, draws: list[Tensor], split: str, folder: Path,
                 form: str) -> None:
    """Two sheets, a column an image: the reconstructions, and the inferred x_T."""
    shown = range(min(SHOWN_IMAGES, len(x)))
    rows = {"image": x, "inferred x_T": back} | {f"random x_T, {i + 1}": draw for i, draw in enumerate(draws[:8])}
    noise = {"image": x, "inferred x_T": x_T / 3}  # three deviations fill the range of grey
    for name, title, found in (("reconstructions", f"Reconstructions of {split} images", rows),
                               ("inferred_x_T", f"x_T of {split} images", noise)):
        pixels = np.concatenate([plots.to_uint8(row[: len(shown)]) for row in found.values()])
        plots.labelled_sheet(pixels, [f"#{k}" for k in shown], list(found), title, folder / f"{name}.{form}")


def random_reconstructions(coder: Autoencoder, z: Tensor | None, x: Tensor, draws: int, seed: int) -> list[Tensor]:
    """Decodings of the same z from random x_T: `draws` of [B, *shape]."""
    rng = Rng(seed, torch.arange(len(x), device=x.device))
    steps = progress_bar(range(draws), desc="random x_T", unit="draw")
    return [coder.decode(z, rng.at(draw).normal("random x_T", *x.shape[1:])) for draw in steps]


def disentangle(command: Command) -> None:
    """Mode `disentangle`: one image, each latent dimension in turn set to eleven values from -range to range.

    From the inferred x_T, which pins the picture, and from --random_x_T random ones, which leave it to z.
    """
    trained = open_trained(command)
    config, coder = trained.config, trained.autoencoder()
    check_writable(config_module.folder(config, "imgs"))
    refuse_given(trained)
    x, name = chosen_image(trained, config.img_id[0])
    z, x_T = coder.encode(x)
    values = np.linspace(-config.range, config.range, VALUES)
    codes = traversed(z, np.arange(config.a_dim), np.broadcast_to(values, (config.a_dim, VALUES)))
    noises = {"decoded": None}
    if x_T is not None:
        rng = Rng(config.r_seed, torch.arange(1, device=x.device))
        noises = {"inferred x_T": x_T} | {f"random x_T, {i + 1}": rng.at(i).normal("random x_T", *x.shape[1:])
                                          for i in range(config.random_x_T)}
    pixels = np.stack([plots.to_uint8(decode_all(coder, codes, noise, config.batch_size)) for noise in noises.values()])
    pixels = pixels.reshape(len(noises), config.a_dim, VALUES, *pixels.shape[2:])
    folder = config_module.folder(config, "imgs") / f"disentangle-{name}"
    draw_traversals(pixels, list(noises), values, folder, config.format)
    print(quality(coder, coder.decode(z, x_T), x))
    rows = "have one row" if x_T is None else "have a row an x_T"
    print(f"{config.a_dim} dimensions in {folder}: sample0.{config.format} ... {rows}, all.{config.format} "
          f"{'and all-random-1 ... have' if len(noises) > 1 else 'has'} a row a dimension")


def traversed(z: Tensor, dimensions: np.ndarray, values: np.ndarray) -> Tensor:
    """z [1, a_dim] with each of the dimensions [D] in turn set to its values [D, V]. -> [D * V, a_dim]"""
    many = z.repeat(values.size, 1)
    rows = torch.arange(len(many), device=z.device)
    many[rows, torch.from_numpy(dimensions.repeat(values.shape[1])).to(z.device)] = torch.from_numpy(
        values.ravel()).to(many)
    return many


def draw_traversals(pixels: np.ndarray, kinds: list[str], values: np.ndarray, folder: Path, form: str) -> None:
    """Sheets of pixels [kinds, D, V, H, W, C]: one a dimension, a row a kind; one a kind, a row a dimension.

    Of many dimensions the latter show those that move the picture most.
    """
    heads = [f"{value:+.2g}" if abs(value) > 1e-9 else "0" for value in values]
    for d in range(pixels.shape[1]):
        own = pixels[:, d].reshape(-1, *pixels.shape[3:])
        plots.labelled_sheet(own, heads, kinds, f"z{d} of one image", folder / f"sample{d}.{form}")
    for old in folder.glob(f"all-random-*.{form}"):  # of a call with more of them
        old.unlink()
    moved = ((pixels[:, :, -1].astype(float) - pixels[:, :, 0]) ** 2).mean(axis=(0, 2, 3, 4))
    shown = np.sort(np.argsort(-moved, kind="stable")[:SHOWN_DIMENSIONS])
    for i, kind in enumerate(kinds):
        own = pixels[i, shown].reshape(-1, *pixels.shape[3:])
        title = "One latent dimension a row" + ("" if kind == "decoded" else f", from {kind}")
        plots.labelled_sheet(own, heads, [f"z{d}" for d in shown], title,
                             folder / f"all{f'-random-{i}' if i else ''}.{form}")


def decode_all(coder: Autoencoder, z: Tensor, x_T: Tensor | None, batch_size: int) -> Tensor:
    """Decode many z from one x_T [1, *shape]. -> [N, *shape]"""
    parts = []
    with progress_bar(total=len(z), desc="decoding", unit="img") as bar:
        for part in z.split(batch_size):
            parts.append(coder.decode(part, None if x_T is None else x_T.expand(len(part), *x_T.shape[1:])))
            bar.update(len(part))
    return torch.cat(parts)


def chosen_image(trained: Trained, which: str) -> tuple[Tensor, str]:
    """An image [1,C,H,W] on the device, by its number in the split or by its file, and a name for folders."""
    config = trained.config
    if which.isdecimal():
        dataset = trained.load_data(config.split or "test")
        if int(which) >= len(dataset):
            raise CommandError(f"--img_id {which}: the {dataset.split} split has images 0 .. {len(dataset) - 1}")
        return dataset.batch([int(which)], trained.device), which
    if not Path(which).is_file():
        raise CommandError(f"--img_id {which}: neither a number nor an image file that is there")
    named = Path(which).with_suffix("").parts[-2:]  # with the folder: two may hold files of one name
    return trained.batch([Path(which)]), "-".join(part for part in named if part not in ("/", ".", ".."))


def interpolate(command: Command) -> None:
    """Mode `interpolate`: ten points from one image to another; z on the line, x_T on the great circle between them.

    The ends are the two images' own reconstructions.
    """
    trained = open_trained(command)
    config, coder = trained.config, trained.autoencoder()
    check_writable(config_module.folder(config, "imgs"))
    first = config.img_id[0]
    second = config.img_id[1] if len(config.img_id) > 1 else str(int(first) + 1) if first.isdecimal() else None
    if second is None or len(config.img_id) > 2:
        raise CommandError("--img_id: interpolation is between two numbers or two image files")
    if trained.config.model == "diff":
        refuse_given(trained)
    (a, name_a), (b, name_b) = (chosen_image(trained, which) for which in (first, second))
    path = coder.between(a, b, PATH_POINTS)
    name = first if len(config.img_id) == 1 else f"{name_a}-{name_b}"
    folder = config_module.folder(config, "imgs") / f"interpolate-{name}"
    for i, image in enumerate(plots.to_uint8(path)):
        plots.write_png(folder / f"point-{i:02d}.png", image)
    heads = ["image", *(f"{share:.2f}" for share in np.linspace(0, 1, PATH_POINTS)), "image"]
    plots.labelled_sheet(plots.to_uint8(torch.cat([a, path, b])), heads, [f"{name_a} to {name_b}"],
                         "Interpolation of z and x_T" if coder.has_z and coder.has_noise else "Interpolation",
                         folder / f"all.{config.format}")
    for back, image in ((path[:1], a), (path[-1:], b)):
        print(quality(coder, back, image))
    print(f"{PATH_POINTS} points in {folder} (all.{config.format}: image, its reconstruction, ..., the other's, "
          f"image)")
