"""The command line: published commands, names of experiments, contradictions, help."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import eval_disentanglement
import train_classifier
from commandline import build_parser, parse, value_of
from config import MODES, Config, folder, from_stored, on_own_schedule, refuse_other_run, to_dict, trained, words_of
from dataset import registry
from utils import CommandError

# Command line (after `python run.py`) and its experiment string
PUBLISHED = {
    "--model diff --mode train --mmd_weight 0.1 --a_dim 32 --epochs 50 --dataset celeba --batch_size 32 --save_epochs "
    "5 --deterministic --prior regular --r_seed 64": "celeba_32d_0.1mmd",
    "--model diff --mode train --mmd_weight 0.1 --a_dim 256 --epochs 50 --dataset celeba --batch_size 32 --save_epochs "
    "5 --deterministic --prior regular --r_seed 64": "celeba_256d_0.1mmd",
    "--model diff --mode save_latent --disent_metric tad --mmd_weight 0.1 --a_dim 256 --epochs 50 --dataset celeba "
    "--deterministic --prior regular --r_seed 64": "celeba_256d_0.1mmd",
    "--model diff --mode train_latent_ddim --a_dim 256 --epochs 50 --mmd_weight 0.1 --dataset celeba --deterministic "
    "--save_epoch 10 --prior regular --r_seed 64": "celeba_256d_0.1mmd",
    "--model diff --mode eval_fid --split_step 500 --a_dim 256 --batch_size 256 --mmd_weight 0.1 --sampling_number "
    "10000 --epochs 50 --dataset celeba --is_latent --prior regular --r_seed 64": "celeba_256d_0.1mmd",
    "--model diff --mode latent_quality --a_dim 256 --mmd_weight 0.1 --epochs 50 --dataset celeba --sampling_number 16 "
    "--deterministic --prior regular --r_seed 64": "celeba_256d_0.1mmd",
    "--model diff --mode disentangle --img_id 0 --mmd_weight 0.1 --a_dim 32 --epochs 20 --dataset celeba "
    "--deterministic --prior regular --r_seed 64": "celeba_32d_0.1mmd",
    "--model vae --mode train --mmd_weight 0.1 --a_dim 32 --epochs 50 --dataset celeba --batch_size 32 --save_epochs 5 "
    "--prior regular --r_seed 64": "vae/celeba_32d_0.1mmd",
    "--model vanilla --mode train --a_dim 256 --epochs 50 --dataset celeba --batch_size 128 --save_epochs 10 --prior "
    "regular --r_seed 64": "vanilla/celeba",
}
DISENTANGLEMENT = (
    "--model diff --a_dim 256 --mmd_weight 0.1 --epochs 50 --dataset celeba --sampling_number 16 --deterministic "
    "--prior regular --r_seed 64"
)


def command(words, **options):
    return parse(words.split(), "run.py", registry.SPECS, **options)


def config(words=""):
    return command(words).config


# ---------------------------------------------------------------------------------------------------------------------
# Published commands


@pytest.mark.parametrize("words", PUBLISHED)
@pytest.mark.parametrize("dataset", ["celeba", "digits"])
def test_published_commands_parse_to_their_experiments(words, dataset):
    parsed = command(words.replace("celeba", dataset))
    assert parsed.config.experiment == PUBLISHED[words].replace("celeba", dataset)
    assert parsed.mode == words.split("--mode ")[1].split()[0]
    assert parsed.config.r_seed == 64


@pytest.mark.parametrize("program", [eval_disentanglement, train_classifier])
def test_programs_find_an_experiment_by_the_same_flags(program):
    parsed, _ = command(DISENTANGLEMENT, extra=program._flags)
    assert folder(parsed.config, "models") == Path("models/celeba_256d_0.1mmd")


def test_of_all_abbreviations_the_published_one_is_known():
    assert config("--mode train_latent_ddim --save_epoch 10").save_epochs == 10
    for words in ("--save_ep 10", "--learning 1e-3", "--batch 3"):
        with pytest.raises(CommandError, match=words.split()[0]):
            config(words)


ROOT = Path(__file__).parents[1]
PAGES = "\n".join(page.read_text() for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
PAGES = PAGES.replace("\\\n", " ").replace(" ...", "").replace(" --help", "")
# Words after run.py, in blocks of commands and between backquotes, up to a comment.
SHOWN = sorted({words for words in re.findall(r"run\.py +(--[^`#]*?)(?=`| *#| *\n)", PAGES)
                if "$" not in words})  # the tour's variables: test_tour.py runs it


def test_readme_and_docs_show_commands():
    assert len(SHOWN) >= 8 and any("--mode nll" in words for words in SHOWN)


@pytest.mark.parametrize("words", SHOWN)
def test_commands_of_readme_and_docs_parse(words):
    assert command(words).mode in words


def test_published_defaults():
    expected = {
        "model": "diff", "data_dir": "./data", "r_seed": 0, "img_id": ("0",), "prior": "regular", "kld_weight": 0.0,
        "mmd_weight": 0.1, "use_C": False, "C_max": 25.0, "img_folder": "./imgs", "log_folder": "./logs",
        "model_folder": "./models", "epochs": 20, "save_epochs": 5, "batch_size": 64, "learning_rate": 0.0001,
        "optimizer": "adamw", "deterministic": False, "a_dim": 32, "beta1": 1e-05, "betaT": 0.01,
        "diffusion_steps": 1000, "split_step": 500, "sampling_number": 16, "tb_logger": False, "is_latent": False,
        "is_bottleneck": False, "disent_metric": "dci", "loss": "simple", "schedule": "linear",
        "conditioning": "adanorm", "mmd_kernel": "scaled", "z_dropout": 0.0, "precision": "auto", "resume": True,
        "save_minutes": 10.0,
    }
    assert {name: getattr(config(), name) for name in expected} == expected


# ---------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("words, name", [
    ("", "digits_32d_0.1mmd"),
    ("--mmd_weight 0", "digits_32d"),
    ("--kld_weight 1 --mmd_weight 0", "digits_32d_1kld"),
    ("--kld_weight 0.5 --use_C --C_max 30 --mmd_weight 0", "digits_32d_0.5kld_30C"),
    ("--kld_weight 0.5 --is_bottleneck", "digits_32d_0.5kld_0.1mmd_bottleneck"),
    ("--prior 10mix --is_bottleneck", "digits_32d_0.1mmd_10mix_bottleneck"),
    ("--prior roll --a_dim 2", "digits_2d_0.1mmd_roll"),
    ("--loss itd --conditioning crossattn --tag b", "digits_32d_0.1mmd_crossattn_itd_b"),
    ("--model vanilla --loss itd --a_dim 7", "vanilla/digits_itd"),
    ("--model vae --kld_weight 1 --mmd_weight 0", "vae/digits_32d_1kld"),
    ("--model vanilla --denoiser iddpm --init_from x", "vanilla/digits_iddpm"),
    ("--model vanilla --denoiser iddpm --init_from x --schedule cosine --diffusion_steps 4000",
     "vanilla/digits_iddpm"),
    ("--model vanilla --denoiser iddpm --init_from x --schedule linear --diffusion_steps 1000",
     "vanilla/digits_linear_1000steps_iddpm"),
    ("--model vanilla --denoiser ddpm --init_from x", "vanilla/digits_ddpm"),
    ("--dataset shapes3d --z_from floor_hue shape --z_noise 0.1", "shapes3d_14d_0.1mmd_floor_hue+shape_0.1znoise"),
    ("--dataset blobs --pair_nats 3", "blobs_256d_0.1mmd_3nats"),
])
def test_experiment_strings(words, name):
    made = config(words)
    assert made.experiment == name


OTHER = {
    "model": "vae", "dataset": "mnist", "a_dim": 4, "prior": "10mix", "kld_weight": 0.5, "mmd_weight": 0.2,
    "mmd_kernel": "published", "is_bottleneck": True, "conditioning": "crossattn", "z_dropout": 0.1, "loss": "itd",
    "logsnr_loc": 1.0, "logsnr_scale": 2.0, "logsnr_clip": 4.0, "schedule": "cosine", "beta1": 0.0001, "betaT": 0.02,
    "diffusion_steps": 100, "denoiser": "mlp", "input_size": 16, "input_channels": 3, "unets_channels": 48,
    "encoder_channels": 48, "tag": "b", "z_from": ("shape",), "z_noise": 0.1, "z_code": "standardised",
    "pair_nats": 1.0,
}


OTHER_WORDS = (
    "--model vae --kld_weight 1 --use_C", "--loss itd --logsnr_loc 1 --logsnr_clip 4", "--input_size 16 --tag b",
    "--mode mutual_info --tau 1 2", "--mode interpolate --img_id 0 5", "--mode nll --ensemble a b --device cpu",
)


def test_two_models_never_share_a_folder():
    """Every flag that makes a model changes its name."""
    plain = Config()
    model = {item.name for item in fields(Config) if item.metadata["kind"] == "model"}
    assert model - {"use_C", "C_max"} == set(OTHER)
    names = [replace(plain, **{name: value}).experiment for name, value in OTHER.items()]
    with_kl = replace(plain, kld_weight=1.0)
    names += [with_kl.experiment, replace(with_kl, use_C=True).experiment,
              replace(with_kl, use_C=True, C_max=5.0).experiment, plain.experiment]
    assert len(set(names)) == len(names)


def test_training_and_run_flags_leave_the_name_alone():
    words = "--r_seed 5 --epochs 7 --batch_size 3 --learning_rate 1e-3 --dropout 0.3 --device cpu"
    assert config(words).experiment == config().experiment
    assert config("--mode eval --sampler dpmpp --sample_steps 9").experiment == config().experiment


def test_sizes_typed_by_hand_that_are_the_datas_own_are_no_other_experiment():
    spec = registry.SPECS["digits"]
    words = f"--input_size {spec.size} --input_channels 1 --unets_channels {spec.width} --encoder_channels {spec.width}"
    assert config(words + " --denoiser unet") == config()
    assert config("--input_size 16").experiment != config().experiment


def test_the_four_roots_are_respected():
    made = config("--model_folder a --img_folder b --log_folder c --result_folder d --model vae")
    roots = [folder(made, root) for root in ("models", "imgs", "logs", "results")]
    assert roots == [Path(root) / "vae/digits_32d_0.1mmd" for root in "abcd"]


# ---------------------------------------------------------------------------------------------------------------------
# Flags


def flags_of(mode=None):
    return [action for action in build_parser("run.py", mode)._actions if action.dest not in ("help", "mode")]


def test_every_flag_has_help_that_ends_in_its_default():
    for action in flags_of():
        assert "(default: " in action.help and action.help.index("(") > 3, action.dest
        assert "None" not in action.help, action.dest


@pytest.mark.parametrize("mode", MODES)
def test_a_modes_help_shows_what_it_uses(mode, capsys):
    with pytest.raises(SystemExit) as stop:
        command(f"--mode {mode} --help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--dataset" in shown and "--device" in shown
    assert len(shown.splitlines()) <= 110  # two screens
    for flag, group in (("--save_epochs", "training"), ("--split_step", "sampling"), ("--npoints", "measuring")):
        assert (flag in shown) == (group in MODES[mode].uses)


@pytest.mark.parametrize("mode, words", [
    ("train", "where training ends (default: 20)"), ("nll", "which checkpoint (default: the newest)"),
    ("plot_latent", "(default: 5,000)"), ("save_latent", "the split's first (default: all)"),
    ("save_original_img", "which part of the data (default: train)"), ("eval", "(default: 20 evaluations;"),
    ("disentangle", "steps of the sampler (default: 50)"), (None, "save_original_img: train; else: test"),
])
def test_a_flag_that_modes_read_differently_says_what_it_is_to_this_one(mode, words):
    assert any(words in action.help for action in flags_of(mode)), words


@pytest.mark.parametrize("name", [item.name for item in fields(Config) if isinstance(item.default, bool)])
def test_boolean_flags_are_off_when_absent_and_take_no_value(name):
    extras = {"use_C": " --kld_weight 1", "is_latent": " --mode eval", "soft": " --mode nll", "best": " --mode nll"}
    extra = extras.get(name, "")
    assert getattr(config(extra), name) == (name == "resume")
    assert getattr(config(f"--{name}{extra}"), name) is True
    with pytest.raises(CommandError):
        config(f"--{name} False{extra}")


def test_resuming_can_be_turned_off():
    assert config("--no-resume").resume is False


@pytest.mark.parametrize("words, culprit", [
    ("--dataset moon", "moon"), ("--model gan", "--model"), ("--mode fit", "--mode"), ("--no_such_flag 1", "no_such"),
    ("--a_dim 0", "--a_dim"), ("--a_dim x", "--a_dim"), ("--epochs 0", "--epochs"), ("--epochs 1.5", "--epochs"),
    ("--batch_size -1", "--batch_size"), ("--learning_rate nan", "--learning_rate"),
    ("--learning_rate 0", "--learning_rate"), ("--mmd_weight -1", "--mmd_weight"), ("--mmd_weight inf", "--mmd_weight"),
    ("--dropout 1", "--dropout"), ("--z_dropout 1", "--z_dropout"), ("--ema_decay 1.1", "--ema_decay"),
    ("--diffusion_steps 1", "--diffusion_steps"), ("--input_channels 2", "--input_channels"), ("--beta1 0", "--beta1"),
    ("--r_seed -1", "--r_seed"), ("--optimizer sgd", "--optimizer"), ("--precision int8", "--precision"),
    ("--kld_weight 1 --prior 10mix", "--kld_weight"), ("--prior roll", "--prior roll"),
    ("--prior 10mix --a_dim 3", "--a_dim"), ("--use_C", "--use_C"), ("--beta1 0.5", "--beta1"),
    ("--model vae --loss itd", "--loss itd"), ("--model vanilla --z_dropout 0.1", "--z_dropout"),
    ("--mode eval --deterministic --eta 0.5", "--eta"),
    ("--mode eval --deterministic --sampler ddpm", "--sampler"),
    ("--mode eval --sampler dpmpp --eta 0.5", "--sampler ddim"), ("--mode eval --eta 0.5", "--sampler ddim"),
    ("--mode eval --sampler dpmpp --order 2", "--sampler unipc, deis or ipndm"),
    ("--mode eval --sampler unipc --order 4", "orders 1 to 3"),
    ("--mode eval --sampler dpmpp_sde --spacing fitted", "draws noise"),
    ("--mode eval --sampler ddim --spacing fitted", "--sample_steps"),
    ("--mode latent_quality --spacing fitted", "--spacing"),
    ("--mode latent_quality --deterministic --inversion heun", "--inversion"),
    ("--model diff --denoiser ddpm --init_from x", "--denoiser"), ("--model vanilla --denoiser ddpm", "--init_from"),
    ("--init_from x", "--init_from"), ("--mode eval --sample_steps 2000", "--sample_steps"),
    ("--mode eval --split_step 2000", "--split_step"), ("--tag a/b", "--tag"), ("--tag ../x", "--tag"),
    ("--save_minutes 0", "--save_minutes"),
    ("--epochs", "--epochs"), ("stray", "stray"), ("--s 5", "--s"),
])
def test_wrong_flags_are_one_line_that_names_them(words, culprit):
    with pytest.raises(CommandError) as caught:
        config(words)
    assert culprit in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("words, meant", [
    ("--mode trian", "train"), ("--dataset digit", "digits"), ("--learning_rat 1", "--learning_rate"),
    ("--mode eval --sampler dmpp", "dpmpp"), ("--model vanila", "vanilla"),
])
def test_a_slip_of_the_finger_gets_a_proposal(words, meant):
    with pytest.raises(CommandError, match=f"did you mean {meant}"):
        config(words)


@pytest.mark.parametrize("words, culprit", [
    ("--mode train --sampler dpmpp", "--sampler"), ("--mode eval --learning_rate 1e-3", "--learning_rate"),
    ("--mode train --num_images 3", "--num_images"), ("--mode eval --npoints 3", "--npoints"),
    ("--mode latent_quality --eta 0.5", "--eta"), ("--mode disentangle --split_step 3", "--split_step"),
    ("--model vanilla --kld_weight 1", "--kld_weight"), ("--model vanilla --is_bottleneck", "--is_bottleneck"),
    ("--model vae --schedule cosine", "--schedule"), ("--model vae --conditioning crossattn", "--conditioning"),
    ("--C_max 3", "--C_max"), ("--logsnr_loc 1", "--logsnr_loc"),
    ("--mmd_weight 0 --mmd_kernel scaled", "--mmd_kernel"),
    ("--schedule cosine --beta1 1e-4", "--beta1"), ("--dataset moons --input_size 8", "--input_size"),
    ("--dataset moons --dropout 0.2", "--dropout"), ("--mode eval --model vae --sampler ddim", "--sampler"),
])
def test_a_flag_without_effect_is_refused_by_name(words, culprit):
    with pytest.raises(CommandError, match=f"{culprit} .*no effect|{culprit} has no effect"):
        config(words)


@pytest.mark.parametrize("changed", [
    {"tag": "../../.."}, {"mmd_kernel": "x/y"}, {"a_dim": "32"}, {"a_dim": -1}, {"a_dim": True}, {"epochs": None},
    {"unets_channels": 10**9}, {"tau": [0.1, "x"]}, {"tau": 3.0}, {"kld_weight": float("nan")}, {"resume": 1},
    {"no_such_flag": 1}, {"prior": "roll"}, {"beta1": 0.5}, {"dataset": 3}, {3: 4}, None, [], "config",
])
def test_a_stored_config_is_held_to_what_could_be_typed(changed):
    stored = {**to_dict(config()), **changed} if isinstance(changed, dict) else changed
    with pytest.raises(CommandError, match=r"last\.pth"):
        from_stored(stored, Path("last.pth"))


@pytest.mark.parametrize("words", ["", *OTHER_WORDS])
def test_every_config_that_can_be_typed_comes_back_from_a_checkpoint(words):
    made = config(words)
    assert from_stored(to_dict(made), Path("last.pth")) == made
    assert from_stored({k: list(v) if isinstance(v, tuple) else v for k, v in to_dict(made).items()}, Path("x")) == made


def test_a_flag_that_is_gone_is_no_fault_of_a_checkpoint_that_left_it_off():
    stored = to_dict(config())
    assert from_stored({**stored, "l1_weight": 0.0}, Path("x")) == config()
    for value in (0.5, torch.zeros(2)):
        with pytest.raises(CommandError, match="x: its config has --l1_weight, which this version .* has not"):
            from_stored({**stored, "l1_weight": value}, Path("x"))


def test_a_flag_younger_than_the_checkpoint_has_its_default():
    stored = to_dict(config("--a_dim 4"))
    del stored["z_dropout"]
    assert from_stored(stored, Path("last.pth")) == config("--a_dim 4")


@pytest.mark.parametrize("name, flip", [("folder", True), ("digits", None), ("celeba", None)])
def test_a_folder_trained_before_the_flag_was_mirrored(name, flip):
    stored = to_dict(config(f"--dataset {name}"))
    assert from_stored(stored, Path("last.pth")).flip is None
    del stored["flip"]
    assert from_stored(stored, Path("last.pth")).flip is flip


FOREIGN = "--model vanilla --dataset cifar10 --init_from x --denoiser"


@pytest.mark.parametrize("denoiser, said", [
    ("iddpm", {"name": "cosine", "steps": 4000}),
    ("ddpm", {"name": "linear", "beta1": 1e-4, "betaT": 0.02, "steps": 1000}),
    ("ddpm", {"name": "scaled_linear", "beta1": 1e-4, "betaT": 0.02, "steps": 500})])
def test_a_network_made_elsewhere_that_was_stored_without_its_schedule_has_it(denoiser, said):
    now = config(f"{FOREIGN} {denoiser}")
    before = replace(now, schedule="linear", beta1=1e-5, betaT=1e-2, diffusion_steps=1000)
    assert on_own_schedule(before, {"schedule": said}) == now
    assert on_own_schedule(now, {"schedule": said}) == now


@pytest.mark.parametrize("words, said", [
    ("iddpm --schedule linear --diffusion_steps 1000", {"name": "linear", "beta1": 1e-4, "betaT": 0.02, "steps": 1000}),
    ("ddpm --beta1 1e-5 --betaT 1e-2", {"name": "linear", "beta1": 1e-5, "betaT": 1e-2, "steps": 1000}),
    ("iddpm --diffusion_steps 1000", {"name": "cosine", "steps": 1000})])
def test_a_schedule_that_was_typed_for_a_network_made_elsewhere_stays(words, said):
    made = config(f"{FOREIGN} {words}")
    assert on_own_schedule(made, {"schedule": said}) == made
    assert config(" ".join(words_of(made, ("model", "training")))) == made


@pytest.mark.parametrize("words", [
    "--flip --dropout 0 --precision bf16", "--dataset celeba --no-flip", "--tag=-x", "--loss itd --logsnr_loc=-1e-07",
    "--kld_weight 1 --use_C --C_max 3", "--dataset shapes3d --z_from floor_hue shape independent --z_noise 0.1"])
def test_a_config_in_words_is_read_back(words):
    made = config(words)
    assert config(" ".join(words_of(made, ("model", "training")))) == made


def test_the_last_value_typed_counts_with_or_without_an_equals_sign():
    assert value_of(["--mode", "eval", "--from=a=b", "--from", "c"], "--from") == "c"
    assert value_of(["--from", "a", "--mode=eval", "--from=b=c"], "--from") == "b=c"
    assert value_of(["--from"], "--from") is None and value_of(["--from_b", "a"], "--from") is None


def test_pictures_are_not_drawn_into_a_folder_of_data(tmp_path, monkeypatch):
    """Fault: they became data, and the run could not be gone on with."""
    monkeypatch.chdir(tmp_path)
    inside = f"--data_dir pictures --img_folder {tmp_path}/pictures"
    for words in ("--data_dir .", "--data_dir . --img_folder /a", inside):
        with pytest.raises(CommandError, match="--(img|result)_folder .* lies in --data_dir"):
            command(f"--dataset folder {words}")
    command("--dataset folder --data_dir pictures")
    command("--dataset digits --data_dir .")


def test_programs_have_no_dry_run():
    """Fault: they took the flag, and replaced results."""
    with pytest.raises(CommandError, match="--dry_run has no effect on this program"):
        parse(["--dry_run"], "train_classifier.py", registry.SPECS, extra=lambda group: None)
    assert command("--dry_run").config.dry_run


def test_an_example_in_the_help_can_be_typed():
    for prog in ("run.py", "python -m scripts.compare_samplers"):
        shown = build_parser(prog, "eval").epilog
        assert shown == f"example: python {prog.removeprefix('python ')} --mode eval --from models/EXP"


def test_flags_typed_by_hand_are_known():
    assert command("--a_dim 32 -e 5").by_hand == {"a_dim", "epochs"}


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_after_training_the_model_comes_from_the_checkpoint():
    stored = config("--unets_channels 24 --loss itd --epochs 3 --batch_size 8")
    call = command("--mode eval --batch_size 5")
    made = trained(call.config, call.by_hand, stored, Path("last.pth"))
    assert (made.unets_channels, made.loss, made.batch_size) == (24, "itd", 5)


def test_a_flag_that_contradicts_the_checkpoint_is_refused_by_name():
    stored = config("--a_dim 16")
    call = command("--mode eval --a_dim 8")
    with pytest.raises(CommandError, match=r"--a_dim 8 .*last\.pth.* 16"):
        trained(call.config, call.by_hand, stored, Path("last.pth"))


@pytest.mark.parametrize("words", ["--learning_rate 1e-3", "--r_seed 1", "--batch_size 8", "--dropout 0.2",
                                   "--optimizer adam", "--precision bf16", "--ema_decay 0.9"])
def test_another_way_of_training_is_refused_by_name(words):
    stored = config()
    with pytest.raises(CommandError) as caught:
        refuse_other_run(config(words), stored, Path("models/x/last.pth"))
    assert words.split()[0] in str(caught.value) and "--tag" in str(caught.value)
    refuse_other_run(config("--epochs 40 --save_epochs 3 --display_epochs 2"), stored, Path("models/x/last.pth"))


def test_a_checkpoint_from_before_the_choice_of_compiling_is_read():
    stored = to_dict(Config())
    for old, new in ((False, "off"), (True, "full")):
        assert from_stored({**stored, "compile": old}, Path("old.pth")).compile == new
