"""The scripts of the experiments: what they would run, as command lines that parse, and one chain that really runs."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import config as config_module
import eval_disentanglement
import gen_fid_stats
import plots
import train_classifier
from commandline import parse
from dataset import registry
from run import check_served
from scripts import compare_samplers, mmd_table, plot_results, summary, sweep
from utils import read_json, save_checkpoint, to_its_error, write_json

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
EXPERIMENTS = ("run", "eval_fid", "gen_fid", "calc_fid", "save_latent", "latent_quality", "train_classifier",
               "disentangle", "eval_disentangle", "interpolate")
VARIABLES = ("DATASET", "MODEL", "MODE", "EPOCHS", "STEPS", "A_DIM", "MMD", "SEED", "SEEDS", "TAG", "EXTRA", "LATENT",
             "IMAGES", "SAMPLING", "INVERSION", "TRAINING", "IMG", "EXTRACTOR", "PREDICTOR", "CLASSIFIER_EPOCHS", "DRY")


def bash(script, *words, **variables):
    """Run a script in the current folder, with these variables of its own and no others."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(["bash", str(SCRIPTS / f"{script}.sh"), *words], capture_output=True, text=True,
                          env={**clean, "PYTHON": sys.executable, **variables})


def commands(script, *words, **variables):
    """(program, its words) of every command that a script would run."""
    done = bash(script, *words, DRY="1", **variables)
    assert done.returncode == 0, done.stderr
    return [(line.split()[1], shlex.split(line)[2:]) for line in done.stdout.splitlines() if line.startswith("+ ")]


def parsed(program, words):
    """The command line as its program reads it; raises CommandError where it would."""
    if program == "run.py":
        command = parse(words, program, registry.SPECS)
        check_served(command)
        return command
    if program in ("train_classifier.py", "eval_disentanglement.py"):
        flags = {"train_classifier.py": train_classifier, "eval_disentanglement.py": eval_disentanglement}[program]
        return parse(words, program, registry.SPECS, extra=flags._flags)[0]
    parser = gen_fid_stats.Parser(prog=program)
    parser.add_argument("name")
    parser.add_argument("folder")
    return gen_fid_stats.parse(parser, words)


def only(script, **variables):
    ((program, words),) = commands(script, **variables)
    return parsed(program, words)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_bash_reads_every_script(script):
    assert subprocess.run(["bash", "-n", str(SCRIPTS / script)]).returncode == 0


@pytest.mark.parametrize("script", EXPERIMENTS)
def test_every_script_runs_commands_that_parse(script, in_tmp):
    for variables in ({}, {"DATASET": "digits", "A_DIM": "8", "STEPS": "5", "TAG": "a", "SEED": "3", "MMD": "0.2",
                           "EXTRA": "--diffusion_steps 50", "SAMPLING": "--split_step 25",
                           "INVERSION": "--sample_steps 7", "TRAINING": "--learning_rate 1e-3"}):
        for program, words in commands(script, **variables):
            parsed(program, words)


@pytest.mark.parametrize("script, words", [("points", ()), ("points", ("scg",)), *(
    ("information", (part,)) for part in ("known", "digits", "weights"))])
def test_scripts_that_measure_likelihood_and_information_run_commands_that_parse(script, words, in_tmp):
    found = commands(script, *words)
    assert len(found) >= 2
    for program, flags in found:
        if program == "scripts.plot_results":
            plot_results.build_parser().parse_args(flags)
        else:
            parsed(program, flags)


@pytest.mark.slow
def test_a_module_of_the_suite_runs_from_any_folder(in_tmp):
    """`run scripts.NAME`: the suite's own modules, whatever lies in the current folder, which the output goes to."""
    for name in ("scripts", "utils"):
        (in_tmp / f"{name}.py").write_text("raise SystemExit('not the suite')\n")
    write_fid(in_tmp / "results" / "digits_32d", 1.0)
    line = f". {SCRIPTS / 'python.sh'}; run scripts.summary results/digits_32d"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert (in_tmp / "results" / "summary.md").exists()


def test_a_path_of_an_interpreter_holds_in_every_folder(in_tmp):
    (in_tmp / "python").symlink_to(sys.executable)
    line = f". {SCRIPTS / 'python.sh'}; cd /; echo $PYTHON"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": "./python"})
    assert Path(done.stdout.strip()) == in_tmp / "python"


def test_python_scripts_start_alike():
    """`python -m scripts.NAME`: as the first lines say and the help shows, with no change to the import path."""
    for path in SCRIPTS.glob("[!_]*.py"):
        text = path.read_text()
        assert "sys.path" not in text
        if "def main(" not in text:
            continue  # a part of a program beside it
        assert f"python -m scripts.{path.stem}" in text


# Published arguments of run.py, and the script and variables that give them
PUBLISHED = [
    ("run", {"A_DIM": "32"}, "--model diff --mode train --mmd_weight 0.1 --a_dim 32 --epochs 50 --dataset celeba "
     "--batch_size 32 --save_epochs 5 --deterministic --prior regular --r_seed 64"),
    ("run", {}, "--model diff --mode train --mmd_weight 0.1 --a_dim 256 --epochs 50 --dataset celeba "
     "--batch_size 32 --save_epochs 5 --deterministic --prior regular --r_seed 64"),
    ("save_latent", {}, "--model diff --mode save_latent --disent_metric tad --mmd_weight 0.1 --a_dim 256 --epochs 50 "
     "--dataset celeba --deterministic --prior regular --r_seed 64"),
    ("run", {"MODE": "train_latent_ddim"}, "--model diff --mode train_latent_ddim --a_dim 256 --epochs 50 "
     "--mmd_weight 0.1 --dataset celeba --deterministic --save_epoch 10 --prior regular --r_seed 64"),
    ("eval_fid", {}, "--model diff --mode eval_fid --split_step 500 --a_dim 256 --batch_size 256 --mmd_weight 0.1 "
     "--sampling_number 10000 --epochs 50 --dataset celeba --is_latent --prior regular --r_seed 64"),
    ("latent_quality", {}, "--model diff --mode latent_quality --a_dim 256 --mmd_weight 0.1 --epochs 50 "
     "--dataset celeba --sampling_number 16 --deterministic --prior regular --r_seed 64"),
    ("disentangle", {"A_DIM": "32", "EPOCHS": "20"}, "--model diff --mode disentangle --img_id 0 --mmd_weight 0.1 "
     "--a_dim 32 --epochs 20 --dataset celeba --deterministic --prior regular --r_seed 64"),
    ("run", {"MODEL": "vae", "A_DIM": "32"}, "--model vae --mode train --mmd_weight 0.1 --a_dim 32 --epochs 50 "
     "--dataset celeba --batch_size 32 --save_epochs 5 --prior regular --r_seed 64"),
    ("run", {"MODEL": "vanilla"}, "--model vanilla --mode train --a_dim 256 --epochs 50 --dataset celeba "
     "--batch_size 128 --save_epochs 10 --prior regular --r_seed 64"),
    ("eval_disentangle", {}, "--model diff --a_dim 256 --mmd_weight 0.1 --epochs 50 --dataset celeba "
     "--sampling_number 16 --deterministic --prior regular --r_seed 64"),
]


@pytest.mark.parametrize("script, variables, published", PUBLISHED)
def test_scripts_have_the_published_settings(script, variables, published, in_tmp):
    ours = only(script, **variables)
    theirs = parsed("run.py" if "--mode " in published else "eval_disentanglement.py", published.split())
    assert (ours.mode, ours.config) == (theirs.mode, theirs.config)


@pytest.mark.slow
def test_fid_scripts_have_the_published_arguments(in_tmp):
    stats = only_of(commands("gen_fid"), "gen_fid_stats.py")
    assert (stats.name, stats.folder, stats.extractor) == ("celeba", "./celeba_imgs", "inception")
    images = only_of(commands("calc_fid", A_DIM="32"), "calc_fid.py")
    assert (images.name, images.folder) == ("celeba", "./imgs/celeba_32d_0.1mmd/eval-fid-latent")
    images = only_of(commands("calc_fid", MODEL="vanilla"), "calc_fid.py")
    assert images.folder == "./imgs/vanilla/celeba/eval-fid-fast"


def only_of(found, program):
    (words,) = (words for name, words in found if name == program)
    return parsed(program, words)


def test_a_run_cut_by_steps_is_read_from_its_newest_checkpoint(in_tmp):
    training = only("run", DATASET="digits", STEPS="7")
    assert training.config.max_steps == 7
    assert "epochs" not in only("save_latent", DATASET="digits", STEPS="7").by_hand
    assert "epochs" in only("save_latent", DATASET="digits").by_hand


@pytest.mark.slow
def test_reference_and_samples_are_measured_by_one_extractor(in_tmp):
    for dataset, usual in (("digits", "classifier"), ("fmnist", "efficientnet"), ("cifar10", "inception")):
        found = commands("gen_fid", DATASET=dataset) + commands("calc_fid", DATASET=dataset)
        used = [parsed(name, words).extractor for name, words in found if name in ("gen_fid_stats.py", "calc_fid.py")]
        assert used == [usual, usual]


@pytest.mark.slow
def test_seeds_are_runs_of_their_own_that_end_in_one_table(in_tmp):
    found = commands("experiment", "digits", SEEDS="0 5", TAG="x", A_DIM="4")
    program, folders = found[-1]
    assert (program, folders) == ("scripts.summary", [f"results/digits_4d_0.1mmd_x-seed{k}" for k in (0, 5)])
    trainings = [command.config for command in (parsed(*one) for one in found[:-1] if one[0] == "run.py")
                 if command.mode == "train"]
    assert [(one.model, one.r_seed, one.tag) for one in trainings] == [
        ("diff", 0, "x-seed0"), ("vanilla", 0, "x-seed0"), ("diff", 5, "x-seed5"), ("vanilla", 5, "x-seed5"),
    ]
    for one in found[:-1]:
        parsed(*one)


@pytest.mark.slow
def test_a_set_without_labels_is_not_classified(in_tmp):
    programs = [program for program, _ in commands("experiment", "chairs")]
    assert "calc_fid.py" in programs
    assert not {"train_classifier.py", "eval_disentanglement.py"} & set(programs)


def test_a_wrong_experiment_is_refused_before_anything_is_made(in_tmp):
    done = bash("experiment", "moons")
    assert done.returncode == 2
    assert "moons has points" in done.stderr
    assert not list(in_tmp.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def write_fid(folder, fid, weights="0123456789abcdef"):
    source = f"imgs/{folder.name}/eval-fid-fast"
    entry = {"fid": fid, "fid_se": 0.5, "kid": 0.01, "kid_se": 0.002, "source": source}
    write_json(folder / "fid.json", {f"{source} vs digits (classifier, none, weights {weights[:8]})": entry})


def measures(output, experiment):
    return read_json(output.with_suffix(".json"))[experiment]["measures"]


def test_seeds_are_averaged_with_their_deviation(in_tmp, capsys):
    folders = [in_tmp / "results" / f"digits_32d_seed{k}" for k in range(3)]
    for folder, fid in zip(folders, (1.0, 2.0, 6.0), strict=True):
        write_fid(folder, fid)
    assert summary.main([*map(str, folders), "--output", str(in_tmp / "table")]) == 0
    pair = "eval-fid-fast vs digits (classifier, none, weights 01234567)"
    found = measures(in_tmp / "table", "digits_32d")[f"FID, {pair}"]
    assert (found["mean"], found["values"]) == (3.0, [1.0, 2.0, 6.0])
    assert found["sd"] == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert found["ci95"] == pytest.approx(4.30265 * (7 / 3) ** 0.5, rel=1e-4)  # Student's t, two degrees of freedom
    assert "3.0 ± 6.6 (n = 3)" in capsys.readouterr().out


@pytest.mark.parametrize("value, error, shown", [
    (94.51, 16.3, "95 ± 16"), (109.6, 213.0, "110 ± 210"), (1.647e-9, 5.8e-9, "1.6e-09 ± 5.8e-09"),
    (12.345, 0.0999, "12.35 ± 0.10"), (-0.00001, 0.5, "0.00 ± 0.50"), (123456789.0, 1234567.0, "1.235e+08 ± 1.2e+06"),
    (0.5, 1e-17, "0.500000 ± 1e-17"), (1e-12, 5e-9, "0 ± 5e-09"), (0.5, 0.0, "0.5 ± 0"), (7, 0.25, "7.00 ± 0.25"),
])
def test_a_value_has_the_digits_that_its_error_bears(value, error, shown):
    assert " ± ".join(to_its_error(value, error)) == shown


def test_runs_measured_with_other_settings_are_averaged_with_a_note(in_tmp, capsys):
    """Fault: a mean over --num_images 20 and 500 said nothing of it."""
    quality = {f"{part}{se}": 1.0 for part in ("mse", "psnr", "ssim") for se in ("", "_se")}
    for seed, (steps, count) in enumerate(((20, 500), (5, 500), (20, 500))):
        folder = Path("results", f"a_seed{seed}")
        write_fid(folder, 1.0)
        write_json(folder / "eval-fid-fast.json", {"steps": steps, "call": {"sample_steps": None, "r_seed": seed}})
        write_json(folder / "latent_quality.json", {
            "inferred": quality, "random": quality, "images": count, "call": {"num_images": None, "eta": 0.0}})
    folders = [f"results/a_seed{seed}" for seed in range(3)]
    assert summary.main([folders[0], folders[2]]) == 0
    assert "Note" not in capsys.readouterr().out
    assert summary.main(folders) == 0
    printed, note = capsys.readouterr(), "fid.json (eval-fid-fast, ) was measured with different settings: sample_steps"
    assert printed.err.count("\n") == 1 and f"{note} 20 and 5\n" in printed.err
    assert f"{note} 20 and 5." in printed.out.splitlines()[-1] and note in Path("results/summary.md").read_text()


def test_results_of_several_checkpoints_are_named(in_tmp, capsys):
    for name, checkpoint in (("nll", "a" * 16), ("classification", "b" * 16)):
        content = {"nll": {"entries": []}, "classification": {"inputs": {"z": {
            "measure": "accuracy", "classifier": "logistic", "mean": 0.5}}}}[name]
        write_json(Path("results", "a", f"{name}.json"), {**content, "checkpoint_hash": checkpoint})
    assert summary.main(["results/a"]) == 0
    note = "results/a: its results are of 2 checkpoints: aaaaaaaa (nll.json), bbbbbbbb (classification.json)"
    printed = capsys.readouterr()
    assert printed.err == f"{note}\n" and printed.out.endswith(f"Note: {note}.\n")


def test_a_score_that_is_undefined_for_a_class_is_left_out(in_tmp):
    record = {"files": [{"mean": {"disentanglement": None, "completeness": 0.5}}]}
    write_json(in_tmp / "results" / "a" / "disentanglement.json", record)
    assert summary.main(["results/a"]) == 0
    assert set(measures(in_tmp / "results" / "summary", "a")) == {"disentanglement, completeness"}


def test_experiments_are_ordered_by_a_measure(in_tmp, capsys):
    for name, fid in (("a", 2.0), ("b", 5.0)):
        write_fid(in_tmp / "results" / name, fid)
    assert summary.main(["results/a", "results/b", "--best", "FID"]) == 0
    out = capsys.readouterr().out
    assert "lowest first" in out and out.index(" a") < out.index(" b")
    assert summary.main(["results/a", "--best", "colour"]) == 2
    assert "colour" in capsys.readouterr().err


def test_a_sweep_is_every_combination_of_values_and_seeds():
    args, swept, shared = sweep.parse([
        "--mmd_weight", "0.01", "0.1", "--learning_rate", "1e-3", "--seeds", "2", "--",
        *["--dataset", "digits", "--epochs", "3", "--model_folder", "m"]])
    runs = sweep.runs_of(swept, args.seeds, shared)
    assert [run.command.config.experiment for run in runs] == [
        f"digits_32d_{weight}mmd_learning_rate1e-3-seed{seed}" for weight in ("0.01", "0.1") for seed in (0, 1)]
    assert {run.command.config.r_seed for run in runs} == {0, 1}
    for step in ("train", "save_latent", "train_classifier.py", "latent_quality", "nll"):
        program, *words = runs[0].words(step)
        again = parsed(program, words)
        assert again.config.experiment == runs[0].command.config.experiment
        assert again.config.model_folder == "m" and (again.config.epochs == 3) == (step == "train")
    assert sweep.measures_of(runs[0], None) == ["classification", "latent_quality"]
    (few,) = sweep.runs_of({"mmd_weight": ["0.1"]}, 1, ["--num_images", "8"])
    assert "--num_images" in few.words("latent_quality") and "--num_images" not in few.words("train")


@pytest.mark.parametrize("words, culprit", [
    ("--mmd_weight x -- --dataset digits", "--mmd_weight"), ("--mmd_weight 0.1 -- --dataset moon", "moon"),
    ("--seeds 0 -- --dataset digits", "--seeds"), ("--mmd 0.1 --", "--mmd_weight"),
    ("--mmd_weight 0.1 -- --npoints 3", "--npoints"), ("--mmd_weight 0.1 --measure nll -- --a_dim 4", "--measure nll"),
    ("--mmd_weight 0.1 -- --from=models/a", "--from"), ("--mmd_weight 0.1 -- --dataset digits --dry_run", "--dry_run"),
    ("--dataset digits moons -- --epochs 1", "nothing to measure"),
])
def test_a_wrong_sweep_is_one_line_before_anything_runs(words, culprit, in_tmp, capsys):
    assert sweep.main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("python -m scripts.sweep: ")
    assert culprit in err and err.count("\n") == 1
    assert not list(in_tmp.iterdir())


def test_a_sweep_of_which_a_run_failed_says_so_by_its_status(in_tmp, monkeypatch, capsys):
    def carry_out(run, measure, threads):
        run.results.mkdir(parents=True)
        return f"{run.results}: train ended with status 2" if "0.01" in str(run.results) else None

    monkeypatch.setattr(sweep, "carry_out", carry_out)
    monkeypatch.setattr(sweep.summary, "write", lambda folders, output: f"{len(folders)} columns")
    assert sweep.main(["--mmd_weight", "0.01", "0.1", "--", "--dataset", "digits"]) == 1
    printed = capsys.readouterr()
    assert "status 2" in printed.err and "1 columns" in printed.out
    assert sweep.main(["--mmd_weight", "0.2", "0.1", "--seeds", "1", "--", "--dataset", "digits", "--tag", "b"]) == 0


def test_a_sweep_measures_again_what_another_command_line_made(in_tmp, monkeypatch):
    ran = []

    def step(run, name, log, threads):
        ran.append(name)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        (run.checkpoints / "model-2.pth").write_text("weights")
        if not (run.checkpoints / "last.pth").exists():
            save_checkpoint(run.checkpoints / "last.pth", {"config": config_module.to_dict(run.command.config)})
        if name == "nll":
            write_json(run.results / "nll.json", run.words(name))
        return ""

    def carry_out(*words):
        ran.clear()
        (run,) = sweep.runs_of({"ema_decay": ["0.9"]}, 1, ["--model", "vanilla", "--dataset", "scg", *words])
        return sweep.carry_out(run, None, 1), list(ran)

    monkeypatch.setattr(sweep, "_step", step)
    assert carry_out("--epochs", "2") == ("", ["train", "nll"])
    assert carry_out("--epochs", "2") == ("", ["train"])
    assert carry_out("--epochs", "2", "--npoints", "7") == ("", ["train", "nll"])
    (result,) = Path("results").rglob("nll.json")
    write_json(result, "of another command in between")
    assert carry_out("--epochs", "2", "--npoints", "7") == ("", ["train", "nll"])
    said, steps = carry_out("--epochs", "1")
    assert "holds a run of --epochs 2, not of 1" in said and steps == ["train"]


@pytest.mark.slow
def test_a_sweep_trains_measures_and_goes_on(in_tmp, capsys):
    words = ("--mmd_weight 0.01 0.1 --seeds 2 -- --dataset digits --a_dim 4 --epochs 1 --max_steps 3 --batch_size 64 "
             "--unets_channels 8 --encoder_channels 8 --diffusion_steps 10 --sampling_number 2 --device cpu")
    assert sweep.main(["--measure", "classification", *words.split()]) == 0
    assert "± " in capsys.readouterr().out
    table = read_json("results/sweep.json")
    assert len(table) == 2 and all(len(group["runs"]) == 2 for group in table.values())
    before = {path: path.stat().st_mtime_ns for path in Path("results").rglob("classification.json")}
    assert sweep.main(["--measure", "classification", *words.split()]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_distances_of_other_weights_and_other_models_are_not_averaged(in_tmp):
    write_fid(in_tmp / "results" / "digits_32d_seed0", 1.0)
    write_fid(in_tmp / "results" / "digits_32d_seed1", 9.0, weights="f" * 16)
    write_fid(in_tmp / "results" / "vae" / "digits_32d_seed0", 5.0)
    folders = ["results/digits_32d_seed0", "results/digits_32d_seed1", "results/vae/digits_32d_seed0"]
    assert summary.main(folders) == 0
    assert all(one["sd"] is None for one in measures(in_tmp / "results/summary", "digits_32d").values()
               if one["mean"] != 0.01)
    assert len(measures(in_tmp / "results/summary", "vae/digits_32d")) == 2


def test_a_folder_without_results_is_named(in_tmp, capsys):
    (in_tmp / "empty").mkdir()
    assert summary.main(["empty"]) == 2
    assert "empty holds no results" in capsys.readouterr().err
    write_json(in_tmp / "broken" / "fid.json", {"a": {"fid": 1.0}})
    assert summary.main(["broken"]) == 2
    assert "broken/fid.json" in capsys.readouterr().err


def write_information(name, taus=(), **more):
    """results/NAME/mutual_info.json with an interval of tau .. tau + 1 nats at every tau, 0 .. 1 without noise."""
    def part(tau):
        bracket = {"interval": [tau or 0, (tau or 0) + 1], "lower": 0, "lower_se": 0, "upper": 1, "upper_se": 0,
                   "upper_by": "rate", "log_n": 5, "saturated": False, "rows": 9}
        return {"tau": tau, "bracket_nats": bracket}

    config = config_module.to_dict(config_module.Config(tag=name))
    write_json(Path("results", name, "mutual_info.json"), {
        "mode": "mutual_info", "config": config, "step": 1, "checks": [], **part(taus[0] if taus else None),
        "over_tau": [part(tau) for tau in taus] or None, **more})


def test_experiments_are_compared_at_a_tau_that_all_have(in_tmp, monkeypatch):
    """Fault: an interval at tau 2 beside one at tau 1, joined by a band."""
    write_information("a", (1.0, 2.0, 4.0))
    write_information("b", (2.0, 4.0))
    write_information("c")
    write_information("codes-d", (2.0,), codes="d.npz")
    drawn = []
    monkeypatch.setattr(plots, "rows", lambda *words: drawn.extend(words))
    assert plot_results.main(["results"]) == 0
    _, intervals, names, _, title, unit = drawn
    assert intervals == {"I(x; z), interval from codes": ((0, 1, 2, 3), (2.0, 2.0, 0, 2.0), (3.0, 3.0, 1, 3.0))}
    assert [name[-2:] for name in names] == ["_a", "_b", "_c", "-d"] and names[3] == "codes-d"
    assert "only where" in title and unit == "nats, at noise tau 2"


@pytest.mark.parametrize("words, said", [
    ([], "one --tau that all were measured at"), (["--by", "a_dim"], "one --tau that all were measured at"),
    (["--by", "dataset"], "is no number"),
])
def test_what_has_no_place_in_a_figure_is_refused_by_one_line(in_tmp, capsys, words, said):
    for name, tau in (("a", 1.0), ("b", 2.0)):
        write_information(name, (tau,))
    assert plot_results.main(["results", *words]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_without_results_is_left_out_of_figures(in_tmp, capsys):
    """And files of codes have no log to miss, nor flags to draw them over."""
    write_information("codes-a", (1.0,), codes="a.npz")
    Path("results", "empty").mkdir()
    assert plot_results.main(["results/empty", "results/codes-a"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("results/empty ") and line.endswith("left out")
    assert plot_results.main(["results/codes-a", "--by", "a_dim"]) == 0
    assert "tell no flags" in capsys.readouterr().err
    assert plot_results.main(["results/empty"]) == plot_results.main(["results/codes-a", "nowhere"]) == 2


@pytest.mark.slow
def test_mmd_kernel_keeps_its_gradient_at_high_dimension():
    scaled, published = ({row["q"]: row for row in mmd_table.rows_of(256, kernel, batches=30, size=64)}
                         for kernel in ("scaled", "published"))
    assert all(row["separation"] > 5 for row in scaled.values())
    assert all(row["gradient"] > 20 * published[q]["gradient"] for q, row in scaled.items())
    assert all(row["pull"] > 5 * row["pull_se"] for row in scaled.values())  # towards the prior


def test_the_sampler_nearest_to_the_flow_is_held_against_the_slowest_ddpm():
    rows = [{"sampler": sampler, "spacing": "time", "steps": n, "evaluations": n, "fid": fid, "fid_se": 0.3} | path
            for sampler, n, fid, path in (
                ("ddim", 20, 4.0, {"path": 0.3}), ("dpmpp", 10, 5.0, {"path": 0.2}), ("unipc", 20, 1.5, {"path": 0.1}),
                ("unipc", 50, 1.0, {"path": 0.01}), ("ddpm", 50, 9.0, {}), ("ddpm", 1000, 2.0, {}))]
    found = compare_samplers.verdict(rows)
    assert (found["sampler"], found["evaluations"], found["ddpm_steps"]) == ("unipc", 20, 1000)
    assert found["difference"] == -0.5 and found["difference_se"] == pytest.approx(0.3 * 2**0.5)


# ---------------------------------------------------------------------------------------------------------------------
# For real

TINY = {
    "DATASET": "digits", "A_DIM": "4", "STEPS": "12", "IMAGES": "24", "CLASSIFIER_EPOCHS": "1", "PREDICTOR": "fast",
    "EXTRA": "--diffusion_steps 20 --batch_size 24 --unets_channels 8 --encoder_channels 8",
    "SAMPLING": "--split_step 10 --sample_steps 5", "INVERSION": "--sample_steps 5",
}


@pytest.mark.slow
def test_the_whole_chain_runs_on_digits(in_tmp):
    def run(script, *words, **variables):
        done = bash(script, *words, **{**TINY, **variables})
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    printed = run("experiment", "digits", SEEDS="0 1")
    table = read_json(in_tmp / "results" / "summary.json")["digits_4d_0.1mmd_20steps_8unet_8enc"]
    assert all(len(one["values"]) == 2 for one in table["measures"].values())
    assert {name.split(",")[0] for name in table["measures"]} >= {"FID", "KID", "disentanglement"}
    assert "± over n runs" in printed
    images = in_tmp / "imgs" / "digits_4d_0.1mmd_20steps_8unet_8enc_seed0"
    for leaf in ("eval-fid-latent", "eval-fid-fast"):
        assert len(list((images / leaf).glob("*.png"))) == 24
    for picture in ("interpolate-0-1/all.png", "disentangle-0/sample3.png", "plot_latent/plot_latent.png",
                    "latent_quality/reconstructions.png"):
        assert (images / picture).stat().st_size > 0
    # called again, a script finds its work done
    before = {path: path.stat().st_mtime_ns for path in (images / "eval-fid-fast").glob("*.png")}
    run("eval_fid", LATENT="", TAG="seed0", SEED="0")
    assert before == {path: path.stat().st_mtime_ns for path in (images / "eval-fid-fast").glob("*.png")}
    assert "finished" in run("run", TAG="seed0", SEED="0")


@pytest.mark.slow
def test_the_scripts_run_for_the_vae_too(in_tmp):
    for script in ("run", "save_latent", "eval_fid", "gen_fid", "calc_fid", "train_classifier", "disentangle",
                   "interpolate"):
        done = bash(script, **{**TINY, "MODEL": "vae", "SAMPLING": "", "INVERSION": ""})
        assert done.returncode == 0, done.stderr[-2000:]
    entries = json.loads((in_tmp / "results" / "vae" / "digits_4d_0.1mmd_8unet_8enc" / "fid.json").read_text())
    assert [entry["count"] for entry in entries.values()] == [24]


@pytest.mark.slow
def test_samplers_are_compared_on_a_trained_model(in_tmp, full_networks):
    for script, variables in (("run", {"MODEL": "vanilla"}), ("gen_fid", {})):
        assert bash(script, **{**TINY, **variables}).returncode == 0
    words = ("--model vanilla --dataset digits --diffusion_steps 20 --unets_channels 8 --sampling_number 40 "
             "--evaluations 5 50 --ddpm_steps 20 50 --samplers ddim ddpm dpmpp_sde heun --spacings time fitted")
    assert compare_samplers.main(words.split()) == 0
    record = read_json(in_tmp / "results" / "vanilla" / "digits_20steps_8unet" / "samplers.json")
    assert [(row["sampler"], row["spacing"], row["steps"], row["count"], "path" in row) for row in record["rows"]] == [
        ("ddim", "time", 5, 40, True), ("ddim", "fitted", 5, 40, True), ("dpmpp_sde", "time", 5, 40, False),
        ("heun", "time", 3, 40, True), ("heun", "fitted", 3, 40, True), ("ddpm", "time", 20, 40, False),
    ]
    fitted, time = ([row["path"] for row in record["rows"] if row.get("path") and row["spacing"] == spacing]
                    for spacing in ("fitted", "time"))
    assert all(a < b for a, b in zip(fitted, time, strict=True))
    assert record["verdict"]["ddpm_steps"] == 20
    assert (in_tmp / "results" / "vanilla" / "digits_20steps_8unet" / "samplers.png").stat().st_size > 0
