"""The modes that sample: a trained model draws pictures; one function a mode.

They draw numbered samples: sample i depends on the seed and on i, not on the batch it is drawn in or
on the process that draws it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import config as config_module
import distributed
import plots
from config import Command
from dataset import registry
from experiment import Trained, batches_of, find_checkpoint, load_data, open_latent, open_trained
from models import LatentDiffusion
from rng import Rng
from sampling import generate, switch
from utils import CommandError, check_writable, file_hash, read_json, versions, write_json, write_npz

# ---------------------------------------------------------------------------------------------------------------------
# Drawing numbered samples


def sampler_settings(trained: Trained) -> dict:
    """The arguments of `sampling.generate` that come from flags."""
    config = trained.config
    sampler = "ddim" if config.deterministic else config.sampler
    own = config_module.SAMPLERS[sampler]
    steps = config.sample_steps or min(own.steps or config.diffusion_steps, config.diffusion_steps)
    if config.guidance != 1 and config.model == "diff" and not trained.model.has_unconditional:
        raise CommandError("--guidance needs a model trained with --z_dropout: this one has no unconditional branch")
    if config.guidance != 1 and config.model != "diff":
        raise CommandError(f"--guidance steers towards a z: --model diff, not {config.model}")
    options = {name: getattr(config, name) for name in own.options}
    return {"sampler": sampler, "steps": steps, "spacing": config.spacing, "guidance": config.guidance, **options}


def two_phase(trained: Trained) -> tuple[Callable, str]:
    """The vanilla denoiser down to --split_step, InfoDiffusion from there (InfoDiffusion, sec. 4.2), and its hash.

    Raises CommandError where the vanilla model is missing.
    """
    config, schedule = trained.config, trained.model.schedule
    if config.split_step >= schedule.steps:
        return trained.model.denoise, "none: all steps are InfoDiffusion's"
    if config.guidance != 1:
        raise CommandError("--guidance is not for two-phase sampling: use --split_step T or --is_latent")
    plain = config_module.normalise(replace(config, model="vanilla"), registry.SPECS)
    if config.vanilla_from:
        path = Path(config.vanilla_from)
    else:
        try:
            path = find_checkpoint(config_module.folder(plain, "models"), None)
        except CommandError as error:
            cure = f"(--model vanilla), or give --vanilla_from FILE, or --split_step {schedule.steps} to do without"
            raise CommandError(f"two-phase sampling starts with plain diffusion: {error} {cure}") from None
    vanilla = open_trained(Command("eval", plain, frozenset()), path, ("vanilla",)).model
    if vanilla.shape != trained.model.shape:
        raise CommandError(f"{path} makes images of {vanilla.shape}, this model of {trained.model.shape}")
    at = schedule.logsnr(torch.tensor([config.split_step + 0.5])).item()
    return switch(vanilla.denoise, trained.model.denoise, at), file_hash(path)


def draw_latents(latent: LatentDiffusion, rng: Rng, settings: dict) -> Tensor:
    """z from the latent diffusion, standardisation undone. -> [B, a_dim]"""
    own = {"steps": min(settings["steps"], latent.schedule.steps), "guidance": 1.0}
    return latent.to_latents(generate(latent, rng.fork("latent"), **{**settings, **own}))


def drawer(trained: Trained, phases: bool) -> tuple[Callable[[Rng], Tensor], dict]:
    """A function from numbered noise to samples [B, *shape], and the setting that it stands for.

    phases      two-phase sampling, where the model is InfoDiffusion and z comes from its prior
    """
    config, settings = trained.config, sampler_settings(trained)
    manifest = {"checkpoint_hash": file_hash(trained.path), "seed": config.r_seed, "precision": config.precision,
                **settings}
    latent, denoiser = None, None
    if config.is_latent:
        if config.model != "diff":
            raise CommandError(f"--is_latent draws z for --model diff, not {config.model}")
        latent, path = open_latent(trained)
        manifest["latent"] = file_hash(path)
    elif config.model == "diff" and phases:
        denoiser, manifest["vanilla"] = two_phase(trained)
        manifest["split_step"] = config.split_step

    def draw(rng: Rng) -> Tensor:
        z = None if latent is None else draw_latents(latent, rng, settings)
        return generate(trained.model, rng, z, denoiser=denoiser, **settings)

    return draw, manifest


def numbered(trained: Trained, is_done: Callable[[int], bool] = lambda number: False):
    """Yield (numbers, noise) for this process's batches of the --sampling_number samples, under a progress bar.

    The batches are the same whatever is done already and however many processes share them, and so is every bit of a
    sample; a batch that is done is left out.
    """
    config = trained.config
    batches = [range(config.sampling_number)[start : start + config.batch_size]
               for start in range(0, config.sampling_number, config.batch_size)]
    own = [batch for batch in batches[distributed.rank() :: distributed.world()] if not all(map(is_done, batch))]
    with tqdm(total=sum(map(len, own)), desc="sampling", unit="img", disable=not distributed.is_main()) as bar:
        for batch in own:
            yield batch, Rng(config.r_seed, torch.tensor(batch, device=trained.device))
            bar.update(len(batch))


def image_path(folder: Path, index: int, prefix: str = "") -> Path:
    return folder / f"{prefix}{index:06d}.png"


def write_images(pool: ThreadPoolExecutor, x: Tensor, paths: list[Path]) -> list:
    """Pass images [B,C,H,W] to the pool of writers, a file each, so that sampling does not wait for them."""
    return [pool.submit(plots.write_png, path, image) for path, image in zip(paths, plots.to_uint8(x), strict=True)]


def sample_images(command: Command) -> None:
    """Mode `eval`: numbered samples, each its own file, and a sheet of them; for points a scatter plot and an .npz."""
    trained = open_trained(command)
    config = trained.config
    folder = config_module.folder(config, "imgs") / "eval"
    check_writable(folder)
    check_writable(config_module.folder(config, "results"))
    draw, setting = drawer(trained, phases=bool({"split_step", "vanilla_from"} & command.given))
    samples, written = {}, []
    with ThreadPoolExecutor() as pool:
        for numbers, rng in numbered(trained):
            x = draw(rng)
            samples[numbers[0]] = x.cpu()
            if x.dim() == 4:
                written += write_images(pool, x, [image_path(folder, i, "sample-") for i in numbers])
        for future in written:
            future.result()
    parts = distributed.gather_objects(samples)
    if not distributed.is_main():
        return
    samples = {first: x for part in parts for first, x in part.items()}
    x = torch.cat([samples[first] for first in sorted(samples)])
    if x.dim() == 4:
        plots.image_grid(x[:256], folder / "grid.png")
        for old in set(folder.glob("sample-*.png")) - {image_path(folder, i, "sample-") for i in range(len(x))}:
            old.unlink()  # of more samples, drawn before
    else:
        write_npz(folder / "samples.npz", samples=x.numpy())
        plots.scatter(x[:, :2].numpy(), folder / "scatter.png", f"{len(x)} samples of {config.experiment}")
    record = {**setting, "samples": len(x), "versions": versions(), **trained.provenance()}
    write_json(config_module.folder(config, "results") / "eval.json", record)
    print(f"{len(x)} samples in {folder}")


def eval_fid(command: Command) -> None:
    """Mode `eval_fid`: exactly --sampling_number images for calc_fid.py; missing ones are drawn, others kept.

    A manifest in results/EXP/ holds the setting; a folder drawn with another setting is emptied first.
    """
    trained = open_trained(command)
    config = trained.config
    name = "eval-fid-latent" if config.is_latent else "eval-fid-fast"
    folder = config_module.folder(config, "imgs") / name
    draw, setting = drawer(trained, phases=True)
    manifest = config_module.folder(config, "results") / f"{name}.json"
    if distributed.is_main():
        check_writable(folder)
        check_writable(manifest.parent)
        prepare_folder(folder, manifest, setting, config.sampling_number)
        write_json(manifest, {**setting, "versions": versions(), **trained.provenance()})
    distributed.barrier()
    there = len(list(folder.iterdir()))
    distributed.barrier()  # every process has counted before anything is drawn
    written = []
    with ThreadPoolExecutor() as pool:
        for numbers, rng in numbered(trained, lambda number: image_path(folder, number).exists()):
            written += write_images(pool, draw(rng), [image_path(folder, i) for i in numbers])
        for future in written:
            future.result()
    distributed.barrier()
    distributed.say(f"{len(list(folder.iterdir()))} images in {folder} ({there} of them from before); "
                    f"setting in {manifest}")


def prepare_folder(folder: Path, manifest: Path, setting: dict, count: int) -> None:
    """Leave in `folder` only whole images numbered below `count` that were drawn with this setting.

    Raises CommandError where the folder holds something that this mode did not write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(folder.iterdir())
    for path in there:
        ours = path.suffix == ".png" and (path.stem.isdigit() or path.name.startswith("."))
        if not ours:
            raise CommandError(f"{folder} holds {path.name}, which is no numbered image: move it away")
    same = manifest.exists() and all(read_json(manifest).get(key) == value for key, value in setting.items())
    for path in there:
        if not same or not path.stem.isdigit() or int(path.stem) >= count:
            path.unlink()


def save_original_img(command: Command) -> None:
    """Mode `save_original_img`: {dataset}_imgs/{i:06d}.png, one file an image, at the size that the model sees."""
    config = command.config
    dataset = load_data(config, config.split or "train")
    folder = Path(f"{config.dataset}_imgs")
    check_writable(folder)
    if folder.exists():
        shutil.rmtree(folder) if all(p.suffix == ".png" for p in folder.iterdir()) else _not_ours(folder)
    rows = range(min(len(dataset), config.num_images or len(dataset)))
    bar = tqdm(total=len(rows), desc="writing", unit="img")
    with ThreadPoolExecutor() as pool, bar:
        for indices, x in batches_of(dataset, 256, "cpu", rows, config.num_workers):
            for future in write_images(pool, x, [image_path(folder, i) for i in indices.tolist()]):
                future.result()
            bar.update(len(x))
    print(f"{len(rows)} images of {config.dataset} ({dataset.split}) in {folder}")


def _not_ours(folder: Path) -> None:
    raise CommandError(f"{folder} holds files that are not images: move them away")
