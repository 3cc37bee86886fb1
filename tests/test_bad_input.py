"""Mistakes of the caller's: one line that names the culprit, exit status 2, nothing written, no traceback.

A row of the table is a command line and what its line must name. The files that it names are made once (`place`):
sound ones, and every kind of broken one.
"""

import gzip
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import calc_fid
import eval_disentanglement
import gen_fid_stats
import run
import train_classifier
from dataset import dsprites

PROGRAMS = {"calc_fid": calc_fid, "gen_fid_stats": gen_fid_stats, "train_classifier": train_classifier,
            "eval_disentanglement": eval_disentanglement, "run": run}
TINY = tiny.SMALL
EXP = "digits_2d_0.1mmd_4steps_4unet_4enc"


class Bomb:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return Path.touch, (Path("bomb-went-off"),)


def picture(path: Path, size=(8, 8), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 7 if mode != "RGB" else (1, 2, 3)).save(path)


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def fashion(folder: Path, **changed: bytes) -> None:
    """fmnist's four files, some of them replaced."""
    folder.mkdir(parents=True)
    images, labels = idx(np.zeros((20, 28, 28))), idx(np.zeros(20))
    for part in ("train", "t10k"):
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{part}-{kind}-ubyte"
            (folder / name).write_bytes(changed.get(name.replace("-", "_"), content))


def damaged(sound: Path, path: Path) -> None:
    content = bytearray(sound.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def make_checkpoints() -> None:
    """Models in models/, and broken files beside them; weights/ for --init_from."""
    sound = tiny.checkpoint("--dataset digits")
    tiny.checkpoint("--dataset line")
    tiny.checkpoint("--dataset digits --model vanilla")
    tiny.checkpoint("--dataset digits --model vae")
    tiny.checkpoint("--dataset digits --model vanilla --input_size 16")
    content, broken = sound.read_bytes(), {}
    for name in ("cut", "empty", "words", "bomb", "bits", "other", "kind", "latents", "nothing", "abc", "fit"):
        broken[name] = Path("models", f"{EXP}_{name}", sound.name)
        broken[name].parent.mkdir()
        broken[name].write_bytes(content)
    broken["cut"].write_bytes(content[: len(content) // 2])
    broken["empty"].write_bytes(b"")
    broken["words"].write_text("these are no weights\n")
    broken["bomb"].write_bytes(pickle.dumps(Bomb()))
    damaged(sound, broken["bits"])
    torch.save({"state_dict": {}}, broken["other"])
    record = torch.load(sound, weights_only=True)
    torch.save({**record, "kind": "classifier"}, broken["kind"])
    torch.save({"format": 1, "kind": "diff"}, broken["nothing"])
    torch.save({**record, "config": {**record["config"], "tag": "fit"},
                "ema": {**record["ema"], "extra": torch.zeros(1)}}, broken["fit"])
    broken["latents"].rename(broken["latents"].with_name("last.pth"))
    torch.save({**record, "kind": "latent"}, broken["latents"].with_name("last.pth"))
    broken["abc"].rename(broken["abc"].with_name("model-abc.pth"))
    weights = Path("weights")
    for name in ("empty", "config", "scheduler"):
        (weights / name).mkdir(parents=True)
    (weights / "config" / "config.json").write_text("{'not json'")
    (weights / "scheduler" / "config.json").write_text(json.dumps({"_class_name": "UNet1DModel"}))
    (weights / "list.pt").write_bytes(b"")
    torch.save([1, 2], weights / "list.pt")
    torch.save({"a": torch.zeros(3)}, weights / "names.pt")


def make_data() -> None:
    """data/KIND/: sets that are missing, empty, truncated or something else."""
    data = Path("data")
    labels = idx(np.full(20, 3))
    fashion(data / "idx-cut" / "fmnist", train_images_idx3_ubyte=idx(np.zeros((20, 28, 28)))[:-5])
    fashion(data / "idx-empty" / "fmnist", t10k_labels_idx1_ubyte=b"")
    fashion(data / "idx-format" / "fmnist", train_images_idx3_ubyte=labels)
    fashion(data / "idx-labels" / "fmnist", train_labels_idx1_ubyte=idx(np.zeros(19)))
    fashion(data / "idx-gzip" / "fmnist")
    name = data / "idx-gzip" / "fmnist" / "train-images-idx3-ubyte"
    packed = gzip.compress(name.read_bytes())
    name.unlink()
    name.with_name(name.name + ".gz").write_bytes(packed[:-9])
    sprites = {"imgs": np.zeros((9, 64, 64), np.uint8), "latents_classes": np.zeros((9, 6), np.int64)}
    for kind, changed in {
        "npz-nan": {"imgs": np.full((9, 64, 64), np.nan)},
        "npz-shape": {"imgs": np.zeros((9, 64, 32), np.uint8)},
        "npz-labels": {"latents_classes": np.zeros((8, 6), np.int64)},
        "npz-pickle": {"imgs": np.array([Bomb()], dtype=object)},
    }.items():
        (data / kind / "dsprites").mkdir(parents=True)
        np.savez(data / kind / "dsprites" / dsprites.FILE, **{**sprites, **changed})
    (data / "npz-words" / "dsprites").mkdir(parents=True)
    (data / "npz-words" / "dsprites" / dsprites.FILE).write_text("no archive")
    (data / "pickle" / "cifar-10-batches-py").mkdir(parents=True)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        (data / "pickle" / "cifar-10-batches-py" / name).write_bytes(pickle.dumps({b"data": Bomb(), b"labels": []}))
    (data / "h5" / "3dshapes").mkdir(parents=True)
    with h5py.File(data / "h5" / "3dshapes" / "3dshapes.h5", "w") as file:
        file["images"] = np.zeros((4, 8, 8, 3), np.uint8)
    (data / "h5-words" / "3dshapes").mkdir(parents=True)
    (data / "h5-words" / "3dshapes" / "3dshapes.h5").write_text("no archive")
    (data / "faces" / "celeba").mkdir(parents=True)
    (data / "faces" / "celeba" / "list_attr_celeba.txt").write_text("1\nYoung Smiling\n000001.jpg 1 -1\n")
    (data / "faces" / "celeba" / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 1\n")


def make_folders() -> None:
    """pictures/KIND/: folders of images."""
    pictures = Path("pictures")
    for kind in ("sound", "corrupt", "dead-link", "labels", "labels-words", "cut"):
        for number in range(12):
            picture(pictures / kind / f"{number:02d}.png", (64, 64))
    for number, size in enumerate([(8, 8), (9, 9), (10, 10)]):
        picture(pictures / "sizes" / f"{number}.png", size)
    picture(pictures / "one" / "0.png")
    (pictures / "empty").mkdir()
    (pictures / "corrupt" / "05.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    (pictures / "cut" / "05.png").write_bytes((pictures / "cut" / "04.png").read_bytes()[:60])
    (pictures / "dead-link" / "05.png").unlink()
    (pictures / "dead-link" / "05.png").symlink_to("nowhere.png")
    (pictures / "labels" / "labels.csv").write_text("file,kind\n00.png,1\n01.png,2\n")
    (pictures / "labels-words" / "labels.csv").write_bytes(b"\xff\xfe\x00")
    (pictures / "nan").mkdir()
    for number in range(12):
        Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(pictures / "nan" / f"{number:02d}.tif")


def make_latents() -> None:
    """codes/KIND.npz, and latents.npz of models."""
    codes, labels = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40)[:, None] % 2
    codes_folder = Path("codes")
    codes_folder.mkdir()
    nan = codes.copy()
    nan[3, 1] = np.nan
    for kind, arrays in {
        "sound": {"all_a": codes, "all_attr": labels},
        "nan": {"all_a": nan, "all_attr": labels},
        "rows": {"all_a": codes, "all_attr": labels[:-1]},
        "none": {"all_a": codes, "all_attr": labels[:, :0]},
        "lacks": {"all_a": codes},
        "shape": {"all_a": codes[:, :, None], "all_attr": labels},
        "pickle": {"all_a": np.array([Bomb()], dtype=object), "all_attr": labels},
        "classes": {"all_a": codes, "all_attr": np.arange(40)[:, None] % 5},
        "constant": {"all_a": codes, "all_attr": np.zeros((40, 1), int)},
        "few": {"all_a": codes[:3], "all_attr": labels[:3]},
    }.items():
        np.savez(codes_folder / f"{kind}.npz", **arrays)
    (codes_folder / "cut.npz").write_bytes((codes_folder / "sound.npz").read_bytes()[:100])
    home = Path("models", EXP)
    shutil.copy(codes_folder / "sound.npz", home / "latents.npz")  # the labels are not those of digits


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        folder = tmp_path_factory.mktemp("place")
        patch.chdir(folder)
        patch.setattr("urllib.request.urlopen", _offline)
        make_checkpoints()
        make_data()
        make_folders()
        make_latents()
        Path("a-file").write_text("in the way of a folder\n")
        Path("stats.npz").write_bytes(b"PK")
        yield folder


def _offline(*_, **__):
    raise OSError("no network in a test")


RUN_FLAGS = [  # after `run`
    ("--epochs 0", "--epochs"),
    ("--epochs ten", "--epochs"),
    ("--epochs", "--epochs"),
    ("--batch_size 0", "--batch_size"),
    ("--batch_size 99999999999999999999", "--batch_size"),
    ("--a_dim 0", "--a_dim"),
    ("--a_dim -3", "--a_dim"),
    ("--a_dim 999999999", "--a_dim"),
    ("--learning_rate 0", "--learning_rate"),
    ("--learning_rate nan", "--learning_rate"),
    ("--learning_rate inf", "--learning_rate"),
    ("--dropout 1", "--dropout"),
    ("--z_dropout -0.1", "--z_dropout"),
    ("--beta1 0", "--beta1"),
    ("--betaT 1", "--betaT"),
    ("--betaT 0.5 --diffusion_steps 1000", "--betaT"),
    ("--beta1 0.01 --betaT 0.001", "--beta1"),
    ("--diffusion_steps 1", "--diffusion_steps"),
    ("--ema_decay 1.5", "--ema_decay"),
    ("--r_seed -1", "--r_seed"),
    ("--kld_weight -1", "--kld_weight"),
    ("--mmd_weight nan", "--mmd_weight"),
    ("--save_minutes 0", "--save_minutes"),
    ("--input_channels 2", "--input_channels"),
    ("--num_workers -1", "--num_workers"),
    ("--prior swiss", "--prior"),
    ("--mode fly", "--mode"),
    ("--model gan", "--model"),
    ("--dataset imagenet", "imagenet"),
    ("--dataset ../digits", "../digits"),
    ("--sampler euler", "--sampler"),
    ("--colour red", "--colour"),
    ("digits", "digits"),
    ("--img 1", "--img"),  # a prefix of two flags
    ("--tag a/b", "--tag"),
    ("--tag " + "x" * 300, "--tag"),
    ("--kld_weight 1 --prior roll --a_dim 2", "--kld_weight"),
    ("--prior roll --a_dim 3", "--prior roll"),
    ("--prior 10mix --a_dim 5", "--a_dim"),
    ("--use_C", "--use_C"),
    ("--model vae --loss itd", "--loss itd"),
    ("--model vae --z_dropout 0.1", "--z_dropout"),
    ("--model vanilla --z_dropout 0.1", "--z_dropout"),
    ("--mode eval --deterministic --eta 0.5", "--deterministic"),
    ("--mode eval --deterministic --sampler ddpm", "--deterministic"),
    ("--denoiser ddpm", "--model vanilla"),
    ("--model vanilla --denoiser iddpm", "--init_from"),
    ("--init_from weights", "--init_from"),
    ("--mode eval --sample_steps 9 --diffusion_steps 8", "--sample_steps"),
    ("--mode eval_fid --split_step 9 --diffusion_steps 8", "--split_step"),
    ("--mode nll --model vae", "--mode nll"),
    ("--mode mutual_info --model vanilla", "--mode mutual_info"),
    ("--mode eval_fid --dataset moons", "--mode eval_fid"),
    ("--mode disentangle --img_id 1 2", "--img_id"),
    ("--mode save_latent --split all", "--split"),
    ("--mode mutual_info --tau 0", "--tau"),
    ("--device gpu", "--device gpu"),
    ("--device gpu --dry_run", "--device gpu"),
    ("--device meta", "--device meta"),
    ("--device cuda:99", "--device cuda:99"),
]

RUN_SIZES = [
    ("--mode mutual_info --num_images 1", "--num_images 1"), ("--mode eval --from=", "--from"),
    ("--dataset digits --input_size 0", "--input_size"),
    ("--dataset line --input_size 8", "--input_size"),
    ("--dataset line --input_channels 3", "--input_channels"),
    ("--dataset line --denoiser unet", "--denoiser unet"),
    ("--dataset digits --denoiser mlp", "--denoiser mlp"),
    ("--dataset line --loss itd --logsnr_loc 900", "--logsnr_loc"),
    ("--dataset digits --batch_size 1 --tag one", "--batch_size 1"),
    ("--dataset digits --input_size 12 --unets_channels 5 --batch_size 1 --kld_weight 1", "--batch_size 1"),
]

RUN_DATA = [
    ("--dataset celeba --data_dir data/none", "list_attr_celeba.txt"),
    ("--dataset cifar10 --data_dir a-file", "cifar"),
    ("--dataset chairs --data_dir data/none", "chairs"),
    ("--dataset ffhq --data_dir data/none", "ffhq"),
    ("--dataset fmnist --data_dir data/idx-cut", "train-images-idx3-ubyte"),
    ("--dataset fmnist --data_dir data/idx-empty", "t10k-labels-idx1-ubyte"),
    ("--dataset fmnist --data_dir data/idx-format", "train-images-idx3-ubyte"),
    ("--dataset fmnist --data_dir data/idx-labels", "train-images-idx3-ubyte"),
    ("--dataset fmnist --data_dir data/idx-gzip", "train-images-idx3-ubyte.gz"),
    ("--dataset dsprites --data_dir data/npz-nan", dsprites.FILE),
    ("--dataset dsprites --data_dir data/npz-shape", dsprites.FILE),
    ("--dataset dsprites --data_dir data/npz-labels", dsprites.FILE),
    ("--dataset dsprites --data_dir data/npz-pickle", dsprites.FILE),
    ("--dataset dsprites --data_dir data/npz-words", dsprites.FILE),
    ("--dataset cifar10 --data_dir data/pickle", "data_batch_1"),
    ("--dataset 3dshapes --data_dir data/h5", "3dshapes.h5"),
    ("--dataset 3dshapes --data_dir data/h5-words", "3dshapes.h5"),
    ("--dataset 3dshapes --data_dir data/none", "3dshapes.h5"),
    ("--dataset celeba --data_dir data/faces", "list_eval_partition.txt"),
    ("--dataset folder --data_dir pictures/empty", "pictures/empty"),
    ("--dataset folder --data_dir pictures/none", "pictures/none"),
    ("--dataset folder --data_dir pictures/one", "folder"),
    ("--dataset folder --data_dir pictures/corrupt", "05.png"),
    ("--dataset folder --data_dir pictures/cut", "05.png"),
    ("--dataset folder --data_dir pictures/dead-link", "05.png"),
    ("--dataset folder --data_dir pictures/labels", "labels.csv"),
    ("--dataset folder --data_dir pictures/labels-words", "labels.csv"),
    ("--dataset folder --data_dir pictures/nan", ".tif"),
]

RUN_PLACES = [
    ("--dataset line --model_folder a-file", "a-file"),
    ("--dataset line --model_folder a-file/below", "a-file"),
    ("--dataset line --log_folder a-file", "a-file"),
    ("--dataset line --img_folder /proc/nowhere", "/proc/nowhere"),
    ("--dataset line --tb_logger --r_seed 3", "--r_seed"),  # the folder holds a run with another seed
    ("--dataset line --learning_rate 0.5", "--learning_rate"),
    ("--dataset digits --tag bits", "--no-resume"),
    ("--dataset digits --tag latents", "last.pth"),
    ("--dataset digits --mode eval --img_folder a-file", "a-file"),
    ("--dataset digits --mode save_latent --epochs 1 --tag bits", "model-1.pth"),
    ("--dataset digits --mode save_original_img --data_dir x --dataset folder", "folder"),
    ("--mode eval_fid --split_step 0 --result_folder a-file", "a-file"),
    ("--mode eval_fid --split_step 0 --img_folder a-file", "a-file"),
    ("--mode latent_quality --img_folder a-file", "a-file"),
    ("--mode disentangle --img_folder a-file", "a-file"),
    ("--mode interpolate --img_folder /proc/nowhere", "/proc/nowhere"),
    ("--mode plot_latent --img_folder a-file", "a-file"),
    ("--mode plot_latent --label colour", "--label colour"),
    ("--mode train --dataset line --flip", "--flip"),
    *[(f"--mode train --{name} {'x' * 300}", f"--{name}") for name in
      ("data_dir", "model_folder", "img_folder", "log_folder", "result_folder")],
    (f"--mode disentangle --img_id {'x' * 300}/a.png", "--img_id"),
    ("--mode nll --model vanilla --result_folder a-file", "a-file"),
]

RUN_CHECKPOINTS = [
    ("--mode eval --tag none", "--mode train"),
    ("--mode eval --epochs 7", "model-7.pth"),
    ("--mode save_latent --tag cut", "model-1.pth"),
    ("--mode save_latent --tag empty", "model-1.pth"),
    ("--mode save_latent --tag words", "model-1.pth"),
    ("--mode save_latent --tag bomb", "model-1.pth"),
    ("--mode save_latent --tag other", "model-1.pth"),
    ("--mode save_latent --tag kind", "classifier"),
    ("--mode save_latent --tag latents", "latent"),
    ("--mode save_latent --tag nothing", "incomplete"),
    ("--mode save_latent --tag abc", "no checkpoint"),
    ("--mode save_latent --tag fit", "extra"),
    ("--mode eval --sample_steps 50", "--sample_steps"),  # the model's schedule has 4 steps
    ("--mode eval --split_step 500", "--split_step"),
    ("--mode eval --guidance 2", "--z_dropout"),
    ("--mode eval --model vae --guidance 2", "--guidance"),
    ("--mode eval --is_latent", "train_latent_ddim"),
    ("--mode eval --model vae --is_latent", "--is_latent"),
    ("--mode eval --split_step 2 --vanilla_from nowhere.pth", "nowhere.pth"),
    ("--mode eval --split_step 2 --vanilla_from a-file", "a-file"),
    (f"--mode eval --split_step 2 --vanilla_from models/{EXP}/model-1.pth", "vanilla"),
    ("--mode eval --split_step 2 --vanilla_from models/vanilla/digits_4steps_16px_4unet/model-1.pth", "16"),
    ("--mode eval_fid --split_step 2 --vanilla_from models/vae/digits_2d_0.1mmd_4steps_4unet_4enc/model-1.pth", "vae"),
    ("--mode disentangle --img_id 999999", "--img_id 999999"),
    ("--mode disentangle --img_id first", "--img_id first"),
    ("--mode disentangle --img_id -1", "--img_id -1"),
    ("--mode disentangle --img_id ²", "--img_id"),
    ("--mode disentangle --img_id pictures/corrupt/05.png", "05.png"),
    ("--mode interpolate --img_id 1 2 3", "--img_id"),
    ("--mode interpolate --img_id 1 pictures/dead-link/05.png", "05.png"),
    ("--mode nll", "--z_dropout"),
    ("--mode mutual_info --curve_steps 5 --split train", "--curve_steps"),
    ("--mode nll --model vanilla --ensemble nowhere.pth", "nowhere.pth"),
    ("--mode nll --model vanilla --ensemble a-file", "a-file"),
    ("--mode nll --model vanilla --ensemble models/line_2d_0.1mmd_4steps_4unet_4enc/model-1.pth", "--ensemble"),
    ("--mode nll --model vanilla --denoiser ddpm --init_from nowhere", "nowhere"),
    ("--model vanilla --denoiser ddpm --init_from weights/empty", "weights/empty"),
    ("--model vanilla --denoiser ddpm --init_from weights/config", "config.json"),
    ("--model vanilla --denoiser ddpm --init_from weights/scheduler", "config.json"),
    ("--model vanilla --denoiser iddpm --init_from weights", "weights"),
    ("--model vanilla --denoiser iddpm --init_from weights/list.pt", "list.pt"),
    ("--model vanilla --denoiser iddpm --init_from weights/names.pt", "names.pt"),
    ("--model vanilla --denoiser iddpm --init_from a-file", "a-file"),
]

PROGRAM_LINES = [
    ("eval_disentanglement --learning_rate 1e-3", "--learning_rate"),
    ("train_classifier --tau 1", "--tau"),
    ("gen_fid_stats digits", "FOLDER"),
    ("gen_fid_stats digits pictures/sound --split test", "--split test"),
    ("gen_fid_stats", "NAME"),
    ("gen_fid_stats x pictures/none", "pictures/none"),
    ("gen_fid_stats x pictures/empty", "pictures/empty"),
    ("gen_fid_stats x pictures/one", "one"),
    ("gen_fid_stats x pictures/sound --device gpu", "--device gpu"),
    ("gen_fid_stats x pictures/sound --stats_folder a-file", "a-file"),
    ("gen_fid_stats x pictures/sound --inception_weights nowhere.pth", "nowhere.pth"),
    ("gen_fid_stats x pictures/sound --inception_weights a-file", "a-file"),
    ("gen_fid_stats x pictures/sound --extractor classifier", "x_classifier.pth"),
    ("gen_fid_stats x pictures/sound --extractor classifier --classifier a-file", "a-file"),
    (f"gen_fid_stats x pictures/sound --extractor classifier --classifier models/{EXP}/model-1.pth", "model-1.pth"),
    ("gen_fid_stats imagenet --data_dir data", "imagenet"),
    ("gen_fid_stats x pictures/sound --batch_size 0", "--batch_size"),
    ("calc_fid celeba", "FOLDER"),
    ("calc_fid celeba pictures/sound", "gen_fid_stats.py"),
    ("calc_fid stats.npz pictures/sound", "stats.npz"),
    ("calc_fid codes/sound.npz pictures/sound", "codes/sound.npz"),
    ("calc_fid nowhere.npz pictures/sound", "nowhere.npz"),
    ("calc_fid pictures/sound pictures/empty", "pictures/empty"),
    ("calc_fid pictures/sound pictures/sound --output pictures", "pictures"),
    ("eval_disentanglement --tag none", "save_latent"),
    ("eval_disentanglement --codes nowhere.npz", "nowhere.npz"),
    ("eval_disentanglement --codes codes/cut.npz", "codes/cut.npz"),
    ("eval_disentanglement --codes a-file", "a-file"),
    ("eval_disentanglement --codes codes/nan.npz", "codes/nan.npz"),
    ("eval_disentanglement --codes codes/rows.npz", "codes/rows.npz"),
    ("eval_disentanglement --codes codes/none.npz", "codes/none.npz"),
    ("eval_disentanglement --codes codes/lacks.npz", "all_attr"),
    ("eval_disentanglement --codes codes/shape.npz", "codes/shape.npz"),
    ("eval_disentanglement --codes codes/pickle.npz", "codes/pickle.npz"),
    ("eval_disentanglement --codes codes/classes.npz --metrics tad", "tad"),
    ("eval_disentanglement --codes codes/constant.npz", "codes/constant.npz"),
    ("eval_disentanglement --codes codes/few.npz", "rows"),
    ("eval_disentanglement --codes codes/sound.npz --folds 1", "--folds"),
    ("eval_disentanglement --codes codes/sound.npz --output a-file", "a-file"),
    ("eval_disentanglement --codes codes/sound.npz --metrics bogus", "--metrics"),
    ("train_classifier --tag none", "save_latent"),
    (f"train_classifier {TINY} --inputs pixels", "latents.npz"),  # labels of other images
    (f"train_classifier {TINY} --inputs x_T", "latent_quality.npz"),
    ("train_classifier --images --dataset line", "line"),
    ("train_classifier --images --device gpu", "--device gpu"),
    ("train_classifier --inputs colour", "--inputs"),
]

TABLE = (
    [f"run {words}" for words, _ in RUN_FLAGS] + [f"run {TINY} {words}" for words, _ in RUN_SIZES]
    + [f"run {TINY} {words}" for words, _ in RUN_DATA] + [f"run {TINY} {words}" for words, _ in RUN_PLACES]
    + [f"run {TINY} {words}" for words, _ in RUN_CHECKPOINTS] + [words for words, _ in PROGRAM_LINES]
)
CULPRITS = [culprit for part in (RUN_FLAGS, RUN_SIZES, RUN_DATA, RUN_PLACES, RUN_CHECKPOINTS, PROGRAM_LINES)
            for _, culprit in part]


def listing(folder: Path) -> dict[str, tuple]:
    """Every path below a folder; of files with their size and the time of their last change."""
    found = {}
    for parent, folders, files in os.walk(folder):  # many times as fast as rglob
        found |= {os.path.join(parent, name): () for name in folders}
        for name in files:
            status = os.lstat(path := os.path.join(parent, name))
            found[path] = status.st_size, status.st_mtime_ns
    return found


@pytest.mark.parametrize(("line", "culprit"), list(zip(TABLE, CULPRITS, strict=True)), ids=TABLE)
def test_a_wrong_call_is_one_line_and_leaves_nothing(place, capsys, line, culprit):
    program, *words = line.split()
    before = listing(place)
    assert PROGRAMS[program].main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{program}.py: error: ") and culprit in said
    assert len(said.splitlines()) == 1
    assert listing(place) == before


def test_nothing_that_was_unpickled_ran(place):
    """Last in this file: after every call of the table."""
    assert not list(place.rglob("bomb-went-off"))
