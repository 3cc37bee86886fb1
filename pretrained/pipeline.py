"""A tuned network of diffusers, given back: the files of a pipeline that `DDPMPipeline.from_pretrained` loads."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pretrained.ddpm import NAMES
from pretrained.denoiser import PretrainedDenoiser
from utils import CommandError


def pipeline_files(denoiser: PretrainedDenoiser) -> dict[str, bytes]:
    """{path below the pipeline's folder: content}: model_index.json, unet/ and scheduler/, as diffusers writes them.

    denoiser    of kind 'ddpm'; its pipeline predicts the same noise at the steps of the schedule it came with
    Raises CommandError where diffusers is not installed.
    """
    try:
        from diffusers import DDPMPipeline, DDPMScheduler
    except ImportError:
        raise CommandError("the export of --denoiser ddpm needs the package diffusers: pip install diffusers") from None

    schedule = denoiser.description["schedule"]
    betas = {"beta_start": schedule["beta1"], "beta_end": schedule["betaT"]} if "beta1" in schedule else {}
    name = next(theirs for theirs, ours in NAMES.items() if ours == schedule["name"])
    variance = "learned_range" if denoiser.learns_variance else "fixed_small"
    scheduler = DDPMScheduler(schedule["steps"], beta_schedule=name, variance_type=variance, **betas)
    with tempfile.TemporaryDirectory() as place:
        DDPMPipeline(denoiser.network, scheduler).save_pretrained(place)
        return {path.relative_to(place).as_posix(): path.read_bytes()
                for path in sorted(Path(place).rglob("*")) if path.is_file()}
