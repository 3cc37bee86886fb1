"""The one entry point: python run.py --model {diff,vae,vanilla} --mode MODE [flags]; --mode MODE --help lists them.

Flags are checked before anything heavy is imported. Exit status: 0, or 2 with one line on stderr for a mistake of the
caller's, 1 for a run that went wrong by itself, 128 + the signal for one that a signal stopped.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import commandline
import config as config_module
from config import MODES, Command
from dataset import registry
from dataset.given import spec_of
from utils import CommandError, RunError, exit_status, first_line


def check_served(command: Command) -> None:
    """Raise CommandError where a mode makes no sense for the model or the data."""
    row, config = MODES[command.mode], command.config
    spec = registry.SPECS[config.dataset]
    if config.model not in row.models:
        raise CommandError(f"--mode {command.mode} is for --model {' or '.join(row.models)}, not {config.model}")
    if not row.points and spec.kind == "points":
        raise CommandError(f"--mode {command.mode} is for images: {config.dataset} has points")
    if config.model == "vae" and spec.gives_z:
        raise CommandError(f"--model vae encodes, and {config.dataset} brings its own z: use --model diff or vanilla")


def function_of(mode: str) -> Callable[[Command], None]:
    """The function behind a mode; imported here, since torch takes seconds."""
    module, name = MODES[mode].function.split(":")
    return getattr(importlib.import_module(module), name)


def overview() -> str:
    """What `python run.py` says by itself: what there is to do, in about twenty lines."""
    modes = "\n".join(f"  {name:18} {row.about}" for name, row in MODES.items())
    return f"""usage: python run.py --model diff|vae|vanilla --mode MODE --dataset NAME [flags]

modes:
{modes}

data sets: {", ".join(registry.SPECS)}

examples:
  python run.py --mode train --dataset digits --epochs 40 --learning_rate 1e-3
  python run.py --mode eval --dataset digits --sampler dpmpp --sampling_number 64

  --mode MODE --help   the flags that a mode reads          --help all   every flag
  --dry_run            the resolved values, and stop        README.md    what all this is"""


def _counts(config) -> str:
    """How many images each split has, in words; or why that is not known."""
    try:
        counts = registry.counts(config.dataset, root=config.data_dir, size=config.input_size,
                                 channels=config.input_channels)
    except (CommandError, OSError) as error:
        return f"not there: {error}"
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())


def dry_run(command: Command) -> None:
    """Print the resolved config, the size of the model and where its files go."""
    import torch

    from diffusion import Gaussian
    from experiment import pick_device
    from models import build_model, parameter_count

    config = command.config
    pick_device(config.device)
    spec = spec_of(registry.SPECS[config.dataset], config)
    size, channels = config.input_size or spec.size, config.input_channels or spec.channels
    points = config.a_dim if spec.gives_z and spec.kind == "points" else spec.size
    shape = (points,) if spec.kind == "points" else (channels, size, size)
    entries = 1
    for side in shape:
        entries *= side
    unit = Gaussian(torch.zeros(entries).double(), torch.ones(entries).double(), None)
    model = build_model(config, spec, shape, unit)
    resolved = {"unets_channels": config.unets_channels or spec.width}
    if spec.kind == "image":
        resolved |= {"input_size": size, "input_channels": channels,
                     "encoder_channels": config.encoder_channels or spec.width}
    for name, value in {**config_module.to_dict(config), **resolved}.items():
        print(f"{name.rstrip('_'):18} {'not set' if value is None else value}")
    print(f"{'experiment':18} {config.experiment}")
    print(f"{'data':18} {'x'.join(map(str, shape))}, {_counts(config)}")
    print(f"{'parameters':18} {parameter_count(model):,}")
    for root in ("models", "imgs", "logs", "results"):
        print(f"{root:18} {config_module.folder(config, root)}")


def main(argv: list[str] | None = None) -> int:
    """Run one command line; return the exit status."""
    return exit_status("run.py", _run, argv)


def _run(argv: list[str]) -> int:
    if not argv or argv in (["--help"], ["-h"]):
        print(overview())
        return 0
    if commandline.value_of(argv, "--from"):
        from experiment import expand_from

        argv = expand_from(argv, "train")
    command = commandline.parse(argv, "run.py", registry.SPECS)
    check_served(command)
    if command.config.dry_run:
        dry_run(command)
        return 0
    return execute(command)


def execute(command: Command) -> int:
    """Run the mode's function, in a process group where torchrun started one."""
    import distributed
    from experiment import pick_device
    from training import Interrupted

    device = pick_device(command.config.device)
    if MODES[command.mode].processes:
        distributed.start(device)
    elif not distributed.is_main():
        return 0
    try:
        function_of(command.mode)(command)
        distributed.part_ways()
    except Interrupted as stop:
        if distributed.is_main():
            print(f"run.py: {stop}", file=sys.stderr)
        return stop.status
    except RuntimeError as error:
        if not distributed.is_lost(error):
            raise
        raise RunError(f"process {distributed.rank()} lost another one; the same command goes on from last.pth "
                       f"({first_line(error)})") from None
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
