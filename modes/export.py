"""The mode export: a trained model as files that other programs read, with a card of what was measured of it."""

from __future__ import annotations

import shlex
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import config as config_module
from config import MODELS, Command, Config
from experiment import Trained, exported, open_record, open_trained
from metrics.measured import Measured, measured
from models import parameter_count
from utils import CommandError, OwnFolder, check_writable, locked, markdown_table

CARD = "README.md"


def export(command: Command) -> None:
    """Mode `export`: models/EXP/export/ with model.safetensors, config.json and README.md, the model card.

    `experiment.load` and --from read the folder back. For --denoiser ddpm it is a pipeline of diffusers too.
    """
    trained = open_trained(command._replace(config=replace(command.config, compile="off")))
    if exported.is_export(trained.path):
        raise CommandError(f"{trained.path} is an export already: give the folder of the run that it is of")
    folder = config_module.folder(trained.config, "models") / exported.FOLDER
    check_writable(folder)
    record, _ = open_record(trained.path, MODELS)
    files = exported.pack(record, trained.hash)
    if trained.config.denoiser == "ddpm":
        from pretrained.pipeline import pipeline_files

        files |= pipeline_files(trained.model.network)
    results = config_module.folder(trained.config, "results")
    found, left_out = measured(results, trained.path, trained.hash)
    files[CARD] = card(trained, record, folder, found).encode()
    write(folder, files)
    for line in left_out:
        print(f"not in the card: {line}")
    numbers = sum(len(one.values) for one in found)
    print(f"{trained.path} as {', '.join(files)} in {folder}; {numbers} numbers of {results} in its card")


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Files at paths below a folder. Raises CommandError, before any is written, where one would replace another's."""
    parts: dict[Path, dict[str, bytes]] = defaultdict(dict)
    for name, content in files.items():
        parts[(folder / name).parent][Path(name).name] = content
    with locked(folder):
        for place, contents in parts.items():
            for name in contents:
                OwnFolder(place).own(name)
        for place, contents in parts.items():
            for name, content in contents.items():
                OwnFolder(place).write(name, content)
            OwnFolder(place).forget(())


# ---------------------------------------------------------------------------------------------------------------------
# The model card

ABOUT = {"diff": "InfoDiffusion: a diffusion decoder of a latent z, beside an encoder", "vae": "a variational "
         "autoencoder", "vanilla": "plain diffusion"}


def card(trained: Trained, record: dict, folder: Path, found: list[Measured]) -> str:
    """The model card: what it is, how it is used, what was measured of it and how, in Markdown."""
    stored = trained.stored or trained.config
    shape = "x".join(map(str, record["shape"]))
    facts = [
        ["model", ABOUT[stored.model]], ["parameters", f"{parameter_count(trained.model):,}"],
        ["data", f"{stored.dataset}, {shape}; {record['rows']:,} training rows"
                 + (f"; rows and hash {record['data']}" if record.get("data") else "")],
        ["latent z", f"{stored.a_dim} dimensions" if stored.has_latent else "none"],
        ["training", f"{record['step']:,} steps, epoch {record['epoch']}; the weights are a moving average over steps"],
        ["loss in", record["unit"]], ["checkpoint", f"{trained.path}, hash {trained.hash}"],
    ]
    blocks = [f"# {stored.experiment}", markdown_table(["", ""], facts), "## Use", _python(trained, folder),
              "## Numbers", *_numbers(found), "## Commands",
              f"Training:\n\n```\n{training_command(stored)}\n```", *_commands(found)]
    return "\n\n".join(blocks) + "\n"


def training_command(stored: Config) -> str:
    """The command line that trains such a model: what it is, and every flag of training that is not at its default."""
    named = ["--model", stored.model, "--dataset", stored.dataset]
    words = config_module.words_of(replace(stored, model=Config().model, dataset=Config().dataset),
                                   ("model", "training"))
    if stored.data_dir != Config().data_dir:
        words += config_module.typed("data_dir", stored.data_dir)
    ends = ["--epochs", str(stored.epochs), *(["--max_steps", str(stored.max_steps)] if stored.max_steps else [])]
    return shlex.join(["python", "run.py", "--mode", "train", *named, *words, *ends])


def _python(trained: Trained, folder: Path) -> str:
    lines = ["from experiment import load", "", f'model = load("{folder.as_posix()}")', "x = model.sample(16)"]
    if getattr(trained.model, "encoder", None) is not None:
        lines.append("z = model.encode(x)")
    lines += ["", f"# or, for every mode: python run.py --mode MODE --from {shlex.quote(folder.as_posix())}"]
    if trained.config.denoiser == "ddpm":
        lines += ["", "from diffusers import DDPMPipeline", "",
                  f'pipeline = DDPMPipeline.from_pretrained("{folder.as_posix()}")']
    return "\n".join(["```python", *lines, "```"])


def _numbers(found: list[Measured]) -> list[str]:
    """A table of every number with its standard error and file."""
    rows = [[value.measure.replace("|", "\\|"), f"{value.value:.5g}", "not known" if value.se is None else
             f"{value.se:.2g}", one.path.name] for one in found for value in one.values]
    if not rows:
        return ["None has been measured of this checkpoint yet; the modes and programs do, and `--mode export` again."]
    return [markdown_table(["measure", "value", "standard error", "file"], rows)]


def _commands(found: list[Measured]) -> list[str]:
    return [f"{one.path.name}:\n\n```\n{one.command}\n```" for one in found if one.command]
