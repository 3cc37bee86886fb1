"""What an experiment is made of: the device, a named split of its data, its moments, a model with fresh weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import distributed
from config import Config
from dataset import registry
from dataset.given import recipe_of, spec_of
from diffusion import Gaussian
from experiment.compiling import compile_networks
from models import build_model
from pretrained import denoiser
from rng import Rng
from utils import CommandError, first_line, progress_bar

GAUSSIAN_ROWS = 20_000  # rendered or streamed images that the data's first two moments are taken from


def pick_device(name: str | None) -> torch.device:
    """--device, or this process's GPU where there is one, else the CPU. Raises CommandError for what is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"--device {name} cannot be used: {first_line(error)}") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", distributed.local_rank())
        torch.cuda.set_device(device)
    return device


def shape_of(config: Config) -> tuple[int, ...]:
    """(C, H, W) of an experiment's images, or (n,) of its points."""
    spec = registry.SPECS[config.dataset]
    if spec.kind == "points":
        return (config.a_dim if spec.gives_z else spec.size,)
    size = config.input_size or spec.size
    return config.input_channels or spec.channels, size, size


def load_data(config: Config, split: str) -> registry.Dataset:
    """A named split of the experiment's data set, at the experiment's size."""
    spec = registry.SPECS[config.dataset]
    dim = config.a_dim if spec.gives_z and spec.kind == "points" else None
    return registry.load(config.dataset, split, root=config.data_dir, size=config.input_size,
                         channels=config.input_channels, dim=dim, z=recipe_of(config))


def batches_of(dataset: registry.Dataset, batch_size: int, device, rows: range | None = None, workers: int = 0):
    """Yield (indices [B], float batch [B, *shape] on the device) over `rows` in order, unaugmented."""
    rows = list(rows if rows is not None else range(len(dataset)))
    lists = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for indices, raw in registry.stream(dataset, lists, device, workers):
        yield indices, registry.to_float(raw, dataset.levels)


def fit_gaussian(dataset: registry.Dataset, workers: int) -> Gaussian:
    """Moments of the training split (its first rows, which are in random order), on the CPU."""
    step = None if dataset.levels is None else 2 / (dataset.levels - 1)
    rows = range(min(len(dataset), GAUSSIAN_ROWS)) if dataset.images is None else range(len(dataset))
    batches = progress_bar(batches_of(dataset, 1000, "cpu", rows, workers), "mean and covariance of the data",
                           -(-len(rows) // 1000), delay=2, disable=not distributed.is_main())
    return Gaussian.fit((x for _, x in batches), step)


def draw_given(dataset: registry.Dataset, rng: Rng) -> Tensor | None:
    """z of rows drawn at random, one for each numbered sample: [B, n]; None where the data bring none."""
    if dataset.given is None:
        return None
    rows = (rng.at(0).uniform("row") * len(dataset)).long().cpu().numpy()  # of (0, 1): never beyond the last row
    return torch.from_numpy(dataset.given[rows]).to(rng.index.device)


def build_fresh(config: Config, shape: tuple[int, ...], gaussian: Gaussian, device: torch.device,
                by_hand: frozenset[str] = frozenset()) -> nn.Module:
    """A model with weights drawn from the seed, or pretrained ones, on the device. `by_hand`: the typed flags.

    What the files of a pretrained one do not say, and was assumed, is printed. The caller's global generator is left
    as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.r_seed)
        spec = spec_of(registry.SPECS[config.dataset], config)
        model = build_model(config, spec, shape, gaussian.to(device), by_hand=by_hand)
    for line in assumptions_of(model):
        distributed.say(f"assumed: {line}")
    model = model.to(device)
    compile_networks(model, config, device)
    return model


def assumptions_of(model: nn.Module) -> list[str]:
    """What was assumed of a pretrained network, a line each; nothing of one of our own."""
    return getattr(getattr(model, "network", None), "assumptions", [])


def describe_network(model: nn.Module) -> dict | None:
    network = getattr(model, "network", None)
    return denoiser.describe(network) if isinstance(network, denoiser.PretrainedDenoiser) else None
