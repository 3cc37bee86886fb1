"""Networks of diffusers, from a folder of its files."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from foreign import published_cosine, randomised, refusal

from pretrained import build, ddpm, denoiser, describe, load_ddpm

# ---------------------------------------------------------------------------------------------------------------------
# What is refused by name


@pytest.mark.parametrize("scheduler, culprit", [
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
    ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "flow matching"),
    ({"_class_name": "EDMEulerScheduler"}, "EDM"),
    ({"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000}, "variance-exploding"),
    ({"_class_name": "KarrasVeScheduler"}, "variance-exploding"),
    ({"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 40}, "consistency"),
    ({"_class_name": "LCMScheduler", "beta_schedule": "linear"}, "consistency"),
    ({"_class_name": "SomebodysScheduler"}, "SomebodysScheduler"),
    ({"_class_name": ["DDPMScheduler"]}, "DDPMScheduler"),
    ({"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"}, "v_prediction"),
    ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas"),
    ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type"),
    ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type"),
    ({"_class_name": "DDPMScheduler", "num_train_timesteps": True}, "num_train_timesteps"),
    ({"_class_name": "DDPMScheduler", "beta_schedule": ["linear"]}, "beta_schedule"),
])
def test_schedulers_outside_the_list_are_refused_by_name(tmp_path, scheduler, culprit):
    """Needs no diffusers: nothing is built before the scheduler is known."""
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    said = refusal(load_ddpm, tmp_path)
    assert "scheduler_config.json" in said and culprit in said


def test_a_scheduler_that_does_not_say_its_betas_is_assumed_to_be_ddpms_or_refused(tmp_path):
    """Fault: Heun's defaults are .00085 to .012, and DDPM's were taken without a word."""
    file = tmp_path / "scheduler_config.json"
    said = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4}
    assert ddpm._unsaid({**said, "beta_end": 0.02}, file) == []
    assert ddpm._unsaid({"num_train_timesteps": 9, "beta_schedule": "squaredcos_cap_v2"}, file) == []
    assert "does not say beta_end: DDPM's are assumed" in ddpm._unsaid(said, file)[0]
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    file.write_text(json.dumps({**said, "_class_name": "HeunDiscreteScheduler"}))
    assert "does not say beta_end" in refusal(load_ddpm, tmp_path)


@pytest.mark.parametrize("index, folders, culprit", [
    ({"_class_name": "LDMPipeline"}, [], "latent"),
    ({"_class_name": "ConsistencyModelPipeline"}, [], "consistency"),
    ({"_class_name": "MyPipeline", "vae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", "UNet2DModel"]}, [],
     "'vae'"),
    ({"_class_name": "MyPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}, [], "'text_encoder'"),
    (None, ["vqvae"], "'vqvae'"),
])
@pytest.mark.parametrize("inside", [False, True], ids=["pipeline", "its unet"])
def test_latent_and_other_pipelines_are_refused_by_name(tmp_path, index, folders, culprit, inside):
    home = tmp_path / "unet"
    for folder in ("unet", *folders):
        (tmp_path / folder).mkdir()
    (home / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    if index is not None:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert culprit in refusal(load_ddpm, home if inside else tmp_path)


def test_a_folder_of_checkpoints_names_one(tmp_path):
    for step in (500, 900):
        (tmp_path / f"checkpoint-{step}" / "unet").mkdir(parents=True)
    assert "checkpoint-900" in refusal(load_ddpm, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Networks


@pytest.fixture(scope="module")
def unet():
    diffusers = pytest.importorskip("diffusers")
    return randomised(
        diffusers.UNet2DModel(
            sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4, attention_head_dim=None, flip_sin_to_cos=False, freq_shift=1,
        )
    )


def schedule_table(beta1=1e-4, betaT=0.02, steps=1000):
    abar = np.cumprod(1 - np.linspace(beta1, betaT, steps))
    return torch.from_numpy(np.log(abar) - np.log1p(-abar))


def agree(denoiser, unet, table):
    """The same noise through the adapter as from the network itself, at steps that differ within the batch."""
    x, steps = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 500, len(table) - 1])
    with torch.no_grad():
        torch.testing.assert_close(denoiser(x, table[steps].float()), unet(x, steps).sample, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_diffusers_folder_gives_the_same_noise(tmp_path, unet, safe):
    unet.save_pretrained(tmp_path, safe_serialization=safe)
    denoiser = load_ddpm(tmp_path)
    agree(denoiser, unet, schedule_table())
    assert denoiser.image_shape == (3, 8, 8) and not denoiser.learns_variance
    assert denoiser.noise_and_variance(torch.zeros(1, 3, 8, 8), torch.zeros(1))[1] is None


def test_diffusers_pipeline_folder_brings_its_own_schedule(tmp_path, unet):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=800, beta_start=2e-4, beta_end=0.01)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "unet"):
        agree(load_ddpm(folder), unet, schedule_table(2e-4, 0.01, 800))
    # As google/ddpm-cifar10-32 has it: everything in one folder.
    (tmp_path / "scheduler" / "scheduler_config.json").rename(tmp_path / "unet" / "scheduler_config.json")
    (tmp_path / "unet").rename(tmp_path / "flat")
    agree(load_ddpm(tmp_path / "flat"), unet, schedule_table(2e-4, 0.01, 800))


def test_a_scheduler_of_even_deviations_is_read(tmp_path, unet):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=1e-3, beta_end=0.012)
    diffusers.DDIMPipeline(unet, scheduler).save_pretrained(tmp_path)
    abar = scheduler.alphas_cumprod.double()
    agree(load_ddpm(tmp_path), unet, torch.log(abar) - torch.log1p(-abar))


@pytest.mark.parametrize("options", [{"max_shard_size": "5KB"}, {"variant": "fp16"},
                                     {"variant": "fp16", "max_shard_size": "5KB"},
                                     {"max_shard_size": "5KB", "safe_serialization": False}])
def test_shards_and_variants_load(tmp_path, unet, options):
    unet.save_pretrained(tmp_path, **options)
    assert not (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    denoiser = load_ddpm(tmp_path)
    agree(denoiser, unet, schedule_table())
    assert denoiser.source.is_file()
    if "max_shard_size" in options:
        denoiser.source.unlink()
        assert denoiser.source.name in refusal(load_ddpm, tmp_path)


def test_half_precision_becomes_float32(tmp_path, unet):
    copy.deepcopy(unet).half().save_pretrained(tmp_path)
    denoiser = load_ddpm(tmp_path)
    assert {value.dtype for value in denoiser.state_dict().values()} == {torch.float32}
    assert torch.equal(denoiser.network.conv_in.weight, unet.conv_in.weight.half().float())


def test_averaged_weights_are_taken_where_there_are_both(tmp_path, unet):
    diffusers = pytest.importorskip("diffusers")
    place = tmp_path / "run" / "checkpoint-500"
    unet.save_pretrained(place / "unet")
    averaged = randomised(copy.deepcopy(unet), seed=5)
    ema = diffusers.training_utils.EMAModel(averaged.parameters(), model_cls=diffusers.UNet2DModel,
                                            model_config=averaged.config)
    ema.save_pretrained(place / "unet_ema")
    denoiser = load_ddpm(place)
    agree(denoiser, averaged, schedule_table())
    assert denoiser.source.parent.name == "unet_ema" and len(denoiser.assumptions) == 1
    assert "no scheduler" in denoiser.assumptions[0]
    plain = load_ddpm(place / "unet")
    agree(plain, unet, schedule_table())
    assert "unet_ema are not used" in plain.assumptions[1]


def test_flags_fill_in_for_a_missing_scheduler_and_never_contradict_one(tmp_path, unet):
    unet.save_pretrained(tmp_path)
    denoiser = load_ddpm(tmp_path, flags={"schedule": "cosine", "diffusion_steps": 500})
    np.testing.assert_allclose(denoiser.schedule.betas.numpy(), published_cosine(500))
    assert "as typed" in denoiser.assumptions[0]
    pytest.importorskip("diffusers").DDPMScheduler().save_pretrained(tmp_path)
    assert load_ddpm(tmp_path, flags={"diffusion_steps": 1000}).assumptions == []
    for flags in ({"schedule": "cosine"}, {"diffusion_steps": 500}, {"betaT": 0.01}):
        assert f"--{next(iter(flags))}" in refusal(load_ddpm, tmp_path, 0.0, flags)


def test_another_image_size_than_the_models_own_is_refused(tmp_path, unet):
    unet.save_pretrained(tmp_path)
    denoiser = load_ddpm(tmp_path)
    denoiser.check_image_shape((3, 8, 8))
    assert "--input_size 8" in refusal(denoiser.check_image_shape, (3, 16, 16))


def test_diffusers_folder_with_the_old_names_of_attention(tmp_path, unet):
    unet.save_pretrained(tmp_path, safe_serialization=False)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in unet.state_dict().items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        state[name] = tensor
    assert any(".query." in name for name in state)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    agree(load_ddpm(tmp_path), unet, schedule_table())


def test_tuned_diffusers_network_is_rebuilt_from_its_description_alone(tmp_path, unet):
    unet.save_pretrained(tmp_path)
    denoiser = load_ddpm(tmp_path, dropout=0.2)
    assert 0.2 in {layer.p for layer in denoiser.modules() if isinstance(layer, torch.nn.Dropout)}
    again = build(json.loads(json.dumps(describe(denoiser))))
    again.load_state_dict(randomised(denoiser, seed=1).state_dict())
    x, logsnr = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 8.0])
    assert torch.equal(again(x, logsnr), denoiser(x, logsnr))


def test_unfit_diffusers_folder_is_one_line(tmp_path, unet):
    unet.save_pretrained(tmp_path, safe_serialization=False)
    weights, config = tmp_path / "diffusion_pytorch_model.bin", tmp_path / "config.json"
    scheduler = tmp_path / "scheduler_config.json"
    good = json.loads(config.read_text())

    for change in ({"_class_name": "UNet2DConditionModel"}, {"time_embedding_type": "fourier"}, {"num_class_embeds": 9},
                   {"sample_size": ["8", 8]}, {"sample_size": "8"},
                   {"block_out_channels": [8]}, {"out_channels": 4}, {"down_block_types": ["X", "Y"]}):
        config.write_text(json.dumps({**good, **change}))
        assert "config.json" in refusal(load_ddpm, tmp_path)
    config.write_text(json.dumps(good))

    for change in ({"prediction_type": "v_prediction"}, {"beta_schedule": "sigmoid"}, {"trained_betas": [0.1]},
                   {"beta_start": "small"}, {"num_train_timesteps": 0}):
        scheduler.write_text(json.dumps(change))
        assert "scheduler_config.json" in refusal(load_ddpm, tmp_path)
    scheduler.unlink()

    state = unet.state_dict()
    torch.save({name: value for name, value in state.items() if name != "conv_in.bias"}, weights)
    assert "lacks 'conv_in.bias'" in refusal(load_ddpm, tmp_path)
    torch.save({**state, "surplus": torch.zeros(1)}, weights)
    assert "'surplus'" in refusal(load_ddpm, tmp_path)
    weights.with_suffix(".safetensors").write_bytes(b"broken")
    assert "safetensors" in refusal(load_ddpm, tmp_path)
    weights.with_suffix(".safetensors").unlink()
    weights.unlink()
    assert "diffusion_pytorch_model" in refusal(load_ddpm, tmp_path)
    config.unlink()
    assert "config.json" in refusal(load_ddpm, tmp_path)
    assert "absent" in refusal(load_ddpm, tmp_path / "absent")


def test_absent_diffusers_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    assert "pip install diffusers" in refusal(load_ddpm, tmp_path)
    assert "pip install diffusers" in refusal(denoiser.build, {"kind": "ddpm", "network": {}})
