"""A flag is one field of `Config` that carries all there is to say of it:

    kind       model      makes the experiment's name; later modes take it from the checkpoint
               training   how the weights came about; a folder holding a run with another value is refused for training
               run        free to differ from call to call
    modes      the modes, or groups of modes (`Mode.uses`), that read it; None: all
    in_name    how its value stands in the experiment's name, for kind 'model'
    needs      without which it has no effect on the model or the data at hand
    anywhere   published commands, or one set of sizes for every --model, give it everywhere: where it has no effect
               it is passed over, and not refused
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from config.modes import MODELS, MODES, SAMPLERS, SPACINGS, Mode, Sampler
from config.types import integer, number, place


class Need(NamedTuple):
    """What a flag needs to have an effect: in words, and as a test of the config and the data set's Spec."""

    words: str
    met: Callable[[Config, object], bool]


LATENT = Need("a model with a latent: --model diff or vae", lambda config, spec: config.has_latent)
DIFFUSION = Need("a diffusion model: --model diff or vanilla", lambda config, spec: config.model != "vae")
DIFFUSION_OF_Z = Need("a diffusion decoder of z: --model diff", lambda config, spec: config.model == "diff")
UNET_OF_Z = Need("a U-Net conditioned on z: --model diff and a data set of images",
                 lambda config, spec: config.model == "diff" and spec.kind == "image")
IMAGES = Need("a data set of images, not points", lambda config, spec: spec.kind == "image")
LATENT_IMAGES = Need("a model of z, and images with labels: --model diff --dataset shapes3d",
                     lambda config, spec: config.model == "diff" and spec.labels != "none" and spec.kind == "image")
Z_FROM = Need("--z_from", lambda config, spec: bool(config.z_from))
PAIRS = Need("pairs of images: --dataset blobs or rectangles", lambda config, spec: spec.z_is_image)
KL = Need("--kld_weight above 0", lambda config, spec: config.has_latent and config.kld_weight > 0)
CAPACITY = Need("--use_C", lambda config, spec: config.use_C)
MMD = Need("--mmd_weight above 0", lambda config, spec: config.has_latent and config.mmd_weight > 0)
ITD = Need("--loss itd", lambda config, spec: config.loss == "itd")
ETA = Need("--sampler ddim", lambda config, spec: config.model != "vae" and "eta" in config.sampler_used.options)
ORDER = Need("--sampler unipc, deis or ipndm",
             lambda config, spec: config.model != "vae" and "order" in config.sampler_used.options)
LINEAR = Need("--schedule linear", lambda config, spec: config.model != "vae" and config.schedule == "linear")
FOREIGN = Need("--denoiser ddpm or iddpm", lambda config, spec: config.denoiser in ("ddpm", "iddpm"))


def flag(default, text, *, kind="run", modes=None, in_name=None, needs=None, anywhere=False, unset=None, **options):
    """A field with its flag; the module's docstring says what its record holds.

    text        what it is; where modes differ, by mode or group of modes (`words_for`)
    in_name     a format for any value but the default; or a function of the config that gives the words, '' for none
    unset       words the default for the help where it is None and decided later; by mode like `text`
    options     of argparse
    """
    metadata = {"help": text, "kind": kind, "modes": modes, "in_name": in_name, "needs": needs, "anywhere": anywhere,
                "unset": unset, "options": options}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Every flag's value. None stands for 'the data set's own' or 'the mode's own', as the flag's help says."""

    # What the model is, in the order of the experiment's name
    model: str = flag("diff", "diff: InfoDiffusion; vae: the VAE family; vanilla: plain diffusion", kind="model",
                      in_name=lambda config: "", choices=MODELS)
    dataset: str = flag("digits", "name of the data set", kind="model", in_name=lambda config: config.dataset)
    a_dim: int = flag(32, "dimensions of the latent z", kind="model", anywhere=True, type=integer(1, 65_536),
                      in_name=lambda config: f"{config.a_dim}d" if config.has_latent else "")
    kld_weight: float = flag(0.0, "weight of KL(q(z|x) || p(z)) [1 - zeta of the paper]", kind="model", needs=LATENT,
                             type=number(0), in_name="{:g}kld")
    use_C: bool = flag(False, "pull KL towards a capacity C that grows during training (beta-VAE)", kind="model",
                       needs=KL, in_name=lambda config: f"{config.C_max:g}C" if config.use_C else "")
    C_max: float = flag(25.0, "the capacity at the end, in nats, with --use_C", kind="model", needs=CAPACITY,
                        type=number(0), in_name=lambda config: "")  # beside use_C
    mmd_weight: float = flag(0.1, "weight of MMD(q(z), p(z)) [lambda + zeta - 1]", kind="model", needs=LATENT,
                             anywhere=True, type=number(0), in_name=lambda config: (
                                 f"{config.mmd_weight:g}mmd" if config.has_latent and config.mmd_weight else ""))
    prior: str = flag("regular", "prior of z: N(0, I), ten-armed mixture, or swiss roll", kind="model", needs=LATENT,
                      anywhere=True, in_name="{}", choices=("regular", "10mix", "roll"))
    is_bottleneck: bool = flag(False, "let z act in the middle of the U-Net only", kind="model", needs=UNET_OF_Z,
                               in_name="bottleneck")
    mmd_kernel: str = flag("scaled", "kernel bandwidth: proportional to a_dim, or the published a_dim squared",
                           kind="model", needs=MMD, in_name="{}kernel", choices=("scaled", "published"))
    conditioning: str = flag("adanorm", "how z acts: adaptive normalisation, or cross-attention to its scalars",
                             kind="model", needs=UNET_OF_Z, in_name="{}", choices=("adanorm", "crossattn"))
    z_from: tuple[str, ...] = flag((), "z is these labels of the image (floor_hue shape), and no encoder's code; "
                                   "'independent' after them: those of another image", kind="model", nargs="+",
                                   needs=LATENT_IMAGES, in_name=lambda config: "+".join(config.z_from), unset="none")
    z_noise: float = flag(0.0, "error of the channel that labels go through: else evenly any other value",
                          kind="model", needs=Z_FROM, in_name="{:g}znoise", type=number(0, 1))
    z_code: str = flag("onehot", "labels as one-hot vectors, or as one standardised number each", kind="model",
                       needs=Z_FROM, in_name="{}", choices=("onehot", "standardised"))
    pair_nats: float = flag(2.0, "nats that a pair of images shares, for --dataset blobs or rectangles", kind="model",
                            needs=PAIRS, in_name="{:g}nats", type=number(0, 20))
    z_dropout: float = flag(0.0, "share of training samples whose z is replaced by a learned null; above 0 trains the "
                            "unconditional branch too", kind="model", needs=DIFFUSION_OF_Z, in_name="{:g}zdrop",
                            type=number(0, 0.99))
    loss: str = flag("simple", "simple: mean squared noise error; itd: nats, log-SNR drawn from a logistic",
                     kind="model", needs=DIFFUSION, in_name="{}", choices=("simple", "itd"))
    logsnr_loc: float | None = flag(None, "centre of the logistic over log-SNR, for --loss itd", kind="model",
                                    needs=ITD, in_name="{:g}loc", unset="from the data's spectrum", type=number())
    logsnr_scale: float | None = flag(None, "scale of the logistic over log-SNR, for --loss itd", kind="model",
                                      needs=ITD, in_name="{:g}scale", unset="from the data's spectrum",
                                      type=number(0, above=True))
    logsnr_clip: float | None = flag(None, "cut the log-SNR range at loc -+ this many scales, for --loss itd",
                                     kind="model", needs=ITD, in_name="{:g}clip",
                                     unset="the range that the data's spectrum asks for",
                                     type=number(0, 60, above=True))
    schedule: str = flag("linear", "noise schedule of the discrete steps", kind="model", needs=DIFFUSION, in_name="{}",
                         choices=("linear", "cosine"))
    beta1: float = flag(1e-5, "first beta of the linear schedule", kind="model", needs=LINEAR, in_name="{:g}beta1",
                        type=number(0, 0.999, above=True))
    betaT: float = flag(1e-2, "last beta of the linear schedule", kind="model", needs=LINEAR, in_name="{:g}betaT",
                        type=number(0, 0.999, above=True))
    diffusion_steps: int = flag(1000, "steps T of the schedule", kind="model", needs=DIFFUSION, anywhere=True,
                                in_name="{}steps", type=integer(2, 100_000))
    denoiser: str | None = flag(None, "network: our U-Net, our MLP (points), or a pretrained one (--init_from)",
                                kind="model", needs=DIFFUSION, in_name="{}", unset="unet for images, mlp for points",
                                choices=("unet", "mlp", "ddpm", "iddpm"))
    input_size: int | None = flag(None, "pixels a side", kind="model", needs=IMAGES, in_name="{}px",
                                  unset="the data set's own", type=integer(1, 1024))
    input_channels: int | None = flag(None, "colour channels, 1 or 3", kind="model", needs=IMAGES, in_name="{}ch",
                                      unset="the data set's own", type=int, choices=(1, 3))
    unets_channels: int | None = flag(None, "base channels of the U-Net, VAE or MLP", kind="model", in_name="{}unet",
                                      unset="the data set's own", type=integer(1, 4096))
    encoder_channels: int | None = flag(None, "base channels of the encoder", kind="model", needs=LATENT, anywhere=True,
                                        in_name="{}enc", unset="the data set's own", type=integer(1, 4096))
    tag: str = flag("", "a name added to the experiment's, to keep runs apart", kind="model", in_name="{}")

    # How it is trained
    r_seed: int = flag(0, "seed of everything random", kind="training", type=integer(0, 2**31 - 1))
    epochs: int = flag(20, {"training": "where training ends", "": "which checkpoint",
                            "train_classifier.py": "which checkpoint; with --images where training ends"},
                       anywhere=True, type=integer(1), unset={
                           "training": "20", "train_classifier.py": "the newest; with --images 20", "": "the newest"})
    batch_size: int = flag(64, {"training": "images a step, over all processes",
                                "train_classifier.py": "images at a time, or a step",
                                "": "images at a time, over all processes"}, kind="training", type=integer(1))
    learning_rate: float = flag(1e-4, "learning rate", kind="training",
                                unset={"train_classifier.py": "0.001, of --images", "": "0.0001"},
                                modes=("training", "mutual_info", "train_classifier.py"),
                                type=number(0, 1, above=True))
    lr_schedule: str = flag("cosine", "one warm-up epoch to twice the rate and then a cosine, or constant",
                            kind="training", modes=("training",), choices=("cosine", "constant"))
    optimizer: str = flag("adamw", "optimiser (weight decay 1e-5 with adamw)", kind="training", modes=("training",),
                          choices=("adamw", "adam"))
    ema_decay: float = flag(0.9999, "decay a step of the averaged weights; warmed up, so short runs profit",
                            kind="training", modes=("training",), type=number(0, 1))
    dropout: float = flag(0.1, "dropout in the residual blocks", kind="training", modes=("training",), needs=IMAGES,
                          type=number(0, 0.99))
    flip: bool | None = flag(None, "mirror half of the training images, left to right", kind="training",
                             modes=("train",), needs=IMAGES, unset="the data set's own; off for folder")
    init_from: str | None = flag(None, "folder or file of the weights to start from (--denoiser ddpm or iddpm)",
                                 kind="training", modes=("train", "nll"), needs=FOREIGN, unset="none", type=place)
    max_steps: int | None = flag(None, "stop after this many steps, whatever --epochs says",
                                 modes=("training", "train_classifier.py"), unset="no limit", type=integer(1))
    precision: str = flag("auto", "arithmetic in training and sampling; auto is bf16 on a GPU that has it, else fp32",
                          kind="training", choices=("auto", "fp32", "bf16", "fp16"))
    compile: str = flag("auto", "region: normalisation and what follows it as one operation, compiled once, in "
                        "seconds; full: the network by torch.compile (minutes); off: torch's own operations; auto: "
                        "region where a compiler is at hand", choices=("auto", "off", "region", "full"))
    resume: bool = flag(True, "go on where an interrupted run stopped; --no-resume starts afresh", modes=("training",))
    save_epochs: int = flag(5, "epochs between kept checkpoints", modes=("training",), type=integer(1))
    keep: int | None = flag(None, "how many of the kept checkpoints stay, the newest; best.pth and last.pth do anyway",
                            modes=("training",), unset="all", type=integer(1))
    save_minutes: float = flag(10.0, "minutes between writes of last.pth within an epoch", modes=("training",),
                               type=number(0, above=True))
    display_epochs: int | None = flag(None, "epochs between sample grids", modes=("training",),
                                      unset="as --save_epochs", type=integer(1))
    fid_epochs: int | None = flag(None, "epochs between FIDs of 1,000 samples, which go to the log; the best is kept "
                                  "as best.pth", modes=("train",), needs=IMAGES, unset="none", type=integer(1))
    best: bool = flag(False, "read best.pth, which --fid_epochs keeps, in place of the newest checkpoint",
                      modes=("sampling", "inversion", "measuring", "save_latent", "plot_latent", "export"))
    tb_logger: bool = flag(False, "write TensorBoard events too", modes=("training",))

    # Sampling
    sampling_number: int = flag(16, {"training": "images of a grid", "sampling": "how many images",
                                     "latent_quality": "how many random x_T an image"},
                                modes=("sampling", "training", "latent_quality"), anywhere=True, type=integer(1))
    sampler: str = flag("unipc", "; ".join(f"{name}: {own.text}" for name, own in SAMPLERS.items()),
                        modes=("sampling",), needs=DIFFUSION, choices=tuple(SAMPLERS))
    deterministic: bool = flag(False, "DDIM with eta = 0, exactly", modes=("sampling",), anywhere=True)
    sample_steps: int | None = flag(None, "steps of the sampler", modes=("sampling", "inversion"), needs=DIFFUSION,
                                    unset={"sampling": "20 evaluations; --diffusion_steps with ddpm and ddim",
                                           "inversion": "50"}, type=integer(2))
    spacing: str | None = flag(None, "how the sampler's levels lie: " + "; ".join(
                                   f"{name}: {text}" for name, text in SPACINGS.items()),
                               modes=("sampling", "inversion"), needs=DIFFUSION, choices=tuple(SPACINGS),
                               unset={"sampling": "logsnr; time with ddpm and ddim", "inversion": "time"})
    order: int | None = flag(None, "order of the sampler", modes=("sampling",), needs=ORDER, unset="3; ipndm 4",
                             type=integer(1, 4))
    inversion: str = flag("ddim", "how images are inverted and decoded: ddim, or heun, of second order",
                          modes=("inversion",), needs=DIFFUSION, choices=("ddim", "heun"))
    eta: float = flag(0.0, "noise of DDIM, 0 to 1", modes=("sampling",), needs=ETA, type=number(0, 1))
    guidance: float = flag(1.0, "classifier-free guidance w: 1 is none; needs --z_dropout in training",
                           modes=("sampling",), needs=DIFFUSION_OF_Z, type=number(0))
    split_step: int = flag(500, "two-phase sampling: plain diffusion's steps, from the noise on; then InfoDiffusion's",
                           modes=("sampling",), needs=DIFFUSION_OF_Z, type=integer(0))
    is_latent: bool = flag(False, "draw z from the latent diffusion (train_latent_ddim) and not from the prior",
                           modes=("sampling",), needs=DIFFUSION_OF_Z)
    vanilla_from: str | None = flag(None, "checkpoint of the vanilla model of two-phase sampling", modes=("sampling",),
                                    needs=DIFFUSION_OF_Z, unset="the newest of models/vanilla/EXP", type=place)

    # Measuring
    split: str | None = flag(None, "which part of the data", modes=("split",),
                             unset={"save_original_img": "train", "": "test"}, choices=("train", "val", "test"))
    img_id: tuple[str, ...] = flag(("0",), {"interpolate": "two numbers of images in the split, or two image files; "
                                                         "one number: it and the next",
                                          "": "number of an image in the split, or an image file, cut as the data "
                                              "set's own"}, modes=("disentangle", "interpolate", "manipulate"),
                                   nargs="+", type=place)
    label: str | None = flag(None, {"plot_latent": "label column that colours the points",
                                    "manipulate": "the class, attribute or FACTOR=VALUE to move along"},
                             modes=("plot_latent", "manipulate"),
                             unset={"plot_latent": "the last column", "manipulate": "none"})
    strengths: tuple[float, ...] = flag((-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6), "how far to move, in units of "
                                        "sqrt(a_dim) of standardised z", modes=("manipulate",), nargs="+",
                                        type=number(-100, 100))
    disent_metric: str = flag("dci", "disentanglement score", modes=("save_latent", "eval_disentanglement.py"),
                              choices=("dci", "tad"))
    num_images: int | None = flag(None, {"manipulate": "how many training images the direction is found with",
                                         "": "how many images, the split's first"},
                                  unset={"manipulate": "10,000", "plot_latent": "5,000", "nll": "1,000",
                                         "mutual_info": "10,000 for the interval, 1,000 for the denoiser",
                                         "latent_quality": "1,000", "": "all"}, type=integer(1), modes=(
                                      "latent_quality", "save_latent", "measuring", "save_original_img", "plot_latent",
                                      "manipulate"))
    npoints: int = flag(100, "log-SNR evaluations an image", modes=("measuring",), type=integer(1))
    soft: bool = flag(False, "report the soft-rounded discrete bound too", modes=("nll",), needs=IMAGES)
    ensemble: tuple[str, ...] = flag((), "further checkpoints whose best error at each log-SNR counts",
                                     modes=("nll",), nargs="+", unset="none", type=place)
    tau: tuple[float, ...] = flag((1.0, 2.0, 4.0), "deviations of the noise on z, in units of its own deviation",
                                  modes=("mutual_info", "eval_disentanglement.py"), nargs="+",
                                  type=number(0, above=True))
    mi_steps: int = flag(2000, "steps to fit the denoiser conditioned on tau; 0: the interval alone",
                         modes=("mutual_info",), type=integer(0))
    curve_steps: int = flag(0, "steps to fit each of the two networks that bound I(x_a; z), or I of the labels; 0: no "
                            "curve", modes=("mutual_info",), type=integer(0))
    codes: tuple[str, ...] = flag((), "files of codes (save_latent's) to measure; no model is needed",
                                  modes=("mutual_info", "eval_disentanglement.py"), nargs="+",
                                  metavar="FILE.npz", type=place, unset="the model's own")

    range: float = flag(1.5, "set each latent dimension to eleven values from minus this to this",
                        modes=("disentangle",), type=number(0, above=True))
    random_x_T: int = flag(2, "further rows from so many random x_T: the inferred one pins the picture",
                           modes=("disentangle",), needs=DIFFUSION, type=integer(0, 64))
    format: str = flag("png", "of figures and labelled sheets; pdf has text and curves as vectors",
                       modes=("training", "latent_quality", "disentangle", "interpolate", "manipulate", "plot_latent",
                              "measuring", "eval_disentanglement.py"), choices=("png", "pdf"))

    # Where things are and what runs them
    from_: str | None = flag(None, "folder of an experiment, or a checkpoint: in place of the model's flags",
                             unset="the model's flags name it", type=place)
    data_dir: str = flag("./data", "folder of the data sets", type=place)
    model_folder: str = flag("./models", "root of the checkpoints", type=place)
    img_folder: str = flag("./imgs", "root of the pictures", type=place)
    log_folder: str = flag("./logs", "root of the logs", type=place)
    result_folder: str = flag("./results", "root of the measured numbers", type=place)
    num_workers: int = flag(2, "worker processes for sets that do not fit in memory", type=integer(0, 256))
    device: str | None = flag(None, "cpu, cuda, cuda:1 ...", unset="cuda where there is one, else cpu")
    dry_run: bool = flag(False, "print the resolved config, the parameters and the output folders, and stop",
                         modes=tuple(MODES))

    @property
    def experiment(self) -> str:
        """The experiment's name: a path below each root that says what the model is."""
        return _experiment(self)

    @property
    def sampler_used(self) -> Sampler:
        """What the flags know of the sampler: --deterministic names DDIM."""
        return SAMPLERS["ddim" if self.deterministic else self.sampler]

    @property
    def has_latent(self) -> bool:
        return self.model != "vanilla"


class Command(NamedTuple):
    """A parsed command line: what is to run, on which config, and which flags were typed by hand."""

    mode: str
    config: Config
    by_hand: frozenset[str]


FIELDS = {item.name: item for item in fields(Config)}
# The schedule that a pretrained network was trained on, where its files do not say and no flag does.
FOREIGN_SCHEDULE = {
    "ddpm": {"schedule": "linear", "beta1": 1e-4, "betaT": 0.02, "diffusion_steps": 1000},
    "iddpm": {"schedule": "cosine", "diffusion_steps": 4000},
}


def names_of(kind: str) -> tuple[str, ...]:
    """The fields of one kind: 'model', 'training' or 'run'."""
    return tuple(name for name, item in FIELDS.items() if item.metadata["kind"] == kind)


def words_for(words: str | dict[str, str], *readers: str) -> str:
    """What is said of a flag to one of its readers, a mode or program and its groups; '' are the others. To none: all.
    """
    if isinstance(words, str):
        return words
    if readers:
        return next(words[name] for name in (*readers, "") if name in words)
    return "; ".join(f"{name or 'else'}: {text}" for name, text in words.items())


def default_of(config: Config, name: str):
    """A flag's value where it is not typed; of a schedule, that of the denoiser at hand."""
    return FOREIGN_SCHEDULE.get(config.denoiser, {}).get(name, FIELDS[name].default)


def words_in_name(config: Config, name: str) -> str:
    """What a flag's value adds to the experiment's name; '' for nothing."""
    form, value = FIELDS[name].metadata["in_name"], getattr(config, name)
    if callable(form):
        return form(config)
    return form.format(value) if value != default_of(config, name) else ""


def _experiment(config: Config) -> str:
    above = "" if config.model == "diff" else f"{config.model}/"
    return above + "_".join(filter(None, (words_in_name(config, name) for name in names_of("model"))))


def folder(config: Config, root: str) -> Path:
    """The experiment's folder below the root 'models', 'imgs', 'logs' or 'results'."""
    roots = {"models": config.model_folder, "imgs": config.img_folder,
             "logs": config.log_folder, "results": config.result_folder}
    if root == "models" and config.from_:
        return Path(config.from_) if Path(config.from_).is_dir() else Path(config.from_).parent
    return Path(roots[root]) / config.experiment


def words_of(config: Config, kinds: tuple[str, ...]) -> list[str]:
    """The flags of these kinds that are not at their defaults, as they would be typed."""
    words = []
    for item in FIELDS.values():
        value = getattr(config, item.name)
        if item.metadata["kind"] in kinds and value != default_of(config, item.name):
            words += typed(item.name, value)
    return words


def typed(name: str, value) -> list[str]:
    """The words that set a flag to a value."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    name = name.rstrip("_")
    if isinstance(value, tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]


def is_switch(item) -> bool:
    """Whether a flag is on, off or, where neither is typed, decided later."""
    return item.type == "bool | None"


def reads(row: Mode, name: str, flag_name: str) -> bool:
    """Whether the mode of that name and row reads a flag."""
    modes = FIELDS[flag_name].metadata["modes"]
    return modes is None or name in modes or any(group in modes for group in row.uses)
