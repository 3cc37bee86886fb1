"""Networks of improved diffusion, from a state dict alone, and the contract that they are brought to."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import published_cosine, randomised, refusal
from torch.nn import functional as F

import commandline
import utils
from dataset import registry
from diffusion import Gaussian
from experiment import build_fresh
from pretrained import build, describe, load_iddpm
from pretrained.improved_unet import Attention, ImprovedUNet, embed_time

LISTED = Path(__file__).parents[1] / "data" / "iddpm_cifar10_state_dict.tsv"
SMALL = {
    "in_channels": 1,
    "out_channels": 2,
    "channels": 32,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [1],
    "heads": 4,
}


def small_file(folder, **changes):
    """A state dict of a small network with random weights, saved as improved diffusion does, and its network."""
    network = randomised(ImprovedUNet(**{**SMALL, **changes}))
    torch.save(network.state_dict(), folder / "weights.pt")
    return folder / "weights.pt", network


# ---------------------------------------------------------------------------------------------------------------------
# Names, shapes, sizes


@pytest.mark.slow
def test_listed_names_and_shapes_load_strictly(tmp_path):
    """The published CIFAR-10 state dict: every name and shape of the list, none besides."""
    rows = [line.split("\t") for line in LISTED.read_text().splitlines()]
    listed = {name: tuple(map(int, sizes.split("x"))) for name, sizes in rows}
    # Each tensor repeats one number, of which the file then holds one.
    numbers = np.linspace(-1, 1, len(listed)).tolist()
    state = {name: torch.tensor(n).expand(shape) for n, (name, shape) in zip(numbers, listed.items(), strict=True)}
    torch.save(state, tmp_path / "cifar10.pt")

    denoiser = load_iddpm(tmp_path / "cifar10.pt", dropout=0.3)
    assert {name: tuple(value.shape) for name, value in denoiser.network.state_dict().items()} == listed
    for name, value in denoiser.network.state_dict().items():
        assert (value == state[name]).all(), name
    sizes = {"in_channels": 3, "out_channels": 6, "channels": 128, "multipliers": [1, 2, 2, 2], "blocks": 3,
             "attention": [1, 2], "heads": 4, "dropout": 0.3}
    assert describe(denoiser)["network"] == sizes
    assert denoiser.learns_variance and not denoiser.training
    # Of 4000 steps the last, index 3999, is fed as 999.75.
    times = denoiser.times(denoiser.schedule.logsnr_table[[0, 2000, -1]])
    torch.testing.assert_close(times, torch.tensor([0.0, 500.0, 999.75]))
    rates = {layer.p for layer in denoiser.modules() if isinstance(layer, torch.nn.Dropout)}
    assert rates == {0.3}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"in_channels": 3, "out_channels": 3, "multipliers": [1, 1, 3], "blocks": 2, "attention": [0, 2]},
        {"channels": 64, "multipliers": [2], "blocks": 2, "attention": []},
    ],
)
def test_other_sizes_are_inferred_from_the_file(tmp_path, changes):
    file, network = small_file(tmp_path, **changes)
    denoiser = load_iddpm(file)
    assert describe(denoiser)["network"] == {**SMALL, **changes, "dropout": 0.0}
    x, logsnr = torch.randn(2, denoiser.channels, 8, 8), torch.tensor([3.0, -2.0])
    expected = network(x, denoiser.times(logsnr))[:, : denoiser.channels]
    torch.testing.assert_close(denoiser(x, logsnr), expected)


@pytest.mark.slow
def test_missing_extra_or_misshapen_entry_is_one_line(tmp_path):
    """Loading is strict, where published code passes strict=False."""
    file, network = small_file(tmp_path)

    def with_state(change):
        state = network.state_dict()
        change(state)
        torch.save(state, file)
        return refusal(load_iddpm, file)

    for name in ("time_embed.2.bias", "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.2.weight",
                 "input_blocks.2.0.op.bias", "input_blocks.3.1.qkv.weight", "input_blocks.3.1.proj_out.weight",
                 "output_blocks.3.0.skip_connection.bias", "out.2.weight"):
        assert f"lacks '{name}'" in with_state(lambda state, name=name: state.pop(name))
    assert "'label_emb.weight'" in with_state(lambda state: state.update({"label_emb.weight": torch.zeros(10, 128)}))
    assert "'middle_block.1.norm.bias' is 63 where the network has 64" in with_state(
        lambda state: state.update({"middle_block.1.norm.bias": torch.zeros(63)})
    )
    for broken in (torch.zeros(33, 1, 3, 3), torch.zeros(0, 1, 3, 3), torch.zeros(32)):
        assert "input_blocks.0.0.weight" in with_state(
            lambda state, broken=broken: state.update({"input_blocks.0.0.weight": broken})
        )
    # Without scale and shift the time's linear layers are half as wide.
    assert "emb_layers.1.weight" in with_state(
        lambda state: state.update({"middle_block.0.emb_layers.1.weight": torch.zeros(64, 128)})
    )


class _Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_files_that_are_no_state_dict_are_refused_and_never_run(in_tmp):
    file, network = small_file(in_tmp)
    whole = file.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        file.write_bytes(content)
        assert str(file) in refusal(load_iddpm, file)
    torch.save({"time_embed.0.weight": _Trap()}, file)
    assert str(file) in refusal(load_iddpm, file)
    assert not Path("sprung").exists()
    torch.save([torch.zeros(2)], file)
    assert "list" in refusal(load_iddpm, file)
    torch.save({"model": network.state_dict()}, file)
    assert "'model'" in refusal(load_iddpm, file)
    torch.save({}, file)
    assert "input_blocks.0.0.weight" in refusal(load_iddpm, file)
    assert "does not exist" in refusal(load_iddpm, in_tmp / "absent.pt")


@pytest.mark.parametrize("change, culprit", [
    (lambda state: {**state, "label_emb.weight": torch.zeros(10, 128)}, "class_cond"),
    (lambda state: {name.replace("2.0.op", "2.0.h_upd.op"): value for name, value in state.items()}, "resblock_updown"),
    (lambda state: {name: value[: len(value) // 2] if "emb_layers.1" in name else value
                    for name, value in state.items()}, "use_scale_shift_norm"),
    (lambda state: {**state, "out.2.bias": torch.full((2,), math.nan)}, "'out.2.bias' holds"),
    (lambda state: {**state, "out.2.bias": torch.zeros(2, dtype=torch.int8)}, "'out.2.bias' holds"),
    (lambda state: {"state": {0: {"step": 1}}, "param_groups": []}, "optimiser"),
    (lambda state: {"model": state, "ema": state}, "save its entry 'ema' alone"),
    (lambda state: {"state_dict": state, "epoch": 3}, "save its entry 'state_dict' alone"),
])
def test_other_files_of_improved_diffusion_are_refused_by_name(tmp_path, change, culprit):
    file, network = small_file(tmp_path)
    torch.save(change(network.state_dict()), file)
    assert culprit in refusal(load_iddpm, file)


def test_prefixed_names_and_half_precision_load(tmp_path):
    file, network = small_file(tmp_path)
    expected = load_iddpm(file).state_dict()
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, file)
    assert all(torch.equal(value, expected[name]) for name, value in load_iddpm(file).state_dict().items())
    torch.save({name: value.half() for name, value in network.state_dict().items()}, file)
    for name, value in load_iddpm(file).state_dict().items():
        assert torch.equal(value, expected[name].half().float())


# ---------------------------------------------------------------------------------------------------------------------
# What the file does not say is assumed aloud, or typed by flag


def test_what_a_state_dict_does_not_say_is_an_assumption(tmp_path):
    file, _ = small_file(tmp_path)
    (said,) = load_iddpm(file).assumptions
    for part in ("weights.pt", "4 attention heads", "cosine schedule of 4000 steps", "--diffusion_steps"):
        assert part in said
    assert build(describe(load_iddpm(file))).assumptions == [said]
    (said,) = load_iddpm(file, flags={"schedule": "linear", "diffusion_steps": 1000}).assumptions
    assert "4 attention heads" in said and "cosine" not in said


@pytest.mark.parametrize("words, betas, scale", [
    ("", published_cosine(4000), 0.25),
    ("--schedule linear --diffusion_steps 1000", np.linspace(1e-4, 0.02, 1000), 1.0),
    ("--schedule linear --diffusion_steps 2000", np.linspace(5e-5, 0.01, 2000), 0.5),  # improved diffusion's scaling
    ("--diffusion_steps 500", published_cosine(500), 2.0),
    ("--schedule linear --diffusion_steps 1000 --beta1 2e-4 --betaT 0.01", np.linspace(2e-4, 0.01, 1000), 1.0),
])
def test_a_schedule_typed_by_hand_is_the_networks(tmp_path, capsys, words, betas, scale):
    file, _ = small_file(tmp_path)
    _, config, given = commandline.parse(
        f"--model vanilla --denoiser iddpm --init_from {file} {words}".split(), "run.py", registry.SPECS)
    gaussian = Gaussian(torch.zeros(64).double(), torch.ones(64).double(), None)
    model = build_fresh(config, (1, 8, 8), gaussian, torch.device("cpu"), given)
    assert "assumed: weights.pt does not say" in capsys.readouterr().out
    np.testing.assert_allclose(model.schedule.betas.numpy(), betas, rtol=1e-9)
    assert model.network.times(model.schedule.logsnr_table[-1:]).item() == pytest.approx((len(betas) - 1) * scale)
    assert config.diffusion_steps == len(betas) and model.network.source == file


# ---------------------------------------------------------------------------------------------------------------------
# What the names do not show


def test_time_embedding_has_its_cosines_first():
    # width 4: rates 1 and 10000^(-1/2) = .01, at time 2
    expected = torch.tensor([[-0.41614684, 0.99980001, 0.90929743, 0.01999867]])
    torch.testing.assert_close(embed_time(torch.tensor([2.0]), 4), expected)


def test_time_embedding_takes_fractions():
    whole, quarter = embed_time(torch.tensor([3.0, 3.25]), 32)
    assert (whole - quarter).abs().max() > 0.1


def test_attention_splits_heads_before_queries_keys_and_values():
    """With a constant value in the first head alone, the first quarter of the channels alone is moved."""
    attention = Attention(32, heads=4)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.proj_out.weight.copy_(torch.eye(32)[:, :, None])
        attention.qkv.bias[16:24] = 1.0  # head 0 holds 0..23: 8 queries, 8 keys, 8 values
    x = torch.randn(2, 32, 2, 3)
    moved = (attention(x) - x).detach()
    torch.testing.assert_close(moved[:, :8], torch.ones(2, 8, 2, 3))
    assert moved[:, 8:].abs().max() == 0


def by_names(state, x, time):
    """Improved diffusion's network read from the names of its state dict: an independent reading of them."""

    def norm(name, h):
        groups = h.reshape(len(h), 32, -1)
        groups = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        shape = (1, -1, *[1] * (h.dim() - 2))
        return groups.reshape(h.shape) * state[f"{name}.weight"].reshape(shape) + state[f"{name}.bias"].reshape(shape)

    def linear(name, h):
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def conv(name, h, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(h, weight, state[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    def silu(h):
        return h / (1 + torch.exp(-h))

    def residual(name, x, time):
        h = conv(f"{name}.in_layers.2", silu(norm(f"{name}.in_layers.0", x)))
        modulation = linear(f"{name}.emb_layers.1", silu(time))[:, :, None, None]
        scale, shift = modulation[:, : h.shape[1]], modulation[:, h.shape[1] :]
        h = norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        h = conv(f"{name}.out_layers.3", silu(h))
        return h + (conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in state else x)

    def attention(name, x):
        flat = x.reshape(*x.shape[:2], -1)
        qkv = torch.einsum("oc,bcp->bop", state[f"{name}.qkv.weight"][:, :, 0], norm(f"{name}.norm", flat))
        heads = (qkv + state[f"{name}.qkv.bias"][:, None]).split(3 * x.shape[1] // 4, dim=1)
        moved = []
        for q, k, v in (head.split(head.shape[1] // 3, dim=1) for head in heads):
            attended = torch.softmax(torch.einsum("bcp,bcs->bps", q, k) / q.shape[1] ** 0.5, dim=-1)
            moved.append(torch.einsum("bps,bcs->bcp", attended, v))
        projected = torch.einsum("oc,bcp->bop", state[f"{name}.proj_out.weight"][:, :, 0], torch.cat(moved, 1))
        return x + (projected + state[f"{name}.proj_out.bias"][:, None]).reshape(x.shape)

    def block(name, h, time):
        for part in range(3):
            here = f"{name}.{part}"
            if f"{here}.in_layers.0.weight" in state:
                h = residual(here, h, time)
            elif f"{here}.qkv.weight" in state:
                h = attention(here, h)
            elif f"{here}.op.weight" in state:
                h = conv(f"{here}.op", h, stride=2)
            elif f"{here}.conv.weight" in state:
                h = conv(f"{here}.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
            elif f"{here}.weight" in state:
                h = conv(here, h)
        return h

    def count(side):
        return 1 + max(int(name.split(".")[1]) for name in state if name.startswith(side))

    width = state["time_embed.0.weight"].shape[1]
    rates = 10_000.0 ** -(torch.arange(width // 2) / (width // 2))
    features = torch.cat([torch.cos(time[:, None] * rates), torch.sin(time[:, None] * rates)], 1).to(x)
    time = linear("time_embed.2", silu(linear("time_embed.0", features)))
    left, h = [], x
    for index in range(count("input_blocks")):
        h = block(f"input_blocks.{index}", h, time)
        left.append(h)
    h = block("middle_block", h, time)
    for index in range(count("output_blocks")):
        h = block(f"output_blocks.{index}", torch.cat([h, left.pop()], 1), time)
    return conv("out.2", silu(norm("out.0", h)))


def test_network_agrees_with_an_independent_reading_of_its_names():
    network = randomised(ImprovedUNet(3, 6, 32, [1, 2, 2], 2, [1, 2], 4)).double()
    x, time = torch.randn(2, 3, 8, 8).double(), torch.tensor([731.25, 4.0])
    with torch.no_grad():
        expected = by_names(network.state_dict(), x, time)
        assert expected.std() > 0.01
        # Norms, and the features of time, are in float32.
        torch.testing.assert_close(network.float()(x.float(), time), expected.float(), rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# The contract


def test_noise_comes_first_and_variance_second(tmp_path):
    file, network = small_file(tmp_path)
    denoiser = load_iddpm(file)
    x, logsnr = torch.randn(3, 1, 8, 8), torch.tensor([-4.0, 0.0, 6.0])
    eps_hat, variance = denoiser.noise_and_variance(x, logsnr)
    torch.testing.assert_close(torch.cat([eps_hat, variance], 1), network(x, denoiser.times(logsnr)))
    assert torch.equal(denoiser(x, logsnr), eps_hat)
    with pytest.raises(ValueError, match="unconditional"):
        denoiser(x, logsnr, torch.zeros(3, 2))


def test_each_element_has_its_own_logsnr(tmp_path):
    """Published code uses one element's log-SNR for the whole batch."""
    denoiser = load_iddpm(small_file(tmp_path)[0])
    x, logsnr = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1), torch.tensor([-4.0, 0.0, 6.0])
    together = denoiser(x, logsnr)
    alone = torch.cat([denoiser(x[:1], level[None]) for level in logsnr])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


IDDPM = {"kind": "iddpm", "network": SMALL, "schedule": {"name": "cosine", "steps": 4000}, "time_scale": 0.25}
DDPM_TIMES = {
    **IDDPM, "schedule": {"name": "linear", "beta1": 1e-4, "betaT": 0.02, "steps": 1000}, "time_scale": 1.0
}


def published_betas(name):
    return np.linspace(1e-4, 0.02, 1000) if name == "linear" else published_cosine(4000)


@pytest.mark.parametrize("description", [DDPM_TIMES, IDDPM], ids=["ddpm", "iddpm"])
def test_logsnr_to_time_is_not_a_step_late(description):
    """Index i, counted from 0, belongs to abar after i + 1 steps; improved diffusion feeds it as i * 1000/4000."""
    denoiser = build(description)
    betas = published_betas(description["schedule"]["name"])
    abar = np.cumprod(1 - betas)
    logsnr = np.log(abar) - np.log1p(-abar)
    fed = np.arange(len(betas)) * 1000 / len(betas)
    times = denoiser.times(torch.from_numpy(logsnr))
    np.testing.assert_allclose(times.numpy(), fed, atol=1e-4)
    order = torch.randperm(len(betas))  # each element its own
    assert torch.equal(denoiser.times(torch.from_numpy(logsnr)[order]), times[order])
    np.testing.assert_allclose(denoiser.logsnr_range, (logsnr[-1], logsnr[0]), rtol=1e-9)


@pytest.mark.parametrize("description", [DDPM_TIMES, IDDPM], ids=["ddpm", "iddpm"])
def test_logsnr_to_time_does_not_saturate(description):
    """Smooth and falling through both ends of the schedule, a handful of steps outside at most."""
    denoiser = build(description)
    low, high = denoiser.logsnr_range
    times = denoiser.times(torch.arange(-30, 30, 0.05))
    assert (times.diff() < 0).all()
    outside = 8.5 * description["time_scale"]
    last = (denoiser.schedule.steps - 1) * description["time_scale"]
    assert times.min() > -outside and times.max() < last + outside
    for end in (low, high):
        # Steps so short that float32 would drown them: the slope is taken over a hundredth of a step of the table.
        table = denoiser.schedule.logsnr_table
        spacing = (table[-2] - table[-1] if end == low else table[0] - table[1]).item() / 100
        before, at, after = denoiser.times(torch.tensor([end - spacing, end, end + spacing], dtype=torch.float64))
        torch.testing.assert_close(before - at, at - after, rtol=0.03, atol=2e-4)


def test_tuned_network_is_rebuilt_from_its_description_alone(in_tmp):
    """The path of a fine-tuned model must not be ignored: what was tuned is what is evaluated."""
    file, _ = small_file(in_tmp)
    denoiser = load_iddpm(file, dropout=0.3)
    x, logsnr = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 8.0])
    untuned = denoiser(x, logsnr).detach()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    denoiser.train()(x, logsnr).square().mean().backward()
    trained = [name for name, parameter in denoiser.named_parameters() if parameter.grad is not None]
    assert len(trained) == len(list(denoiser.parameters())) > 0
    optimizer.step()
    denoiser.eval()
    utils.save_checkpoint("tuned.pth", {"denoiser": describe(denoiser), "model": denoiser.state_dict()})
    file.unlink()

    record = utils.load_checkpoint("tuned.pth")
    again = build(record["denoiser"])
    again.load_state_dict(record["model"])
    assert torch.equal(again(x, logsnr), denoiser(x, logsnr))
    assert (again(x, logsnr) - untuned).abs().max() > 1e-3
    assert describe(again) == describe(denoiser)


def test_shapes_that_the_network_cannot_take_are_named():
    denoiser = build({**IDDPM, "network": {**SMALL, "multipliers": [1, 1, 1]}})
    denoiser.check_image_shape((1, 28, 32))
    for shape in ((1, 30, 32), (3, 32, 32), (2,)):
        assert "x".join(map(str, shape)) in refusal(denoiser.check_image_shape, shape)
