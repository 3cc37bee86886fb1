"""What an experiment is: one frozen `Config`, built once from the command line and stored whole in every checkpoint.

Each field carries its own flag: default, help, type and the modes that use it, so that a flag is declared in one place.
A field's `kind` says what happens to it after training:

    model      makes the experiment's name; later modes take it from the checkpoint and refuse a contradicting flag
    training   how the weights came about; a folder holding a run with another value is refused for training
    run        free to differ from call to call
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

from utils import CommandError

SAMPLING = ("eval", "eval_fid", "latent_quality", "disentangle", "interpolate")
TRAINING = ("train", "train_latent_ddim")
MODES = (
    "train", "eval", "eval_fid", "save_latent", "train_latent_ddim", "latent_quality", "disentangle", "interpolate",
    "plot_latent", "save_original_img", "nll", "mutual_info",
)


def integer(low: int, high: int = 2**31 - 1):
    """An argparse type: a whole number in [low, high]."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not in {low} .. {high}")
        return value

    parse.__name__ = "whole number"
    return parse


def number(low: float = -math.inf, high: float = math.inf, above: bool = False):
    """An argparse type: a finite number in [low, high], or in (low, high] where `above` is set."""

    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and low <= value <= high) or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is not a number {'above' if above else 'from'} {low} to {high}")
        return value

    parse.__name__ = "number"
    return parse


def flag(default, text, *, kind="run", modes=MODES, unset=None, **options):
    """A field with its flag. `unset` words the default for the help where it is None and decided later."""
    metadata = {"help": text, "kind": kind, "modes": modes, "unset": unset, "options": options}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Every flag's value. None stands for 'the data set's own' or 'the mode's own', as the flag's help says."""

    # What the model is
    model: str = flag("diff", "diff: InfoDiffusion; vae: the VAE family; vanilla: plain diffusion", kind="model",
                      choices=("diff", "vae", "vanilla"))
    dataset: str = flag("digits", "name of the data set", kind="model")
    a_dim: int = flag(32, "dimensions of the latent z", kind="model", type=integer(1, 65_536))
    prior: str = flag("regular", "prior of z: N(0, I), ten-armed mixture, or swiss roll", kind="model",
                      choices=("regular", "10mix", "roll"))
    kld_weight: float = flag(0.0, "weight of KL(q(z|x) || p(z)) [1 - zeta of the paper]", kind="model", type=number(0))
    mmd_weight: float = flag(0.1, "weight of MMD(q(z), p(z)) [lambda + zeta - 1]", kind="model", type=number(0))
    use_C: bool = flag(False, "pull KL towards a capacity C that grows during training (beta-VAE)", kind="model")
    C_max: float = flag(25.0, "the capacity at the end, in nats, with --use_C", kind="model", type=number(0))
    mmd_kernel: str = flag("scaled", "kernel bandwidth: proportional to a_dim, or the published a_dim squared",
                           kind="model", choices=("scaled", "published"))
    is_bottleneck: bool = flag(False, "let z act in the middle of the U-Net only", kind="model")
    conditioning: str = flag("adanorm", "how z acts: adaptive normalisation, or cross-attention to its scalars",
                             kind="model", choices=("adanorm", "crossattn"))
    z_dropout: float = flag(0.0, "share of training samples whose z is replaced by a learned null; above 0 trains the "
                            "unconditional branch too", kind="model", type=number(0, 0.99))
    loss: str = flag("simple", "simple: mean squared noise error; itd: nats, log-SNR drawn from a logistic",
                     kind="model", choices=("simple", "itd"))
    logsnr_loc: float | None = flag(None, "centre of the logistic over log-SNR, for --loss itd", kind="model",
                                    unset="from the data's spectrum", type=number())
    logsnr_scale: float | None = flag(None, "scale of the logistic over log-SNR, for --loss itd", kind="model",
                                      unset="from the data's spectrum", type=number(0, above=True))
    logsnr_clip: float | None = flag(None, "cut the log-SNR range at loc -+ this many scales, for --loss itd",
                                     kind="model", unset="the range that the data's spectrum asks for",
                                     type=number(0, 60, above=True))
    schedule: str = flag("linear", "noise schedule of the discrete steps", kind="model", choices=("linear", "cosine"))
    beta1: float = flag(1e-5, "first beta of the linear schedule", kind="model", type=number(0, 0.999, above=True))
    betaT: float = flag(1e-2, "last beta of the linear schedule", kind="model", type=number(0, 0.999, above=True))
    diffusion_steps: int = flag(1000, "steps T of the schedule", kind="model", type=integer(2, 100_000))
    denoiser: str | None = flag(None, "network: our U-Net, our MLP (points), or one made elsewhere (--init_from)",
                                kind="model", unset="unet for images, mlp for points",
                                choices=("unet", "mlp", "ddpm", "iddpm"))
    input_size: int | None = flag(None, "pixels a side", kind="model", unset="the data set's own",
                                  type=integer(1, 1024))
    input_channels: int | None = flag(None, "colour channels, 1 or 3", kind="model", unset="the data set's own",
                                      type=int, choices=(1, 3))
    unets_channels: int | None = flag(None, "base channels of the U-Net, VAE or MLP", kind="model",
                                      unset="the data set's own", type=integer(1, 4096))
    encoder_channels: int | None = flag(None, "base channels of the encoder", kind="model",
                                        unset="the data set's own", type=integer(1, 4096))
    tag: str = flag("", "a name added to the experiment's, to keep runs apart", kind="model")

    # How it is trained
    r_seed: int = flag(0, "seed of everything random", kind="training", type=integer(0, 2**31 - 1))
    epochs: int = flag(20, "train: where training ends; other modes: which checkpoint (the newest where absent)",
                       type=integer(1))
    batch_size: int = flag(64, "images a step, over all processes", kind="training", type=integer(1))
    learning_rate: float = flag(1e-4, "learning rate", kind="training", modes=(*TRAINING, "mutual_info"),
                                type=number(0, 1, above=True))
    lr_schedule: str = flag("cosine", "one warm-up epoch to twice the rate and then a cosine, or constant",
                            kind="training", modes=TRAINING, choices=("cosine", "constant"))
    optimizer: str = flag("adamw", "optimiser (weight decay 1e-5 with adamw)", kind="training", modes=TRAINING,
                          choices=("adamw", "adam"))
    ema_decay: float = flag(0.9999, "decay a step of the averaged weights; warmed up, so short runs profit",
                            kind="training", modes=TRAINING, type=number(0, 1))
    dropout: float = flag(0.1, "dropout in the residual blocks", kind="training", modes=TRAINING, type=number(0, 0.99))
    init_from: str | None = flag(None, "folder or file of the weights to start from (--denoiser ddpm or iddpm)",
                                 kind="training", unset="none")
    max_steps: int | None = flag(None, "stop after this many steps, whatever --epochs says", modes=TRAINING,
                                 unset="no limit", type=integer(1))
    precision: str = flag("auto", "arithmetic in training and sampling; auto is bf16 on a GPU that has it, else fp32",
                          kind="training", choices=("auto", "fp32", "bf16", "fp16"))
    compile: bool = flag(False, "compile the network with torch.compile (minutes on a CPU)")
    resume: bool = flag(True, "go on where an interrupted run stopped; --no-resume starts afresh", modes=TRAINING)
    save_epochs: int = flag(5, "epochs between kept checkpoints", modes=TRAINING, type=integer(1))
    save_minutes: float = flag(10.0, "minutes between writes of last.pth within an epoch", modes=TRAINING,
                               type=number(0, above=True))
    display_epochs: int | None = flag(None, "epochs between sample grids", modes=TRAINING,
                                      unset="as --save_epochs", type=integer(1))
    tb_logger: bool = flag(False, "write TensorBoard events too", modes=TRAINING)

    # Sampling
    sampling_number: int = flag(16, "how many images", modes=(*SAMPLING, *TRAINING), type=integer(1))
    sampler: str = flag("ddpm", "sampler", modes=SAMPLING, choices=("ddpm", "ddim", "dpmpp"))
    deterministic: bool = flag(False, "DDIM with eta = 0, exactly", modes=(*SAMPLING, *TRAINING))
    sample_steps: int | None = flag(None, "steps of the sampler", modes=(*SAMPLING, *TRAINING),
                                    unset="--diffusion_steps; 20 with dpmpp; 50 where images are inverted",
                                    type=integer(2))
    spacing: str = flag("time", "sampler steps uniform in time or in log-SNR", modes=SAMPLING,
                        choices=("time", "logsnr"))
    eta: float = flag(0.0, "noise of DDIM, 0 to 1", modes=SAMPLING, type=number(0, 1))
    guidance: float = flag(1.0, "classifier-free guidance w: 1 is none; needs --z_dropout in training",
                           modes=SAMPLING, type=number(0))
    split_step: int = flag(500, "two-phase sampling: steps left to InfoDiffusion after plain diffusion",
                           modes=("eval", "eval_fid"), type=integer(0))
    is_latent: bool = flag(False, "draw z from the latent diffusion (train_latent_ddim) and not from the prior",
                           modes=("eval", "eval_fid", "plot_latent"))
    vanilla_from: str | None = flag(None, "checkpoint of the vanilla model of two-phase sampling",
                                    modes=("eval", "eval_fid"), unset="the newest of models/vanilla/EXP")

    # Measuring
    split: str | None = flag(None, "which part of the data", unset="the mode's own", choices=("train", "val", "test"))
    img_id: tuple[str, ...] = flag(("0",), "number of an image in the split; interpolate: two numbers or two files",
                                   modes=("disentangle", "interpolate"), nargs="+")
    disent_metric: str = flag("dci", "disentanglement score", modes=("save_latent",), choices=("dci", "tad"))
    num_images: int | None = flag(None, "how many images are measured", unset="1,000; all for save_latent",
                                  modes=("latent_quality", "save_latent", "nll", "mutual_info", "save_original_img",
                                         "plot_latent"), type=integer(1))
    npoints: int = flag(100, "log-SNR evaluations an image", modes=("nll", "mutual_info"), type=integer(1))
    soft: bool = flag(False, "report the soft-rounded discrete bound too", modes=("nll",))
    ensemble: tuple[str, ...] = flag((), "further checkpoints whose best error at each log-SNR counts",
                                     modes=("nll",), nargs="+", unset="none")
    tau: tuple[float, ...] = flag((0.1, 0.3, 1.0), "deviations of the noise on z, in units of its own deviation",
                                  modes=("mutual_info",), nargs="+", type=number(0, above=True))
    mi_steps: int = flag(2000, "steps to fit the denoiser that is told tau", modes=("mutual_info",), type=integer(1))

    # Where things are and what runs them
    data_dir: str = flag("./data", "folder of the data sets")
    model_folder: str = flag("./models", "root of the checkpoints")
    img_folder: str = flag("./imgs", "root of the pictures")
    log_folder: str = flag("./logs", "root of the logs")
    result_folder: str = flag("./results", "root of the measured numbers")
    num_workers: int = flag(2, "worker processes for sets that do not fit in memory", type=integer(0, 256))
    device: str | None = flag(None, "cpu, cuda, cuda:1 ...", unset="cuda where there is one, else cpu")
    dry_run: bool = flag(False, "print the resolved config, the parameters and the output folders, and stop")

    @property
    def experiment(self) -> str:
        """The experiment's name: a path below each root that says what the model is."""
        return _experiment(self)

    @property
    def has_latent(self) -> bool:
        return self.model != "vanilla"


class Command(NamedTuple):
    """A parsed command line: what is to run, on which config, and which flags were typed by hand."""

    mode: str
    config: Config
    given: frozenset[str]


_FIELDS = {item.name: item for item in fields(Config)}
# In the published string in their own form, or of no account for the name.
_NAMED = {"model", "dataset", "a_dim", "prior", "kld_weight", "mmd_weight", "use_C", "C_max", "is_bottleneck", "tag"}
_SHORT = {
    "mmd_kernel": "{}kernel", "conditioning": "{}", "z_dropout": "{:g}zdrop", "loss": "{}", "logsnr_loc": "{:g}loc",
    "logsnr_scale": "{:g}scale", "logsnr_clip": "{:g}clip", "schedule": "{}", "beta1": "{:g}beta1",
    "betaT": "{:g}betaT", "diffusion_steps": "{}steps", "denoiser": "{}", "input_size": "{}px",
    "input_channels": "{}ch", "unets_channels": "{}unet", "encoder_channels": "{}enc",
}
_LATENT_ONLY = {"mmd_kernel", "conditioning", "z_dropout", "encoder_channels"}
_OF_Z = ("a_dim", "prior", "kld_weight", "mmd_weight", "use_C", "C_max", "mmd_kernel", "is_bottleneck", "conditioning",
         "encoder_channels")


def names_of(kind: str) -> tuple[str, ...]:
    """The fields of one kind: 'model', 'training' or 'run'."""
    return tuple(name for name, item in _FIELDS.items() if item.metadata["kind"] == kind)


def _experiment(config: Config) -> str:
    parts = [config.dataset]
    if config.has_latent:
        parts.append(f"{config.a_dim}d")
        if config.kld_weight:
            parts += [f"{config.kld_weight:g}kld"] + ([f"{config.C_max:g}C"] if config.use_C else [])
        if config.mmd_weight:
            parts.append(f"{config.mmd_weight:g}mmd")
        if config.prior != "regular":
            parts.append(config.prior)
        if config.is_bottleneck:
            parts.append("bottleneck")
    for name, form in _SHORT.items():
        value = getattr(config, name)
        if value != _FIELDS[name].default and (config.has_latent or name not in _LATENT_ONLY):
            parts.append(form.format(value))
    if config.tag:
        parts.append(config.tag)
    above = "" if config.model == "diff" else f"{config.model}/"
    return above + "_".join(parts)


def folder(config: Config, root: str) -> Path:
    """The experiment's folder below the root 'models', 'imgs', 'logs' or 'results'."""
    roots = {"models": config.model_folder, "imgs": config.img_folder,
             "logs": config.log_folder, "results": config.result_folder}
    return Path(roots[root]) / config.experiment


# ---------------------------------------------------------------------------------------------------------------------
# From the command line


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors become our one-line ones."""

    def error(self, message: str):
        raise CommandError(message)


def _default_text(item) -> str:
    if item.metadata["unset"]:
        return item.metadata["unset"]
    if isinstance(item.default, tuple):
        return " ".join(map(str, item.default))
    if isinstance(item.default, bool):
        return "on" if item.default else "off"
    return str(item.default) or "none"


def _add_flag(parser: argparse.ArgumentParser, item, shown: bool) -> None:
    options = dict(item.metadata["options"])
    text = f"{item.metadata['help']} (default: {_default_text(item)})".replace("%", "%%")
    names = ["-e", "--epochs"] if item.name == "epochs" else [f"--{item.name}"]
    if item.name == "resume":
        options["action"] = argparse.BooleanOptionalAction
    elif isinstance(item.default, bool):
        options["action"] = "store_true"
    parser.add_argument(*names, default=argparse.SUPPRESS, help=text if shown else argparse.SUPPRESS, **options)


def build_parser(prog: str, mode: str | None = None) -> argparse.ArgumentParser:
    """The parser of every flag. With a mode, its help shows the flags that this mode uses."""
    parser = _Parser(prog=prog, description="Train, sample and measure diffusion models that learn representations.")
    parser.add_argument("--mode", choices=MODES, default="train", help="what to do (default: train)")
    for kind, title in {"model": "what the model is", "training": "how it is trained", "run": "this call"}.items():
        group = parser.add_argument_group(title)
        for name in names_of(kind):
            _add_flag(group, _FIELDS[name], shown=mode is None or mode in _FIELDS[name].metadata["modes"])
    return parser


def parse(argv: list[str], prog: str, datasets: dict, extra=None) -> Command | tuple[Command, argparse.Namespace]:
    """Turn a command line into a `Command`.

    argv      the words after the program's name
    extra     a function that adds a program's own flags to an argparse group; their namespace is then returned too
    datasets  name -> data.Spec, the data sets that exist
    Raises CommandError for an unknown flag, a value out of its range, or flags that contradict each other.
    """
    first = _Parser(add_help=False)
    first.add_argument("--mode", choices=MODES)
    mode = first.parse_known_args(argv)[0].mode
    parser = build_parser(prog, mode)
    own = [action.dest for action in _add_extra(parser, extra)]
    typed = vars(parser.parse_args(argv))
    others = argparse.Namespace(**{name: typed.pop(name) for name in own})
    mode = typed.pop("mode")
    given = frozenset(typed)
    config = _normalise(Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in typed.items()}), datasets)
    _check(config, mode, given)
    command = Command(mode, config, given)
    return (command, others) if extra else command


def _add_extra(parser: argparse.ArgumentParser, extra) -> list[argparse.Action]:
    if extra is None:
        return []
    before = len(parser._actions)
    extra(parser.add_argument_group("this program"))
    return parser._actions[before:]


def _normalise(config: Config, datasets: dict) -> Config:
    """None for sizes typed by hand that are the data set's own, and of what the model lacks the default.

    One experiment has one name, however it was typed. Raises CommandError for an unknown data set, and for flags of
    image networks on points.
    """
    spec = datasets.get(config.dataset)
    if spec is None:
        raise CommandError(f"argument --dataset: unknown data set '{config.dataset}' (known: {', '.join(datasets)})")
    own = {"input_size": spec.size, "input_channels": spec.channels, "unets_channels": spec.width,
           "encoder_channels": spec.width, "denoiser": "mlp" if spec.kind == "points" else "unet"}
    idle = {name: None for name, value in own.items() if getattr(config, name) == value}
    if config.model == "vanilla" and not spec.gives_z:  # z_dropout is refused by name, the rest is harmless
        idle |= {name: _FIELDS[name].default for name in _OF_Z}
    if config.has_latent and spec.kind == "points" and (config.is_bottleneck or config.conditioning != "adanorm"):
        raise CommandError(f"--is_bottleneck and --conditioning crossattn are the U-Net's: {config.dataset} has points")
    return replace(config, **idle)


def _check(config: Config, mode: str, given: frozenset[str]) -> None:
    """Refuse flags that contradict each other, naming them."""
    rules = (
        (config.has_latent and config.kld_weight > 0 and config.prior != "regular",
         f"--kld_weight {config.kld_weight:g} needs --prior regular: the KL to '{config.prior}' has no closed form"),
        (config.has_latent and config.prior == "roll" and config.a_dim != 2,
         f"--prior roll is two-dimensional: use --a_dim 2, not {config.a_dim}"),
        (config.has_latent and config.prior == "10mix" and config.a_dim % 2 == 1,
         f"--prior 10mix pairs the dimensions: --a_dim must be even, not {config.a_dim}"),
        (config.use_C and config.kld_weight == 0, "--use_C shapes the KL term: give --kld_weight above 0"),
        (config.beta1 > config.betaT and config.schedule == "linear",
         f"--beta1 {config.beta1:g} is above --betaT {config.betaT:g}"),
        (config.model == "vae" and config.loss == "itd", "--loss itd needs a diffusion model: --model diff or vanilla"),
        (config.model == "vae" and config.z_dropout > 0, "--z_dropout needs a diffusion decoder: --model diff"),
        (config.model == "vanilla" and config.z_dropout > 0, "--z_dropout needs a latent: --model diff"),
        (config.deterministic and given >= {"eta"} and config.eta > 0, "--deterministic is eta 0: drop --eta"),
        (config.deterministic and given >= {"sampler"} and config.sampler != "ddim",
         f"--deterministic is DDIM with eta 0: drop it, or --sampler {config.sampler}"),
        (config.denoiser in ("ddpm", "iddpm") and config.model != "vanilla",
         f"--denoiser {config.denoiser} takes no z: use --model vanilla"),
        (config.denoiser in ("ddpm", "iddpm") and config.init_from is None and mode == "train",
         f"--denoiser {config.denoiser} starts from somebody's weights: give --init_from PATH"),
        (config.init_from is not None and config.denoiser not in ("ddpm", "iddpm"),
         "--init_from needs --denoiser ddpm or iddpm"),
        (not all(part.isalnum() or part in "-._" for part in config.tag) or len(config.tag) > 60,
         f"--tag '{config.tag}' goes into folder names: up to 60 letters, digits, '-', '_' and '.'"),
        (mode == "disentangle" and len(config.img_id) > 1, "--img_id: --mode disentangle takes one image"),
    )
    _refuse_broken(rules)
    _check_steps(config, given)


def _check_steps(config: Config, given: frozenset[str]) -> None:
    """Refuse more steps than the schedule has: the typed one, or the one of the checkpoint that is used."""
    _refuse_broken((
        (config.sample_steps is not None and config.sample_steps > config.diffusion_steps,
         f"--sample_steps {config.sample_steps} exceeds --diffusion_steps {config.diffusion_steps}"),
        ("split_step" in given and config.split_step > config.diffusion_steps,
         f"--split_step {config.split_step} exceeds --diffusion_steps {config.diffusion_steps}"),
    ))


def _refuse_broken(rules) -> None:
    for broken, message in rules:
        if broken:
            raise CommandError(message)


# ---------------------------------------------------------------------------------------------------------------------
# To and from checkpoints


def to_dict(config: Config) -> dict:
    return asdict(config)


def trained(config: Config, given: frozenset[str], stored: dict, path: Path) -> Config:
    """This call's config with what the model is taken from its checkpoint.

    Raises CommandError where a flag typed by hand contradicts the checkpoint at `path`.
    """
    for name in names_of("model"):
        if name in given and getattr(config, name) != stored[name]:
            raise CommandError(f"--{name} {getattr(config, name)} contradicts {path}, trained with {stored[name]}")
    config = replace(config, **{name: stored[name] for name in names_of("model")})
    _check_steps(config, given)
    return config


def refuse_other_run(config: Config, stored: dict, path: Path) -> None:
    """Raise CommandError where the folder of `path` holds a run with another way of training."""
    for name in (*names_of("model"), *names_of("training")):
        if getattr(config, name) != stored[name]:
            raise CommandError(
                f"{path.parent} holds a run with --{name} {stored[name]}, not {getattr(config, name)}: "
                f"add --tag NAME for a run of its own, or --no-resume to replace it"
            )
