"""Which flags go together, and which have no effect on the model or data at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from config.flags import FIELDS, Config
from config.modes import FITTED_STEPS, MODES
from dataset.given import width_of
from utils import CommandError, did_you_mean


def normalise(config: Config, datasets: dict, by_hand: frozenset[str] = frozenset()) -> Config:
    """The default for what has no effect, and None for sizes that are the data set's own: one experiment has one name.

    Raises CommandError for an unknown data set, and for a flag in `by_hand` that has no effect on this model or data.
    """
    spec = datasets.get(config.dataset)
    if spec is None:
        raise CommandError(f"argument --dataset: unknown data set '{config.dataset}'"
                           f"{did_you_mean(config.dataset, datasets)} (known: {', '.join(datasets)})")
    for name, item in FIELDS.items():
        need = item.metadata["needs"]
        if need is None or need.met(config, spec):
            continue
        if name in by_hand and not item.metadata["anywhere"]:
            typed = "" if isinstance(item.default, bool) else f" {getattr(config, name)}"
            raise CommandError(f"--{name}{typed} has no effect here: it needs {need.words}")
        config = replace(config, **{name: item.default})
    entries = width_of(spec, config)
    if entries is not None and config.has_latent:
        if "a_dim" in by_hand and config.a_dim != entries:
            raise CommandError(f"--a_dim {config.a_dim}: the z that comes with the images has {entries} entries")
        config = replace(config, a_dim=entries)
    own = {"input_size": spec.size, "input_channels": spec.channels, "unets_channels": spec.width,
           "encoder_channels": spec.width, "denoiser": "mlp" if spec.kind == "points" else "unet",
           "flip": spec.flip}
    return replace(config, **{name: None for name, value in own.items() if getattr(config, name) == value})


def check(config: Config, mode: str | None, by_hand: frozenset[str]) -> None:
    """Refuse flags that contradict each other, naming them."""
    rules = (
        (config.has_latent and config.kld_weight > 0 and config.prior != "regular",
         f"--kld_weight {config.kld_weight:g} needs --prior regular: the KL to '{config.prior}' has no closed form"),
        (config.has_latent and config.prior == "roll" and config.a_dim != 2,
         f"--prior roll is two-dimensional: use --a_dim 2, not {config.a_dim}"),
        (config.has_latent and config.prior == "10mix" and config.a_dim % 2 == 1,
         f"--prior 10mix pairs the dimensions: --a_dim must be even, not {config.a_dim}"),
        (config.beta1 > config.betaT and config.schedule == "linear",
         f"--beta1 {config.beta1:g} is above --betaT {config.betaT:g}"),
        (config.deterministic and by_hand >= {"eta"} and config.eta > 0, "--deterministic is eta 0: drop --eta"),
        (config.deterministic and by_hand >= {"sampler"} and config.sampler != "ddim",
         f"--deterministic is DDIM with eta 0: drop it, or --sampler {config.sampler}"),
        (config.deterministic and config.inversion != "ddim", "--deterministic is DDIM: drop it, or --inversion"),
        *_sampler_rules(config, mode),
        (mode == "mutual_info" and config.curve_steps > 0 and config.split == "train",
         "--curve_steps fits its networks to the training split: measure --split val or test"),
        (config.denoiser in ("ddpm", "iddpm") and config.model != "vanilla",
         f"--denoiser {config.denoiser} takes no z: use --model vanilla"),
        (config.denoiser in ("ddpm", "iddpm") and config.init_from is None and mode == "train",
         f"--denoiser {config.denoiser} starts from pretrained weights: give --init_from PATH"),
        (not all(part.isalnum() or part in "-._" for part in config.tag) or len(config.tag) > 60,
         f"--tag '{config.tag}' goes into folder names: up to 60 letters, digits, '-', '_' and '.'"),
        (mode in ("mutual_info", "nll") and config.num_images == 1,
         "--num_images 1: an average and its standard error need two images at least"),
        *((mode not in (None, "save_original_img") and config.dataset == "folder"
           and _below(getattr(config, name), config.data_dir),
           f"--{name} {getattr(config, name)} lies in --data_dir {config.data_dir}: pictures that are drawn would be "
           "taken for data; give another one, or put the images in a folder of their own")
          for name in ("img_folder", "result_folder")),
        (mode == "disentangle" and len(config.img_id) > 1, "--img_id: --mode disentangle takes one image"),
    )
    _refuse_broken(rules)
    check_steps(config, by_hand)


def _below(folder: str, root: str) -> bool:
    folder, root = Path(folder).resolve(), Path(root).resolve()
    return folder == root or root in folder.parents


def _sampler_rules(config: Config, mode: str):
    """Flags of the sampler that contradict each other: (broken, message)."""
    own, name = config.sampler_used, "ddim" if config.deterministic else config.sampler
    fitted, steps = config.spacing == "fitted", config.sample_steps or own.steps or config.diffusion_steps
    inverts = mode in MODES and "inversion" in MODES[mode].uses
    return (
        ((config.order or 0) > own.orders, f"--order {config.order}: {name} has orders 1 to {own.orders}"),
        (fitted and inverts, f"--spacing fitted is for samples: --mode {mode} takes time, logsnr or karras"),
        (fitted and (own.random or config.eta > 0),
         f"--spacing fitted follows one path: {name} draws noise, use unipc, deis or another"),
        (fitted and steps > FITTED_STEPS,
         f"--spacing fitted is for up to {FITTED_STEPS} steps: give --sample_steps, not {steps}"),
    )


def check_steps(config: Config, by_hand: frozenset[str]) -> None:
    """Refuse more steps than the schedule has: the typed one, or the one of the checkpoint that is used."""
    _refuse_broken((
        (config.sample_steps is not None and config.sample_steps > config.diffusion_steps,
         f"--sample_steps {config.sample_steps} exceeds --diffusion_steps {config.diffusion_steps}"),
        ("split_step" in by_hand and config.split_step > config.diffusion_steps,
         f"--split_step {config.split_step} exceeds --diffusion_steps {config.diffusion_steps}"),
    ))


def _refuse_broken(rules) -> None:
    for broken, message in rules:
        if broken:
            raise CommandError(message)
