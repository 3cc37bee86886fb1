"""Seconds of training, sampling and reading, beside the networks that pip can install:  python -m scripts.benchmark

Prints Markdown tables and writes the same numbers to ./results/benchmark.json (--output). Every figure is the median of
several repeats after a warm-up; contenders take turns, so that their ratio holds on a machine that others use too.

    train      one step: forward, loss, backward, gradients clipped, fused AdamW, the average of the weights
    evaluate   one call of the averaged network, as a sampler makes it
    ours       through training.Stepper and model.denoise: what a run pays, numbered noise and MMD included
    others     the networks of scripts/contenders.py; what is not installed is named
    published  with --published, the authors' InfoDiffusion from a checkout of github.com/isjakewong/InfoDiffusion, at
               our widths and levels (three convolutions a block where the others have two)
    compiled   with --compiled, the others through torch.compile too, which lays images out as it likes
    work       FLOPs of the matrix products and convolutions of a training step, as torch's FlopCounterMode counts them
    peak       the device's own: the best of several large matrix products in the same precision
"""

from __future__ import annotations

import argparse
import contextlib
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
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from config import Config, integer, number
from dataset import registry, shapes3d
from experiment import half_of, pick_device
from rng import Rng
from sampling import sample
from scripts.contenders import DDPM_STEPS, RIVALS, Ours, Rival, contenders, images_of
from utils import CommandError, check_writable, exit_status, versions, write_json

PROG = "python -m scripts.benchmark"

SIZES = ("digits", "fmnist", "cifar10", "celeba")
MODELS = {"vanilla": "plain diffusion", "diff": "InfoDiffusion"}
PRECISIONS = ("fp32", "bf16")
DPMPP_STEPS = 20
PART = 20  # steps of the long sampler that are measured where all of them would take too long


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
    """A row a contender, of one size, model and precision; --compiled: a second one of the others, by torch.compile."""
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
        plain = [k for k, c in enumerate(field) if isinstance(c, Rival) and c.layout == torch.contiguous_format]
        field += [makers[k]().compiled() for k in plain]
        work, calls_work = (values + [values[k] for k in plain] for values in (work, calls_work))
        grown += len(plain) * [None]
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
                        help="the others through torch.compile too, a quarter of an hour each on one core")
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
