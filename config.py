"""What an experiment is: one frozen `Config`, built once (commandline.py) and stored whole in every checkpoint.

A mode is one row of MODES. A flag is one field of `Config` that carries all there is to say of it:

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

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

from dataset.given import width_of
from utils import CommandError, did_you_mean

MODELS = ("diff", "vae", "vanilla")


class Mode(NamedTuple):
    """What `--mode` runs. The flags' help, the checks and run.py follow from this row.

    function    'module:function', imported only when it runs: torch takes seconds
    about       for the overview, one line
    models      the models it makes sense for
    uses        the groups of flags that it reads, beside those that name it
    points      does it make sense for points, or for images only?
    processes   do torchrun's processes share its work? Else the first one does it alone
    """

    function: str
    about: str
    models: tuple[str, ...] = MODELS
    uses: tuple[str, ...] = ()
    points: bool = True
    processes: bool = False


MODES = {
    "train": Mode("training:train", "fit a model", uses=("training",), processes=True),
    "eval": Mode("modes.samples:sample_images", "draw samples", uses=("sampling",), processes=True),
    "eval_fid": Mode("modes.samples:eval_fid", "draw images for calc_fid.py", uses=("sampling",), points=False,
                     processes=True),
    "save_latent": Mode("modes.latents:save_latent", "encode a split: z of every image", ("diff", "vae"), ("split",)),
    "train_latent_ddim": Mode("modes.latents:train_latent_ddim", "fit the diffusion over z", ("diff",), ("training",),
                              processes=True),
    "latent_quality": Mode("modes.reconstructions:latent_quality", "measure reconstructions", ("diff", "vanilla"),
                           ("inversion", "split"), points=False),
    "disentangle": Mode("modes.reconstructions:disentangle", "change one latent dimension at a time", ("diff", "vae"),
                        ("inversion", "split"), points=False),
    "manipulate": Mode("modes.manipulate:manipulate", "move an image along a label's direction in z", ("diff", "vae"),
                       ("inversion", "split"), points=False),
    "interpolate": Mode("modes.reconstructions:interpolate", "draw images between two images",
                        uses=("inversion", "split"), points=False),
    "plot_latent": Mode("modes.latents:plot_latent", "plot z of a split", ("diff", "vae"), ("split",)),
    "export": Mode("modes.export:export", "write the model as safetensors, with a card of its numbers"),
    "save_original_img": Mode("modes.samples:save_original_img", "write the data, an image a file",
                              uses=("split",), points=False),
    "nll": Mode("modes.nll:nll", "measure the likelihood, by every bound", ("diff", "vanilla"),
                ("split", "measuring"), processes=True),
    "mutual_info": Mode("modes.mutual_info:mutual_info", "bracket I(x; z), then ask the denoiser", ("diff", "vae"),
                        ("split", "measuring")),
}
PROGRAM = Mode("", "a program that finds an experiment by its flags", uses=("programs",))


class Sampler(NamedTuple):
    """A sampler as the flags know it; the function of the same name stands in `sampling.SAMPLERS`.

    text        what it is, for the help
    options     the flags that it takes and others do not
    steps       where --sample_steps is not given; None: all of the schedule's
    spacing     where --spacing is not given
    orders      the highest --order
    random      does it draw noise on the way?
    """

    text: str
    options: tuple[str, ...] = ()
    steps: int | None = 20
    spacing: str = "logsnr"
    orders: int = 0
    random: bool = False


FITTED_STEPS = 32  # of a grid by --spacing fitted, which chooses among twice as many levels
SAMPLERS = {
    "ddpm": Sampler("ancestral sampling", steps=None, spacing="time", random=True),
    "ddim": Sampler("DDIM", ("eta",), steps=None, spacing="time"),
    "dpmpp": Sampler("DPM-Solver++(2M)"),
    "dpmpp3m": Sampler("DPM-Solver++(3M)"),
    "dpmpp_sde": Sampler("SDE-DPM-Solver++(2M)", random=True),
    "unipc": Sampler("UniPC", ("order",), orders=3),
    "deis": Sampler("DEIS", ("order",), orders=4),
    "ipndm": Sampler("improved PNDM", ("order",), orders=4),
    "heun": Sampler("Heun's method, two evaluations a step", steps=10),
}


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


def place(text: str) -> str:
    """An argparse type: a path whose names, and which itself, a file system can hold."""
    if len(os.fsencode(text)) > 3000 or any(len(os.fsencode(part)) > 255 for part in Path(text).parts):
        raise argparse.ArgumentTypeError(f"'{text[:20]}...' is a path with a name of more than 255 bytes")
    return text


place.__name__ = "path"


def flag(default, text, *, kind="run", modes=None, in_name=None, needs=None, anywhere=False, unset=None, **options):
    """A field with its flag; the module's docstring says what its record holds.

    in_name     a format for any value but the default; or a function of the config that gives the words, '' for none
    unset       words the default for the help where it is None and decided later
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
    denoiser: str | None = flag(None, "network: our U-Net, our MLP (points), or one made elsewhere (--init_from)",
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
    epochs: int = flag(20, "train: where training ends; other modes: which checkpoint (the newest where absent)",
                       anywhere=True, type=integer(1))
    batch_size: int = flag(64, "images a step, over all processes", kind="training", type=integer(1))
    learning_rate: float = flag(1e-4, "learning rate", kind="training", modes=("training", "mutual_info", "programs"),
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
                                 modes=("training", "programs"), unset="no limit", type=integer(1))
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
    sampling_number: int = flag(16, "how many images", modes=("sampling", "training", "latent_quality"), anywhere=True,
                                type=integer(1))
    sampler: str = flag("unipc", "; ".join(f"{name}: {own.text}" for name, own in SAMPLERS.items()),
                        modes=("sampling",), needs=DIFFUSION, choices=tuple(SAMPLERS))
    deterministic: bool = flag(False, "DDIM with eta = 0, exactly", modes=("sampling",), anywhere=True)
    sample_steps: int | None = flag(None, "steps of the sampler", modes=("sampling", "inversion"), needs=DIFFUSION,
                                    unset="20 evaluations; --diffusion_steps with ddpm and ddim; 50 where images "
                                    "are inverted",
                                    type=integer(2))
    spacing: str | None = flag(None, "the sampler's levels: even in time, in log-SNR or in the 7th root of noise over "
                        "signal, or fitted: searched for this checkpoint, once", modes=("sampling", "inversion"),
                        needs=DIFFUSION, unset="logsnr; time with ddpm, ddim and where images are inverted",
                        choices=("time", "logsnr", "karras", "fitted"))
    order: int | None = flag(None, "order of the sampler", modes=("sampling",), needs=ORDER, unset="3; ipndm 4",
                             type=integer(1, 4))
    inversion: str = flag("ddim", "how images are inverted and decoded: ddim, or heun, of second order",
                          modes=("inversion",), needs=DIFFUSION, choices=("ddim", "heun"))
    eta: float = flag(0.0, "noise of DDIM, 0 to 1", modes=("sampling",), needs=ETA, type=number(0, 1))
    guidance: float = flag(1.0, "classifier-free guidance w: 1 is none; needs --z_dropout in training",
                           modes=("sampling",), needs=DIFFUSION_OF_Z, type=number(0))
    split_step: int = flag(500, "two-phase sampling: steps left to InfoDiffusion after plain diffusion",
                           modes=("sampling",), needs=DIFFUSION_OF_Z, type=integer(0))
    is_latent: bool = flag(False, "draw z from the latent diffusion (train_latent_ddim) and not from the prior",
                           modes=("sampling",), needs=DIFFUSION_OF_Z)
    vanilla_from: str | None = flag(None, "checkpoint of the vanilla model of two-phase sampling", modes=("sampling",),
                                    needs=DIFFUSION_OF_Z, unset="the newest of models/vanilla/EXP", type=place)

    # Measuring
    split: str | None = flag(None, "which part of the data", modes=("split",), unset="the mode's own",
                             choices=("train", "val", "test"))
    img_id: tuple[str, ...] = flag(("0",), "number of an image in the split, or an image file, cut as the data "
                                   "set's own; interpolate: two", modes=("disentangle", "interpolate", "manipulate"),
                                   nargs="+", type=place)
    label: str | None = flag(None, "plot_latent: label column that colours the points; manipulate: the class, "
                             "attribute or FACTOR=VALUE to move along", modes=("plot_latent", "manipulate"),
                             unset="plot_latent: the last column")
    strengths: tuple[float, ...] = flag((-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6), "how far to move, in units of "
                                        "sqrt(a_dim) of standardised z", modes=("manipulate",), nargs="+",
                                        type=number(-100, 100))
    disent_metric: str = flag("dci", "disentanglement score", modes=("save_latent", "programs"),
                              choices=("dci", "tad"))
    num_images: int | None = flag(None, "how many images are measured", unset="1,000; all for save_latent; "
                                  "10,000 for manipulate", modes=(
                                      "latent_quality", "save_latent", "measuring", "save_original_img", "plot_latent",
                                      "manipulate"), type=integer(1))
    npoints: int = flag(100, "log-SNR evaluations an image", modes=("measuring",), type=integer(1))
    soft: bool = flag(False, "report the soft-rounded discrete bound too", modes=("nll",), needs=IMAGES)
    ensemble: tuple[str, ...] = flag((), "further checkpoints whose best error at each log-SNR counts",
                                     modes=("nll",), nargs="+", unset="none", type=place)
    tau: tuple[float, ...] = flag((1.0, 2.0, 4.0), "deviations of the noise on z, in units of its own deviation",
                                  modes=("mutual_info", "programs"), nargs="+", type=number(0, above=True))
    mi_steps: int = flag(2000, "steps to fit the denoiser conditioned on tau; 0: the interval alone",
                         modes=("mutual_info",), type=integer(0))
    curve_steps: int = flag(0, "steps to fit each of the two networks that bound I(x_a; z), or I of the labels; 0: no "
                            "curve", modes=("mutual_info",), type=integer(0))
    codes: tuple[str, ...] = flag((), "files of codes (save_latent's) to measure; no model is needed",
                                  modes=("mutual_info", "programs"), nargs="+", metavar="FILE.npz",
                                  type=place, unset="the model's own")

    range: float = flag(1.5, "set each latent dimension to eleven values from minus this to this",
                        modes=("disentangle",), type=number(0, above=True))
    random_x_T: int = flag(2, "further rows from so many random x_T: the inferred one pins the picture",
                           modes=("disentangle",), needs=DIFFUSION, type=integer(0, 64))
    format: str = flag("png", "of figures and labelled sheets; pdf has text and curves as vectors",
                       modes=("training", "latent_quality", "disentangle", "interpolate", "manipulate", "plot_latent",
                              "measuring", "programs"), choices=("png", "pdf"))

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
    dry_run: bool = flag(False, "print the resolved config, the parameters and the output folders, and stop")

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
    given: frozenset[str]


FIELDS = {item.name: item for item in fields(Config)}
# The schedule that a network made elsewhere was trained on, where its files do not say and no flag does.
FOREIGN_SCHEDULE = {
    "ddpm": {"schedule": "linear", "beta1": 1e-4, "betaT": 0.02, "diffusion_steps": 1000},
    "iddpm": {"schedule": "cosine", "diffusion_steps": 4000},
}


def names_of(kind: str) -> tuple[str, ...]:
    """The fields of one kind: 'model', 'training' or 'run'."""
    return tuple(name for name, item in FIELDS.items() if item.metadata["kind"] == kind)


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
    for item in fields(Config):
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


# ---------------------------------------------------------------------------------------------------------------------
# What goes together


def normalise(config: Config, datasets: dict, given: frozenset[str] = frozenset()) -> Config:
    """The default for what has no effect, and None for sizes that are the data set's own: one experiment has one name.

    Raises CommandError for an unknown data set, and for a flag in `given` that has no effect on this model or data.
    """
    spec = datasets.get(config.dataset)
    if spec is None:
        raise CommandError(f"argument --dataset: unknown data set '{config.dataset}'"
                           f"{did_you_mean(config.dataset, datasets)} (known: {', '.join(datasets)})")
    for name, item in FIELDS.items():
        need = item.metadata["needs"]
        if need is None or need.met(config, spec):
            continue
        if name in given and not item.metadata["anywhere"]:
            typed = "" if isinstance(item.default, bool) else f" {getattr(config, name)}"
            raise CommandError(f"--{name}{typed} has no effect here: it needs {need.words}")
        config = replace(config, **{name: item.default})
    entries = width_of(spec, config)
    if entries is not None and config.has_latent:
        if "a_dim" in given and config.a_dim != entries:
            raise CommandError(f"--a_dim {config.a_dim}: the z that comes with the images has {entries} entries")
        config = replace(config, a_dim=entries)
    own = {"input_size": spec.size, "input_channels": spec.channels, "unets_channels": spec.width,
           "encoder_channels": spec.width, "denoiser": "mlp" if spec.kind == "points" else "unet",
           "flip": spec.flip}
    return replace(config, **{name: None for name, value in own.items() if getattr(config, name) == value})


def check(config: Config, mode: str | None, given: frozenset[str]) -> None:
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
        (config.deterministic and given >= {"eta"} and config.eta > 0, "--deterministic is eta 0: drop --eta"),
        (config.deterministic and given >= {"sampler"} and config.sampler != "ddim",
         f"--deterministic is DDIM with eta 0: drop it, or --sampler {config.sampler}"),
        (config.deterministic and config.inversion != "ddim", "--deterministic is DDIM: drop it, or --inversion"),
        *_sampler_rules(config, mode),
        (config.denoiser in ("ddpm", "iddpm") and config.model != "vanilla",
         f"--denoiser {config.denoiser} takes no z: use --model vanilla"),
        (config.denoiser in ("ddpm", "iddpm") and config.init_from is None and mode == "train",
         f"--denoiser {config.denoiser} starts from somebody's weights: give --init_from PATH"),
        (not all(part.isalnum() or part in "-._" for part in config.tag) or len(config.tag) > 60,
         f"--tag '{config.tag}' goes into folder names: up to 60 letters, digits, '-', '_' and '.'"),
        (mode == "disentangle" and len(config.img_id) > 1, "--img_id: --mode disentangle takes one image"),
    )
    _refuse_broken(rules)
    _check_steps(config, given)


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


def call_of(command: Command, own: argparse.Namespace | None = None) -> dict:
    """This command's own flags, for a result file: the mode with what it reads beside the model, and what was typed.

    own     a program's own flags; it has no mode
    """
    mode, config, given = command
    if own is not None:
        return {**{name: getattr(config, name) for name in sorted(given | {"r_seed"})}, **vars(own)}
    read = {name for name in names_of("run") if mode in MODES and reads(MODES[mode], mode, name)} - {"epochs"}
    names = sorted(read | {"r_seed", "batch_size", "precision"} | given)
    return {"mode": mode, **{name: getattr(config, name) for name in names}}


def from_stored(stored: object, path: Path) -> Config:
    """The config in a checkpoint, held to what a typed one is. A flag younger than the checkpoint has its default,
    and --flip what it was for everybody's own folders before there was a flag: on.

    Raises CommandError, naming the flag, for anything that could not have been typed.
    """
    if not isinstance(stored, dict):
        raise CommandError(f"{path}: its config is no config of this program")
    if isinstance(stored.get("compile"), bool):  # of a checkpoint from before the choice
        stored = {**stored, "compile": "full" if stored["compile"] else "off"}
    if stored.get("dataset") == "folder" and "flip" not in stored:
        stored = {**stored, "flip": True}
    for name, value in stored.items():
        if name not in FIELDS or not _could_be_typed(FIELDS[name], value):
            raise CommandError(f"{path}: its config has --{str(name)[:40]} {str(value)[:40]!r}, which cannot be")
    config = Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()})
    try:
        check(config, None, frozenset())
    except CommandError as error:
        raise CommandError(f"{path}: its config contradicts itself: {error}") from None
    return config


def on_own_schedule(stored: Config, network: object) -> Config:
    """A stored config with the schedule of a network made elsewhere, by flag.

    Checkpoints from before a flag could name it hold the flags' plain defaults, whatever the network's own schedule.
    network    the description of it that the checkpoint holds, or None
    """
    own = FOREIGN_SCHEDULE.get(stored.denoiser)
    plain = all(getattr(stored, name) == FIELDS[name].default for name in FOREIGN_SCHEDULE["ddpm"])
    if own is None or not plain:
        return stored
    said = network.get("schedule") if isinstance(network, dict) else None
    said = said if isinstance(said, dict) else {}
    typed = said.get("name") == stored.schedule and said.get("steps") == stored.diffusion_steps
    if typed and ("beta1" not in own or said.get("beta1") == stored.beta1):
        return stored
    return replace(stored, **own)


def _could_be_typed(item, value) -> bool:
    """Whether a stored value is one that the flag would accept, or its default."""
    options, default = item.metadata["options"], item.default
    if isinstance(value, list | tuple) or isinstance(default, tuple):
        return isinstance(default, tuple) and isinstance(value, list | tuple) and all(
            _accepts(options, one) for one in value)
    if is_switch(item):
        return value in (None, True, False)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return value is None if value is None and default is None else _accepts(options, value)


def _accepts(options: dict, value) -> bool:
    """Whether an argparse type and its choices take a value."""
    parse_text = options.get("type", str)
    try:
        same = isinstance(value, str | int | float) and parse_text(str(value)) == value
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return same and value in options.get("choices", (value,))


def trained(config: Config, given: frozenset[str], stored: Config, path: Path) -> Config:
    """This call's config with what the model is taken from its checkpoint's.

    Raises CommandError where a flag typed by hand contradicts the checkpoint at `path`.
    """
    for name in names_of("model"):
        typed, own = getattr(config, name), getattr(stored, name)
        if name in given and typed != own:
            raise CommandError(f"--{name} {typed} contradicts {path}, trained with {own}")
    config = replace(config, **{name: getattr(stored, name) for name in names_of("model")})
    _check_steps(config, given)
    return config


def refuse_other_run(config: Config, stored: Config, path: Path) -> None:
    """Raise CommandError where the folder of `path` holds a run with another way of training."""
    for name in (*names_of("model"), *names_of("training")):
        now, before = getattr(config, name), getattr(stored, name)
        if now != before:
            apart = "leave --from out, and add --tag NAME," if config.from_ else "add --tag NAME"
            raise CommandError(
                f"{path.parent} holds a run with --{name} {_or_default(before)}, not {_or_default(now)}: "
                f"{apart} for a run of its own, or --no-resume to replace it"
            )


def _or_default(value) -> str:
    return "at its default" if value is None else str(value)


def shown(value) -> str:
    """A value of whatever kind and length, for a line of text."""
    text = " ".join(repr(value).split())
    return text if len(text) < 80 else f"{text[:80]}..."
