"""The mode export: what is read back is the same model; what is broken is refused; what the card says."""

import json
import shlex
from pathlib import Path

import pytest
import tiny
import torch

import commandline
import config
import run
from dataset import registry
from experiment import load
from utils import CommandError, file_hash, load_checkpoint, write_json

EXP = "digits_2d_0.1mmd_4steps_4unet_4enc"
WORDS = {"diff": "--dataset digits", "vae": "--dataset digits --model vae", "points": "--dataset moons --model vanilla"}


def export(words: str, more: str = "") -> tuple[Path, Path]:
    """A checkpoint of fresh weights and its export's folder."""
    path = tiny.checkpoint(words)
    assert run.main(f"--mode export {tiny.SMALL} {words} {more}".split()) == 0
    return path, path.parent / "export"


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_what_is_read_back_is_the_same_to_the_bit(words, in_tmp):
    path, folder = export(words)
    here, there = load(path, "cpu"), load(folder, "cpu")
    assert there.path == folder / "model.safetensors" and (there.epoch, there.step) == (here.epoch, here.step)
    assert (there.stored, there.data, there.model.shape) == (here.stored, here.data, here.model.shape)
    x = here.sample(3, steps=3)
    assert torch.equal(x, there.sample(3, steps=3))
    if hasattr(here.model, "encoder"):
        assert torch.equal(here.encode(x.clamp(-1, 1)), there.encode(x.clamp(-1, 1)))
    if hasattr(here.model, "gaussian"):
        one, two = here.model.gaussian.state(), there.model.gaussian.state()
        assert all(torch.equal(one[name], two[name]) for name in ("mean", "variances", "basis"))
        assert [one[name] for name in ("rows", "shrinkage")] == [two[name] for name in ("rows", "shrinkage")]


def test_an_export_stands_for_the_models_flags_and_is_not_trained_on(in_tmp, capsys):
    path, folder = export(WORDS["diff"])
    path.unlink()  # the folder is enough
    assert run.main(f"--mode eval --from {folder} --sampling_number 2 --split_step 0 --device cpu".split()) == 0
    before = sorted(path.name for path in folder.iterdir())
    for words in (f"--from {folder}", f"--mode train --from {folder}/model.safetensors"):
        assert run.main(words.split()) == 2
        assert "is an export" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before


def test_an_export_is_not_exported_again(in_tmp, capsys):
    _, folder = export(WORDS["points"])
    assert run.main(f"--mode export --from {folder}".split()) == 2
    assert "is an export already" in capsys.readouterr().err and not (folder / "export").exists()


def test_a_second_export_replaces_the_first_and_never_what_somebody_wrote(in_tmp, capsys):
    _, folder = export(WORDS["points"])
    first = file_hash(folder / "model.safetensors")
    assert export(WORDS["points"])[1] == folder and file_hash(folder / "model.safetensors") == first
    assert (folder / ".SHA256SUMS").read_text().count("\n") == 3
    (folder / "README.md").write_text("mine")
    assert run.main(f"--mode export {tiny.SMALL} {WORDS['points']}".split()) == 2
    assert "README.md was not made by this program" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "mine"


def about(folder: Path, **changes) -> None:
    place = folder / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))


BROKEN = {
    "no config.json": lambda folder: (folder / "config.json").unlink(),
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "a format": lambda folder: about(folder, format=True), "a kind": lambda folder: about(folder, kind="x"),
    "an epoch": lambda folder: about(folder, epoch="1"), "a shape": lambda folder: about(folder, shape=[9]),
    "a config": lambda folder: about(folder, config={"a_dim": 2, "colour": 1}),
    "a wide config": lambda folder: about(folder, config={"dataset": "moons", "model": "vanilla",
                                                          "unets_channels": 4096}),
    "the moments": lambda folder: about(folder, gaussian=[1]),
    "the moments' rows": lambda folder: about(folder, gaussian={"rows": -1}),
    "a network": lambda folder: about(folder, network={"kind": "iddpm"}),
    "weights changed": lambda folder: (folder / "model.safetensors").write_bytes(b"x" + (
        folder / "model.safetensors").read_bytes()[1:]),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sound"))
        yield {path.name: path.read_bytes() for path in export(WORDS["points"])[1].iterdir()}


@pytest.mark.parametrize("spoil", BROKEN)
def test_a_broken_export_is_one_line(spoil, sound, tmp_path):
    for name, content in sound.items():
        (tmp_path / name).write_bytes(content)
    BROKEN[spoil](tmp_path)
    with pytest.raises(CommandError) as caught:
        load(tmp_path / "model.safetensors", "cpu")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def forged(folder: Path, change) -> None:
    """Other tensors, and a config.json that says they belong."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    about(folder, weights_hash=file_hash(folder / "model.safetensors"))


@pytest.mark.parametrize("change", [
    lambda t: t.pop("gaussian.mean"), lambda t: t.pop("network.first.weight"),
    lambda t: t.update({"network.first.weight": t["network.first.weight"] * torch.nan}),
    lambda t: t.update({"gaussian.variances": -t["gaussian.variances"]}),
    lambda t: t.update({"more": torch.zeros(1)}),
    lambda t: t.update({"network.first.weight": torch.zeros(1)}),
    lambda t: t.update({"network.first.weight": torch.zeros(8, 2).to(torch.float8_e5m2)}),
])
def test_forged_tensors_are_one_line(change, sound, tmp_path):
    for name, content in sound.items():
        (tmp_path / name).write_bytes(content)
    forged(tmp_path, change)
    with pytest.raises(CommandError) as caught:
        load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_safetensors_are_one_line(sound, tmp_path):
    (tmp_path / "config.json").write_bytes(sound["config.json"])
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    about(tmp_path, weights_hash=file_hash(tmp_path / "model.safetensors"))
    with pytest.raises(CommandError, match="cannot be read"):
        load(tmp_path, "cpu")


@pytest.mark.slow
def test_the_card_has_the_checkpoints_own_numbers_their_errors_and_their_commands(in_tmp, capsys):
    path, folder = export(WORDS["points"])
    assert "None has been measured" in (folder / "README.md").read_text()
    words = f"{tiny.SMALL} {WORDS['points']}"
    assert run.main(f"--mode nll --num_images 20 --npoints 7 {words}".split()) == 0
    results = next(Path("results").rglob("nll.json"))
    other = results.with_name("mutual_info.json")
    write_json(other, {"checkpoint_hash": "0" * 16})
    capsys.readouterr()
    assert run.main(f"--mode export {words}".split()) == 0
    assert f"not in the card: {other} is of another checkpoint" in capsys.readouterr().out
    text, record = (folder / "README.md").read_text(), json.loads(results.read_text())
    entry = record["entries"][0]
    assert f"| {entry['nll_nats']:.5g} | {entry['se_nats']:.2g} | nll.json |" in text
    (command,) = [line for line in text.splitlines() if line.startswith("python run.py --mode nll")]
    assert run.main([*shlex.split(command)[2:], "--result_folder", "again"]) == 0
    again = json.loads(next(Path("again").rglob("nll.json")).read_text())
    assert again["entries"] == record["entries"]
    (command,) = [line for line in text.splitlines() if line.startswith("python run.py --mode train")]
    used = commandline.parse(shlex.split(command)[2:], "run.py", registry.SPECS).config
    assert all(getattr(used, name) == getattr(load(path, "cpu").stored, name)
               for name in (*config.names_of("model"), *config.names_of("training")))


def test_of_several_checkpoints_the_named_one_is_exported(in_tmp):
    path = tiny.checkpoint(WORDS["points"])
    torch.save(load_checkpoint(path) | {"epoch": 2}, path.with_name("model-2.pth"))
    assert run.main(f"--mode export {tiny.SMALL} {WORDS['points']} --epochs 1".split()) == 0
    said = json.loads((path.parent / "export" / "config.json").read_text())
    assert (said["epoch"], said["checkpoint_hash"]) == (1, file_hash(path))


# ---------------------------------------------------------------------------------------------------------------------
# Pretrained networks


def test_a_tuned_network_of_diffusers_is_a_pipeline_again(in_tmp):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8),
                                   down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                                   up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1,
                                   norm_num_groups=4, attention_head_dim=4)
    theirs.save_pretrained("theirs")
    diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=1e-3, beta_end=0.012).save_pretrained("theirs")
    words = "--dataset digits --model vanilla --denoiser ddpm --device cpu"
    assert run.main(f"--mode train {words} --init_from theirs --max_steps 2 --batch_size 8 --epochs 1 "
                    "--sampling_number 1 --learning_rate 1e-2".split()) == 0
    assert run.main(f"--mode export {words}".split()) == 0
    (folder,) = Path("models").rglob("export")
    model, pipeline = load(folder, "cpu").model, diffusers.DDPMPipeline.from_pretrained(folder)
    x, steps = torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        noise = pipeline.unet(x, steps).sample
        assert torch.allclose(noise, model.denoise(x, model.schedule.logsnr(steps + 1)), atol=1e-5)
        assert not torch.allclose(noise, theirs(x, steps).sample, atol=1e-3)
    assert torch.allclose(pipeline.scheduler.betas.double(), model.schedule.betas, atol=1e-7)
    assert pipeline(batch_size=1, num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
    again = load_checkpoint(next(Path("models").rglob("model-1.pth")))
    assert torch.equal(again["ema"]["network.network.conv_in.weight"], pipeline.unet.conv_in.weight)
