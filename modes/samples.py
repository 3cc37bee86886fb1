"""The modes that sample: a trained model draws pictures; one function a mode.

They draw numbered samples: sample i depends on the seed and on i, not on the batch it is drawn in or
on the process that draws it.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import config as config_module
import distributed
import plots
from config import SPACINGS, Command
from dataset import registry
from diffusion import FIRST, SimpleObjective
from experiment import (
    Trained,
    batches_of,
    find_checkpoint,
    load_data,
    named_checkpoint,
    open_latent,
    open_trained,
)
from experiment.progress import say_if_signal_remains, unit_of
from models import LatentDiffusion
from rng import Rng
from sampling import SAMPLERS, denoiser_of, fit_grid, generate, steps_of, switch
from utils import (
    CommandError,
    OwnFolder,
    check_writable,
    file_hash,
    locked,
    progress_bar,
    read_json,
    remove_partial,
    versions,
    write_json,
    write_npz,
)

FIT_SAMPLES = 32  # that a grid is fitted on

# ---------------------------------------------------------------------------------------------------------------------
# Drawing numbered samples


def sampler_settings(trained: Trained) -> dict:
    """The arguments of `sampling.generate` that come from flags."""
    config = trained.config
    sampler = "ddim" if config.deterministic else config.sampler
    own = config_module.SAMPLERS[sampler]
    steps = own.steps if config.model == "vae" else steps_of(trained.model, config.sample_steps, own.steps)
    if config.guidance != 1 and config.model == "diff" and not trained.model.has_unconditional:
        raise CommandError("--guidance needs a model trained with --z_dropout: this one has no unconditional branch")
    if config.guidance != 1 and config.model != "diff":
        raise CommandError(f"--guidance steers towards a z: --model diff, not {config.model}")
    options = {name: getattr(config, name) for name in own.options if getattr(config, name) is not None}
    return {"sampler": sampler, "steps": steps, "spacing": config.spacing or own.spacing, "guidance": config.guidance,
            **options}


def two_phase(trained: Trained) -> tuple[Callable, str]:
    """The vanilla denoiser for the first --split_step of T steps, then InfoDiffusion (its sec. 4.2), and its hash.

    Raises CommandError where the vanilla model is missing.
    """
    config, schedule = trained.config, trained.model.schedule
    if config.split_step == 0 or config.split_step > schedule.steps:  # the default, of a longer schedule
        return trained.model.denoise, "none: all steps are InfoDiffusion's"
    if config.guidance != 1:
        raise CommandError("--guidance is not for two-phase sampling: use --split_step 0 or --is_latent")
    plain = config_module.normalise(replace(config, model="vanilla", from_=None), registry.SPECS)
    if config.vanilla_from:
        path = named_checkpoint(config.vanilla_from)
    else:
        try:
            path = find_checkpoint(config_module.folder(plain, "models"), None)
        except CommandError:
            words, folder = config_module.words_of(plain, ("model",)), config_module.folder(plain, "models")
            raise CommandError(f"two-phase sampling starts with plain diffusion, and {folder} holds none: train it "
                               f"(--mode train {' '.join(words)}), or give --vanilla_from FILE, or --split_step "
                               f"0 to do without") from None
    other = open_trained(Command("eval", plain, frozenset()), path, ("vanilla",))
    if None not in (other.data, trained.data) and other.data != trained.data:
        raise CommandError(f"{path} was trained on other data than {trained.path}: give --vanilla_from FILE")
    vanilla = other.model
    if vanilla.shape != trained.model.shape:
        raise CommandError(f"{path} makes images of {vanilla.shape}, this model of {trained.model.shape}")
    at = schedule.logsnr(torch.tensor([schedule.steps - config.split_step + 0.5])).item()
    return switch(vanilla.denoise, trained.model.denoise, at), file_hash(path)


def draw_latents(latent: LatentDiffusion, rng: Rng, settings: dict) -> Tensor:
    """z from the latent diffusion, standardisation undone. -> [B, a_dim]"""
    own = {"steps": min(settings["steps"], latent.schedule.steps), "guidance": 1.0}
    own |= {"spacing": "time", "grid": None} if settings["spacing"] == "fitted" else {}
    return latent.to_latents(generate(latent, rng.fork("latent"), **{**settings, **own}))


def fitted_grid(trained: Trained, setting: dict, denoiser: Callable | None, z_of: Callable) -> Tensor:
    """The grid of --spacing fitted, [N + 1]: from the file beside the checkpoint, or searched for and put there.

    setting     what the samples depend on; the file keeps one grid for each, and none of another checkpoint's
    z_of        numbered noise -> z, or None for a model without
    """
    path = trained.path.with_name(f"{trained.path.stem}.grids.json")
    whole = {name: value for name, value in setting.items() if name not in ("checkpoint_hash", "seed")}
    key = ", ".join(f"{name} {value}" for name, value in whole.items())
    if distributed.is_main():
        kept = read_json(path) if path.exists() else {}
        if kept.get("checkpoint_hash") != setting["checkpoint_hash"]:  # of a checkpoint that was here before
            kept = {"checkpoint_hash": setting["checkpoint_hash"], "grids": {}}
        if key not in kept["grids"]:
            check_writable(path.parent)
            kept["grids"][key] = search_grid(trained, setting, denoiser, z_of)
            write_json(path, kept)
    distributed.barrier()
    return torch.tensor([*read_json(path)["grids"][key]["levels"], math.inf], dtype=torch.float64)


def search_grid(trained: Trained, setting: dict, denoiser: Callable | None, z_of: Callable) -> dict:
    """Levels of a fitted grid without its clean end, and the errors of the grids it was chosen from."""
    model, config = trained.model, trained.config
    rng = Rng(config.r_seed, torch.arange(FIT_SAMPLES, device=trained.device)).fork("fitted")
    z = z_of(rng)
    run = SAMPLERS[setting["sampler"]]
    options = {name: setting[name] for name in config.sampler_used.options if name in setting}
    grids = {spacing: model.grid(setting["steps"], spacing) for spacing in SPACINGS if spacing != "fitted"}
    grid, errors = fit_grid(denoiser or denoiser_of(model, config.guidance), functools.partial(run, **options),
                            rng.at(0).normal("x_T", *model.shape), z, grids)
    usual = ", ".join(f"{name} {errors[name]:.3g}" for name in grids)
    distributed.say(f"{setting['steps']} levels fitted on {FIT_SAMPLES} samples: error {errors['fitted']:.3g} "
                    f"({usual})")
    return {"levels": grid[:-1].tolist(), "errors": errors, "samples": FIT_SAMPLES}


def drawer(trained: Trained, phases: bool) -> tuple[Callable[[Rng], Tensor], dict]:
    """A function from numbered noise to samples [B, *shape], and the setting that it stands for.

    phases      two-phase sampling, where the model is InfoDiffusion and z comes from its prior
    """
    config, settings = trained.config, sampler_settings(trained)
    manifest = {"checkpoint_hash": trained.hash, "seed": config.r_seed, "precision": config.precision, **settings,
                **starts_of(trained)}
    latent, denoiser = None, None
    if config.is_latent:
        if config.model != "diff":
            raise CommandError(f"--is_latent draws z for --model diff, not {config.model}")
        latent, path = open_latent(trained)
        manifest["latent"] = file_hash(path)
    elif config.model == "diff" and phases:
        denoiser, manifest["vanilla"] = two_phase(trained)
        manifest["split_step"] = config.split_step

    def z_of(rng: Rng) -> Tensor | None:
        return trained.prior(rng) if latent is None else draw_latents(latent, rng, settings)

    if config.spacing == "fitted":
        settings["grid"] = fitted_grid(trained, manifest, denoiser, z_of)
        manifest["levels"] = settings["grid"][:-1].tolist()

    def draw(rng: Rng) -> Tensor:
        return generate(trained.model, rng, z_of(rng), denoiser=denoiser, **settings)

    say_if_signal_remains(trained.model)
    return draw, manifest


def starts_of(trained: Trained) -> dict:
    """Where samples start where that is not the schedule's last level, and z from the prior: records from before tell
    these apart."""
    model, found = trained.model, {}
    if isinstance(getattr(model, "objective", None), SimpleObjective) and model.schedule.logsnr_range[0] < FIRST:
        found["first_logsnr"] = FIRST
    if trained.has_given_z:
        found["z_from"] = "training rows"
    return found


def numbered(trained: Trained, is_done: Callable[[int], bool] = lambda number: False):
    """Yield (numbers, noise) for this process's batches of the --sampling_number samples, under a progress bar.

    The batches are the same whatever is done already and however many processes share them, and so is every bit of a
    sample; a batch that is done is left out.
    """
    config = trained.config
    batches = [range(config.sampling_number)[start : start + config.batch_size]
               for start in range(0, config.sampling_number, config.batch_size)]
    own = [batch for batch in batches[distributed.rank() :: distributed.world()] if not all(map(is_done, batch))]
    with progress_bar(total=sum(map(len, own)), desc="sampling", unit=unit_of(trained.spec),
                      disable=not distributed.is_main()) as bar:
        for batch in own:
            yield batch, Rng(config.r_seed, torch.tensor(batch, device=trained.device))
            bar.update(len(batch))


def image_name(index: int, prefix: str = "") -> str:
    return f"{prefix}{index:06d}.png"


class Writer:
    """Writes images in threads while the next ones are drawn; a write that fails ends the drawing at once."""

    PENDING = 256  # images that may wait: no disk is so slow that memory fills

    def __init__(self, own: OwnFolder):
        self.own, self.pool, self.pending = own, ThreadPoolExecutor(), deque()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            while self.pending and kind is None:
                self.pending.popleft().result()
        finally:
            self.pool.shutdown(cancel_futures=True)

    def add(self, x: Tensor, names: list[str]) -> None:
        """Images [B,C,H,W], a file each. Raises CommandError where an earlier one could not be written."""
        for name, pixels in zip(names, plots.to_uint8(x), strict=True):
            self.pending.append(self.pool.submit(self._write, name, pixels))
        while self.pending and (self.pending[0].done() or len(self.pending) > self.PENDING):
            self.pending.popleft().result()

    def _write(self, name: str, pixels: np.ndarray) -> None:
        self.own.write(name, plots.png(pixels))


def writing(*folders: Path):
    """Be the only one to write there, all processes of this run together."""
    return locked(*folders) if distributed.is_main() else contextlib.nullcontext()


def sample_images(command: Command) -> None:
    """Mode `eval`: numbered samples, each its own file, and a sheet of them; for points a scatter plot and an .npz."""
    trained = open_trained(command)
    config = trained.config
    folder = config_module.folder(config, "imgs") / "eval"
    check_writable(folder)
    result = trained.results("eval.json")
    draw, setting = drawer(trained, phases=bool({"split_step", "vanilla_from"} & command.by_hand))
    images, own = len(trained.model.shape) == 3, OwnFolder(folder)
    samples = {}
    with writing(folder):
        if distributed.is_main():
            remove_partial(folder)
            own.forget(own.own("sample-*.png") | own.own("grid.png") if images else ())
        distributed.barrier()
        with Writer(own) as writer:
            for numbers, rng in numbered(trained):
                x = draw(rng)
                samples[numbers[0]] = x.cpu()
                if images:
                    writer.add(x, [image_name(i, "sample-") for i in numbers])
        parts = distributed.gather_objects(samples)
        if not distributed.is_main():
            return
        samples = {first: x for part in parts for first, x in part.items()}
        x = torch.cat([samples[first] for first in sorted(samples)])
        write_json(result, {**setting, "samples": len(x), "versions": versions(), **trained.provenance()})
        if images:
            columns = math.ceil(math.sqrt(len(x[:256])))
            own.write("grid.png", plots.png(plots.sheet(plots.to_uint8(x[:256]), columns)))
        else:
            write_npz(folder / "samples.npz", samples=x.numpy())
            plots.scatter(x[:, :2].numpy(), folder / "scatter.png", f"{len(x)} samples of {config.experiment}")
    print(f"{len(x)} samples in {folder}")


def eval_fid(command: Command) -> None:
    """Mode `eval_fid`: exactly --sampling_number images for calc_fid.py; missing ones are drawn, others kept.

    A record in results/EXP/ tells the setting; a folder of another setting is emptied first.
    """
    trained = open_trained(command)
    config = trained.config
    name = "eval-fid-latent" if config.is_latent else "eval-fid-fast"
    folder = config_module.folder(config, "imgs") / name
    draw, setting = drawer(trained, phases=True)
    check_writable(folder)
    manifest, own = trained.results(f"{name}.json"), OwnFolder(folder)
    with writing(folder):
        if distributed.is_main():
            prepare_folder(own, manifest, setting, config.sampling_number)
            write_json(manifest, {**setting, "versions": versions(), **trained.provenance()})
        distributed.barrier()
        there = {path.name for path in folder.glob("[!.]*")}
        distributed.barrier()  # everybody has looked before anything is drawn
        with Writer(own) as writer:
            for numbers, rng in numbered(trained, lambda number: image_name(number) in there):
                writer.add(draw(rng), [image_name(i) for i in numbers])
        distributed.barrier()
    distributed.say(f"{len(list(folder.glob('[!.]*')))} images in {folder} ({len(there)} of them from before); "
                    f"setting in {manifest}")


def prepare_folder(own: OwnFolder, manifest: Path, setting: dict, count: int) -> None:
    """Leave in a folder only whole images numbered below `count` that were drawn with this very setting.

    Raises CommandError, with nothing deleted, where it holds something that this program did not make.
    """
    remove_partial(own.folder)
    there = own.own("[!.]*")
    same = manifest.exists() and all(read_json(manifest).get(key) == value for key, value in setting.items())
    wanted = {image_name(number) for number in range(count)} if same else set()
    own.forget({path for path in there if path.name not in wanted})


def save_original_img(command: Command) -> None:
    """Mode `save_original_img`: {dataset}_imgs/{i:06d}.png, one file an image, at the size that the model sees."""
    config = command.config
    folder = Path(f"{config.dataset}_imgs")
    check_writable(folder)
    own, place, data = OwnFolder(folder), folder.resolve(), Path(config.data_dir).resolve()
    if config.dataset == "folder" and (place == data or data in place.parents or place in data.parents):
        raise CommandError(f"--data_dir {config.data_dir} and ./{folder}, where the images are written, lie in one "
                           f"another: run this from another folder")
    before = own.own("[!.]*")
    dataset = load_data(config, config.split or "train")
    rows = range(min(len(dataset), config.num_images or len(dataset)))
    with locked(folder), Writer(own) as writer, progress_bar(total=len(rows), desc="writing", unit="img") as bar:
        remove_partial(folder)
        own.forget(before)
        for indices, x in batches_of(dataset, 256, "cpu", rows, config.num_workers):
            writer.add(x, [image_name(i) for i in indices.tolist()])
            bar.update(len(x))
    print(f"{len(rows)} images of {config.dataset} ({dataset.split}) in {folder}")
