"""Seconds of training, sampling and reading, beside the networks that pip can install:  python -m scripts.benchmark

Prints Markdown tables and writes the same numbers to ./results/benchmark.json (--output). Every figure is the median of
several repeats after a warm-up; contenders take turns, so that their ratio holds on a machine that others use too.

    train      one step: forward, loss, backward, gradients clipped, fused AdamW, the average of the weights
    evaluate   one call of the averaged network, as a sampler makes it
    ours       through training.Stepper and model.denoise: what a run pays, numbered noise and MMD included
    rivals     diffusers' UNet2DModel and denoising_diffusion_pytorch's Unet, the latter widened until parameters and
               work agree (it has two residual blocks going up where the others have three); beside InfoDiffusion
               two diffusers networks, an encoder and a denoiser conditioned on its code. Missing ones are named.
    published  with --published, the authors' InfoDiffusion from a checkout of github.com/isjakewong/InfoDiffusion, at
               our widths and levels (three convolutions a block where the others have two), in the same plain loop
    compiled   with --compiled, diffusers' and our networks through torch.compile too: each in its best setting
    work       FLOPs of the matrix products and convolutions of a training step, as torch's FlopCounterMode counts them
    peak       the device's own: the best of several large matrix products in the same precision
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import multiprocessing
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from config import Config, integer, number
from dataset import registry, shapes3d
from diffusion import Gaussian, diffuse
from experiment import build_fresh, compile_networks, half_of, pick_device
from models import UNET, multipliers, parameter_count
from modules import Convolution, GroupNorm, use_sweeps
from rng import Rng
from sampling import sample
from training import Stepper
from utils import CommandError, check_writable, exit_status, versions, write_json

PROG = "python -m scripts.benchmark"

SIZES = ("digits", "fmnist", "cifar10", "celeba")
MODELS = {"vanilla": "plain diffusion", "diff": "InfoDiffusion"}
PRECISIONS = ("fp32", "bf16")
DDPM_STEPS, DPMPP_STEPS = 1000, 20
PART = 20  # steps of the long sampler that are measured where all of them would take too long


# ---------------------------------------------------------------------------------------------------------------------
# Contenders: a network with its training step and its evaluation


class Ours:
    """A model of this suite in its own training loop."""

    name = "ours"

    def __init__(self, config: Config, shape: tuple[int, ...], device: torch.device):
        entries = int(np.prod(shape))
        unit = Gaussian(torch.zeros(entries).double(), torch.ones(entries).double(), None)
        self.stepper = Stepper(build_fresh(config, shape, unit, device), config, device)
        self.parameters = parameter_count(self.stepper.model)
        self.z_dim = config.a_dim if config.model == "diff" else 0

    def take(self, *kernels) -> tuple:
        """Let the networks work by other kernels (`use_sweeps`); returns those from before."""
        before = next((m.sweeps for m in self.stepper.model.modules() if isinstance(m, GroupNorm)), None), next(
            (m.winograd for m in self.stepper.model.modules() if isinstance(m, Convolution)), None)
        for part in (self.stepper.model, self.stepper.ema):
            use_sweeps(part, *kernels)
        return before

    def compiled(self) -> Ours:
        """The same with `--compile full`."""
        self.name += ", compiled"
        self.take(None)
        for part in (self.stepper.model, self.stepper.ema):
            compile_networks(part, Config(compile="full"), self.stepper.device)
        return self

    def train(self, x: Tensor) -> None:
        index = torch.arange(len(x), device=x.device)
        self.stepper.update(x, Rng(0, index, self.stepper.step), None, 0.0, 1e-4)

    def evaluate(self, x: Tensor, logsnr: Tensor, z: Tensor | None = None) -> Tensor:
        if z is None and self.z_dim:
            z = torch.zeros(len(x), self.z_dim, device=x.device)
        return self.stepper.ema.denoise(x, logsnr, z)


class Rival:
    """Another library's network in a plain loop with the same parts.

    network     (x_noisy [B,C,H,W], logsnr [B], x: clean images, or None for no code) -> eps_hat
    """

    def __init__(self, name: str, network: nn.Module, half: torch.dtype | None, device: torch.device):
        self.name, self.half, self.device, self.layout = name, half, device, torch.contiguous_format
        self.network = network.to(device).train()
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        self.parameters = parameter_count(network)

    def compiled(self) -> Rival:
        self.name += ", compiled"
        self.network.compile()
        self.ema.compile()
        return self

    def channels_last(self) -> Rival:
        """The same with weights and images channels last, as its documentation advises."""
        self.name += ", channels last"
        self.layout = torch.channels_last
        for part in (self.network, self.ema):
            part.to(memory_format=torch.channels_last)
        return self

    def _arithmetic(self):
        return torch.autocast(self.device.type, self.half) if self.half else contextlib.nullcontext()

    def train(self, x: Tensor) -> None:
        x = x.contiguous(memory_format=self.layout)
        eps, logsnr = torch.randn_like(x), torch.rand(len(x), device=x.device) * 16 - 5
        with self._arithmetic():
            eps_hat = self.network(diffuse(x, logsnr, eps), logsnr, x)
        self.optimizer.zero_grad(set_to_none=True)
        (eps_hat.float() - eps).square().mean().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(list(self.ema.parameters()), [p.detach() for p in self.network.parameters()], 1e-4)

    @torch.no_grad()
    def evaluate(self, x: Tensor, logsnr: Tensor) -> Tensor:
        with self._arithmetic():
            return self.ema(x.contiguous(memory_format=self.layout), logsnr, None).float()


class Diffusers(nn.Module):
    """UNet2DModel at our widths, blocks and attention; with `z_dim` a second one before it, as the encoder."""

    def __init__(self, shape: tuple[int, ...], width: int, levels: tuple[int, ...], dropout: float, z_dim: int):
        super().__init__()
        self.unet = self._unet(shape, shape[0], width, levels, dropout, class_embed_type="identity" if z_dim else None)
        self.z_dim, self.encoder = z_dim, None
        if z_dim:
            self.encoder = self._unet(shape, 1, width, levels, dropout)
            self.to_z = nn.Linear(shape[1] * shape[2], z_dim)
            self.embed_z = nn.Sequential(nn.Linear(z_dim, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))

    @staticmethod
    def _unet(shape, outside: int, width: int, levels, dropout: float, **options) -> nn.Module:
        from diffusers import UNet2DModel
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it advises against a single head
        kinds = ["Attn" if level in UNET["attention"] else "" for level in range(len(levels))]
        return UNet2DModel(
            sample_size=shape[-1], in_channels=shape[0], out_channels=outside, layers_per_block=UNET["blocks"],
            dropout=dropout, block_out_channels=[width * m for m in levels], attention_head_dim=None,
            norm_num_groups=math.gcd(32, width), resnet_time_scale_shift="scale_shift",
            down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)], **options,
        )

    def forward(self, x_noisy: Tensor, logsnr: Tensor, x: Tensor | None) -> Tensor:
        if not self.z_dim:
            return self.unet(x_noisy, logsnr).sample
        if x is None:
            z = torch.zeros(len(x_noisy), self.z_dim, device=x_noisy.device)
        else:
            z = self.to_z(self.encoder(x, torch.zeros_like(logsnr)).sample.flatten(1))
        return self.unet(x_noisy, logsnr, class_labels=self.embed_z(z)).sample


class DenoisingDiffusionPytorch(nn.Module):
    """denoising_diffusion_pytorch's Unet; full attention at our level, its linear attention elsewhere."""

    def __init__(self, shape: tuple[int, ...], width: int, levels: tuple[int, ...], dropout: float):
        super().__init__()
        from denoising_diffusion_pytorch import Unet

        wide = width * 5 // 4
        self.unet = Unet(
            wide, dim_mults=levels, channels=shape[0], dropout=dropout, attn_heads=1, flash_attn=True,
            full_attn=tuple(level in UNET["attention"] for level in range(len(levels))),
            attn_dim_head=tuple(wide * m for m in levels),
        )

    def forward(self, x_noisy: Tensor, logsnr: Tensor, x: Tensor | None) -> Tensor:
        return self.unet(x_noisy, logsnr)


class Published(nn.Module):
    """The authors' encoder and conditioned denoiser; `folder`: a checkout of their code."""

    def __init__(self, folder: str, shape: tuple[int, ...], width: int, levels: tuple[int, ...], dropout: float,
                 z_dim: int):
        super().__init__()
        theirs, self.z_dim = import_published(folder), z_dim
        sizes = {"ch": width, "ch_mult": levels, "attn": UNET["attention"], "num_res_blocks": UNET["blocks"],
                 "dropout": dropout, "shape": shape, "a_dim": z_dim}
        self.encoder = theirs.Encoder(**sizes)
        self.unet = theirs.AuxiliaryUNet(DDPM_STEPS, **sizes)

    def forward(self, x_noisy: Tensor, logsnr: Tensor, x: Tensor | None) -> Tensor:
        z = x_noisy.new_zeros(len(x_noisy), self.z_dim) if x is None else self.encoder(x)[0]
        return self.unet(x_noisy, torch.arange(len(x_noisy), device=x_noisy.device), z)  # any steps: they cost the same


def import_published(folder: str) -> ModuleType:
    """The `models` of a checkout, whose modules have the names of ours: ours are set aside meanwhile."""
    names = ("utils", "modules", "models")  # each imports those before it
    ours = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        for name in names:
            spec = spec_from_file_location(name, Path(folder) / f"{name}.py")
            sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules["models"]
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(ours)


RIVALS = {"diffusers": "diffusers", "denoising-diffusion-pytorch": "denoising_diffusion_pytorch"}


def images_of(config: Config, device: torch.device) -> Tensor:
    """A batch in the data set's shape. [B,C,H,W] in [-1, 1]"""
    spec = registry.SPECS[config.dataset]
    return torch.rand(config.batch_size, spec.channels, spec.size, spec.size, device=device) * 2 - 1


def contenders(config: Config, device: torch.device, published: str | None) -> list[Callable[[], Ours | Rival]]:
    """What makes ours, then what is at hand of the others and has a counterpart."""
    spec = registry.SPECS[config.dataset]
    shape = (spec.channels, spec.size, spec.size)
    levels, half = multipliers(config, spec.size, spec.depth), half_of(config.precision, device)
    z_dim = config.a_dim if config.model == "diff" else 0
    sizes = (shape, spec.width, levels, config.dropout)
    field: list[Callable[[], Ours | Rival]] = [lambda: Ours(config, shape, device)]
    if find_spec("diffusers"):
        field.append(lambda: Rival("diffusers", Diffusers(*sizes, z_dim), half, device))
        field.append(lambda: Rival("diffusers", Diffusers(*sizes, z_dim), half, device).channels_last())
    if find_spec("denoising_diffusion_pytorch") and not z_dim:
        network = DenoisingDiffusionPytorch
        field.append(lambda: Rival("denoising-diffusion-pytorch", network(*sizes), half, device))
    if published and z_dim and spec.width % 32 == 0:  # theirs have 32 groups, and their plain network is never made
        field.append(lambda: Rival("published", Published(published, *sizes, z_dim), half, device))
    return field


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


class Clock:
    """Seconds on a device, which works on after Python has gone ahead; or this process's processor seconds."""

    def __init__(self, device: torch.device, repeats: int, seconds: float, cpu_time: bool = False):
        self.device, self.repeats, self.seconds = device, repeats, seconds
        self.now = time.process_time if cpu_time else time.perf_counter

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, function: Callable[[], object]) -> float:
        self.wait()
        start = self.now()
        function()
        self.wait()
        return self.now() - start

    def rounds(self, functions: list[Callable[[], object]], warm: bool = True) -> list[list[float]]:
        """Seconds of each function, taken in turns: at most `repeats` rounds, no new round after `seconds`."""
        if warm:
            for function in functions:
                self.once(function)
        took, start = [[] for _ in functions], self.now()
        for _ in range(self.repeats):
            for seconds, function in zip(took, functions, strict=True):
                seconds.append(self.once(function))
            if self.now() - start > self.seconds:
                break
        return took


def matmul_peak(clock: Clock, half: torch.dtype | None) -> float:
    """FLOPs a second of the best of several large matrix products."""
    side = 8192 if clock.device.type == "cuda" else 1536
    a = torch.randn(side, side, device=clock.device, dtype=half or torch.float32)
    return 2 * side**3 / min(clock.once(lambda: a @ a) for _ in range(6))


def flops(function: Callable[[], object]) -> int:
    """As the definition of a convolution has them; the counter sees torch's own operations only."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def peak_bytes(config: Config, number: int, device: torch.device, published: str | None) -> int:
    """Memory of a training step of one of the `contenders`, in a process of its own: two steps beyond its start.

    On a GPU what is allocated at most, on a CPU how far the process grows, its first step's scratch included.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit this process's size
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_grown_by, config, number, device, published, torch.get_num_threads()).result()


def _grown_by(config: Config, number: int, device: torch.device, published: str | None, threads: int) -> int:
    torch.set_num_threads(threads)
    x = images_of(config, device)
    torch.nn.functional.conv2d(x, x[:1])  # what the libraries take for themselves
    start = _most_held(device)
    only = contenders(config, device, published)[number]()
    for _ in range(2):
        only.train(x)
    return _most_held(device) - start


def _most_held(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # since the process began; getrusage's counts its parent too
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def kept_bytes(contender: Ours | Rival, x: Tensor) -> int:
    """What a training step keeps between forward and backward, weights aside: the height of its peak over its state."""
    own = {p.untyped_storage().data_ptr() for p in weights(contender)}
    kept: dict[int, Tensor] = {}  # by address; held, so that no address is used again

    def note(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value.detach()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        contender.train(x)
    return sum(value.untyped_storage().nbytes() for value in kept.values())


def weights(contender: Ours | Rival) -> list[nn.Parameter]:
    return list((contender.stepper.model if isinstance(contender, Ours) else contender.network).parameters())


def quartiles(contender: list[float], ours: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile of the rounds' ratios: a machine slows down for all contenders at once."""
    ratios = [a / b for a, b in zip(contender, ours, strict=True)]
    return np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()


def measure_networks(config: Config, args: argparse.Namespace, peak: float, clock: Clock) -> list[dict]:
    """A row a contender, of one size, model and precision; --compiled: a second one of each, through torch.compile."""
    x = images_of(config, clock.device)
    logsnr = torch.linspace(-4, 8, config.batch_size, device=clock.device)
    makers = contenders(config, clock.device, args.published)
    grown = [peak_bytes(config, number, clock.device, args.published) for number in range(len(makers))]
    torch.manual_seed(0)
    field = [make() for make in makers]
    kernels = field[0].take(None)
    work = [flops(lambda c=c: c.train(x[:2])) / 2 for c in field]  # an image
    calls_work = [flops(lambda c=c: c.evaluate(x[:2], logsnr[:2])) / 2 for c in field]
    field[0].take(*kernels)
    if args.compiled:  # the same work, and memory that a compiler's own would hide
        field += [make().compiled() for make in makers]
        work, calls_work, grown = 2 * work, 2 * calls_work, grown + len(makers) * [None]
    train = clock.rounds([lambda c=c: c.train(x) for c in field])
    evaluate = clock.rounds([lambda c=c: c.evaluate(x, logsnr) for c in field])
    rows = []
    for contender, image_flops, call_flops, steps, calls, most in zip(field, work, calls_work, train, evaluate, grown,
                                                                      strict=True):
        step, call = statistics.median(steps), statistics.median(calls)
        rows.append({
            "size": config.dataset, "model": config.model, "precision": config.precision, "network": contender.name,
            "parameters": contender.parameters, "image_flops": image_flops, "step_flops": image_flops * len(x),
            "step_seconds": step, "call_seconds": call, "repeats": [len(steps), len(calls)],
            "train_images_per_second": len(x) / step, "evaluate_images_per_second": len(x) / call,
            "peak_share": image_flops * len(x) / step / peak, "evaluate_share": call_flops * len(x) / call / peak,
            "train_times_ours": quartiles(steps, train[0]), "evaluate_times_ours": quartiles(calls, evaluate[0]),
            "peak_bytes": most, "peak_times_ours": most and most / grown[0], "kept_bytes": kept_bytes(contender, x),
            "parameters_times_ours": contender.parameters / field[0].parameters,
            "flops_times_ours": image_flops / work[0],
        })
    return rows


def measure_sampling(config: Config, clock: Clock) -> list[dict]:
    """Network calls and seconds of two samplers of equal quality, for a batch of images of plain diffusion."""
    spec = registry.SPECS[config.dataset]
    shape = (spec.channels, spec.size, spec.size)
    ours = Ours(config, shape, clock.device)
    rng = Rng(0, torch.arange(config.batch_size, device=clock.device))
    x = rng.normal("x", *shape)
    logsnr = torch.zeros(len(x), device=clock.device)
    ours.evaluate(x, logsnr)
    call = clock.once(lambda: ours.evaluate(x, logsnr))
    rows = []
    for sampler, steps in (("ddpm", DDPM_STEPS), ("dpmpp", DPMPP_STEPS)):
        spacing = "time" if sampler == "ddpm" else "logsnr"
        measured = steps if steps * call < clock.seconds else min(PART, steps)
        grid = ours.stepper.ema.schedule.grid(steps, spacing)[-measured - 1 :]
        calls = []

        def denoiser(x, logsnr, z=None, calls=calls):
            calls.append(1)
            return ours.evaluate(x, logsnr)

        def network(measured=measured):
            for _ in range(measured):
                ours.evaluate(x, logsnr)

        def draw(sampler=sampler, denoiser=denoiser, grid=grid):
            sample(sampler, denoiser, rng, shape, grid)

        whole, pure = clock.rounds([draw, network], warm=False)
        share = statistics.median(a / b for a, b in zip(whole, pure, strict=True))
        rows.append({
            "size": config.dataset, "precision": config.precision, "sampler": sampler, "images": len(x),
            "network_calls": steps * len(calls) // (measured * len(whole)), "measured_steps": measured,
            "seconds": statistics.median(whole) * steps / measured, "times_pure_network": share,
        })
    return rows


def measure_data(size: str, batch: int, clock: Clock) -> dict:
    """Images a second that arrive on the device as float batches: random pixels, held and mirrored as in training."""
    spec, lists = registry.SPECS[size], np.arange(20 * batch).reshape(20, batch)
    pixels = np.random.default_rng(0).integers(0, spec.levels, (lists.size, spec.channels, spec.size, spec.size))
    dataset = registry.Dataset(spec, "train", lists.ravel(), pixels.astype(np.uint8))
    flip = torch.arange(batch, device=clock.device) % 2 == 0 if spec.flip else None

    def read():
        for _, raw in registry.stream(dataset, lists.tolist(), clock.device):
            registry.to_float(raw, dataset.levels, flip)

    (took,) = clock.rounds([read])
    return {"source": f"{size}, held", "images_per_second": lists.size / statistics.median(took)}


def measure_rendering(batch: int, clock: Clock) -> dict:
    """Pictures of shapes3d.py a second, drawn in this process."""
    (took,) = clock.rounds([lambda: shapes3d.render(np.arange(batch) * 997, 64)])
    return {"source": "shapes3d, drawn", "images_per_second": batch / statistics.median(took)}


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def network_table(rows: list[dict]) -> str:
    """Ours: times, and the share that the matrix products and convolutions alone would take at the measured peak.

    Over 100 % where the convolutions do with fewer multiplications than their definition has.
    """
    head = ["size, model, precision", "M", "GFLOP a step", "ms a step", "of peak", "ms a call", "of peak",
            "kept, peak MB"]
    return table(head, [[
        named(row), f"{row['parameters'] / 1e6:.2f}", f"{row['step_flops'] / 1e9:.1f}",
        f"{1e3 * row['step_seconds']:.0f}", f"{100 * row['peak_share']:.0f}%", f"{1e3 * row['call_seconds']:.1f}",
        f"{100 * row['evaluate_share']:.0f}%", f"{row['kept_bytes'] / 2**20:.0f}, {row['peak_bytes'] / 2**20:.0f}",
    ] for row in rows if row["network"] == "ours"])


def rival_table(rows: list[dict]) -> str:
    """Ratios are of the rival's seconds or bytes over ours, round by round: above 1, ours takes less."""
    head = ["size, model, precision", "network", "M, FLOPs / ours", "train / ours", "evaluate / ours", "peak / ours"]
    return table(head, [[
        named(row), row["network"], f"{row['parameters_times_ours']:.2f}, {row['flops_times_ours']:.2f}",
        *("{1:.2f} ({0:.2f} to {2:.2f})".format(*row[f"{what}_times_ours"]) for what in ("train", "evaluate")),
        "" if row["peak_bytes"] is None else f"{row['peak_times_ours']:.2f}",
    ] for row in rows if row["network"] != "ours"])


def named(row: dict) -> str:
    return f"{row['size']}, {MODELS[row['model']]}, {row['precision']}"


def sampling_table(rows: list[dict]) -> str:
    head = ["size", "precision", "sampler", "images", "network calls", "seconds", "measured", "over pure network time"]
    body = [[
        row["size"], row["precision"], row["sampler"], row["images"], row["network_calls"], f"{row['seconds']:.1f}",
        "all" if row["measured_steps"] == row["network_calls"] else f"{row['measured_steps']} steps, extrapolated",
        f"{100 * (row['times_pure_network'] - 1):+.1f}%",
    ] for row in rows]
    return table(head, body)


def data_table(rows: list[dict]) -> str:
    return table(["data", "images/s"], [[row["source"], f"{row['images_per_second']:.0f}"] for row in rows])


def table(head: list[str], body: list[list]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def describe_machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return f"{cpu}, {torch.get_num_threads()} threads"


# ---------------------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES[1:], help="data sets whose shape to run")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=tuple(MODELS), help="which of our models")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="arithmetic")
    parser.add_argument("--compiled", action="store_true",
                        help="every network through torch.compile too, minutes each on a CPU")
    parser.add_argument("--published", metavar="DIR", help="a checkout of the authors' InfoDiffusion, for its row")
    parser.add_argument("--batch_size", type=integer(2), help="images a step (default: 64 on a GPU, 8 on a CPU)")
    parser.add_argument("--repeats", type=integer(1), default=10, help="rounds a figure, at most")
    parser.add_argument("--seconds", type=number(0, above=True), default=12.0,
                        help="begin no new round of a figure after so many seconds")
    parser.add_argument("--cpu_time", action="store_true",
                        help="count this process's processor seconds, for a CPU that others use too; "
                             "for OMP_NUM_THREADS=1, since threads add up")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one, else cpu)")
    parser.add_argument("--output", default="./results/benchmark.json", help="file for the numbers")
    return parser


def run(args: argparse.Namespace) -> dict:
    """Measure everything that the flags name."""
    device = pick_device(args.device)
    gpu = device.type == "cuda"
    if gpu and args.cpu_time:
        raise CommandError("--cpu_time is for a CPU: a GPU's work is no processor seconds; leave it out")
    clock = Clock(device, args.repeats, args.seconds, args.cpu_time)
    batch = args.batch_size or (64 if gpu else 8)
    networks, samplers, peaks = [], [], {}
    for precision in args.precisions:
        peak = peaks[precision] = matmul_peak(clock, half_of(precision, device))
        for size in args.sizes:
            for model in args.models:
                config = Config(model=model, dataset=size, batch_size=batch, a_dim=32, precision=precision)
                print(f"{size}, {MODELS[model]}, {precision} ...", file=sys.stderr)
                networks += measure_networks(config, args, peak, clock)
            samplers += measure_sampling(replace(config, model="vanilla"), clock)
    return {
        "machine": describe_machine(device), "device": device.type, "batch": batch, "cpu_time": args.cpu_time,
        "versions": versions(), "not_installed": [name for name, module in RIVALS.items() if not find_spec(module)],
        "matmul_peak_flops": peaks, "networks": networks, "sampling": samplers,
        "data": [*(measure_data(size, batch, clock) for size in args.sizes), measure_rendering(batch, clock)],
    }


def show(record: dict, device: torch.device) -> None:
    peaks = ", ".join(f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in record["matmul_peak_flops"].items())
    clock = "processor seconds" if record["cpu_time"] else "seconds"
    print(f"{record['machine']}; batch {record['batch']}; {clock}; matrix-multiply peak {peaks}\n")
    if device.type != "cuda":
        print("No GPU was at hand: these are figures of the CPU, and there is no column for a GPU.\n")
    for name in record["not_installed"]:
        print(f"{name}: not installed (pip install {name}), so its rows are missing.\n")
    print(network_table(record["networks"]), rival_table(record["networks"]), sampling_table(record["sampling"]),
          data_table(record["data"]), sep="\n\n")


def body(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    check_writable(Path(args.output).parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = run(args)
    show(record, torch.device(record["device"]))
    write_json(args.output, record)


def main(argv: list[str] | None = None) -> int:
    return exit_status("benchmark.py", body, argv)


if __name__ == "__main__":
    sys.exit(main())
