"""What --mode and --sampler name: one row each, from which the flags' help, the checks and run.py follow."""

from __future__ import annotations

from typing import NamedTuple

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
    "mutual_info": Mode("modes.mutual_info:mutual_info", "bound I(x; z) from both sides; what the denoiser uses",
                        ("diff", "vae"), ("split", "measuring")),
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


SPACINGS = {  # of a sampler's levels; functions in diffusion.SPACINGS
    "time": "evenly in time", "logsnr": "evenly in log-SNR", "karras": "evenly in the 7th root of noise over signal",
    "fitted": "searched for this checkpoint, once",
}
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
