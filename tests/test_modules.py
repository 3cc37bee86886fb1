"""Networks: shapes, sizes, what conditions them, and where they start."""

import pytest
import torch

from kernels import build, fused, winograd
from modules import Classifier, Decoder, Encoder, LatentMLP, PointMLP, UNet, use_kernels

pytestmark = pytest.mark.usefixtures("full_networks")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awake(network):
    """In evaluation mode, with every layer's weights away from zero."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval()


def unet(**options):
    torch.manual_seed(0)
    return UNet(1, 1, 8, (1, 2, 2), 0.1, **{"z_dim": 3, **options})


@pytest.mark.parametrize("levels", [(1,), (1, 2), (1, 2, 2), (1, 2, 2, 2)])
def test_the_unet_takes_any_size_that_its_depth_divides(levels):
    factor = 2 ** (len(levels) - 1)
    for size in (factor, 3 * factor):
        network = UNet(3, 3, 8, levels, 0.1)
        assert network(normal(2, 3, size, size), torch.zeros(2)).shape == (2, 3, size, size)
        assert Encoder(3, size, 5, 8, levels, 0.1)(normal(2, 3, size, size)).shape == (2, 5)
        assert Decoder(3, size, 5, 8, levels, 0.1)(normal(2, 5)).shape == (2, 3, size, size)


def test_published_depth_two_blocks_down_three_up_attention_at_the_third_level():
    network = UNet(3, 3, 8, (1, 2, 2, 2), 0.1)
    stages = [layer for layer in network.down if hasattr(layer, "block")]
    assert len(stages) == 8
    assert [stage.attention is not None for stage in stages] == [False] * 4 + [True] * 2 + [False] * 2
    assert sum(hasattr(layer, "block") for layer in network.up) == 12
    assert network.middle[0].attention is not None


def test_blocks_and_attention_are_arguments_of_every_network():
    options = {"blocks": 1, "attention": (0, 1)}
    network, decoder = UNet(1, 1, 8, (1, 2), 0.1, **options), Decoder(1, 8, 5, 8, (1, 2), 0.1, **options)
    for layers, blocks in ((network.down, 2), (network.up, 4), (decoder.layers, 2)):
        stages = [layer for layer in layers if hasattr(layer, "block")]
        assert len(stages) == blocks and all(stage.attention is not None for stage in stages)
    encoder = Encoder(1, 8, 5, 8, (1, 2), 0.1, **options)
    assert [name for name, _ in encoder.unet.named_parameters() if name.startswith("down")] == [
        name for name, _ in network.named_parameters() if name.startswith("down") and ".by_time." not in name]
    assert network(normal(2, 1, 8, 8), torch.zeros(2)).shape == (2, 1, 8, 8)
    assert decoder(normal(2, 5)).shape == (2, 1, 8, 8)


def test_a_denoiser_starts_by_predicting_nothing():
    x, a, z = normal(2, 1, 8, 8), torch.zeros(2), normal(2, 3)
    assert unet()(x, a, z).abs().max() == 0
    assert PointMLP(2, 16, 3)(normal(2, 2), a, z).abs().max() == 0


@pytest.mark.parametrize("conditioning", ["adanorm", "crossattn"])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_z_and_time_act_on_the_output(conditioning, bottleneck):
    network = awake(unet(conditioning=conditioning, bottleneck=bottleneck))
    x, a, z = normal(2, 1, 8, 8), torch.tensor([0.0, 3.0]), normal(2, 3)
    with torch.no_grad():
        out = network(x, a, z)
        assert (out - network(x, a, z + 1)).abs().amax((1, 2, 3)).min() > 1e-4
        assert (out - network(x, a + 0.5, z)).abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("conditioning", ["adanorm", "crossattn"])
def test_a_bottleneck_lets_z_act_in_the_middle_only(conditioning):
    def z_weights(bottleneck):
        names = [name for name, _ in unet(conditioning=conditioning, bottleneck=bottleneck).named_parameters()]
        return {name.split(".")[0] for name in names if ".by_z." in name or ".cross." in name}

    assert z_weights(True) == {"middle"}
    assert z_weights(False) == {"down", "middle", "up"}


@pytest.mark.parametrize("make", [
    lambda: unet(), lambda: unet(conditioning="crossattn"), lambda: PointMLP(2, 16, 3), lambda: LatentMLP(3),
    lambda: Encoder(1, 8, 4, 8, (1, 2), 0.1),
], ids=["unet", "crossattn", "points", "latents", "encoder"])
def test_a_sample_does_not_depend_on_the_batch(make):
    network = awake(make())
    shape = {PointMLP: (2,), LatentMLP: (3,)}.get(type(network), (1, 8, 8))
    x, a, z = normal(6, *shape), torch.linspace(-4, 9, 6), normal(6, 3)

    def run(rows):
        return network(x[rows]) if isinstance(network, Encoder) else network(x[rows], a[rows], z[rows])

    with torch.no_grad():
        whole = run(slice(None))
        parts = torch.cat([run(slice(0, 1)), run(slice(1, 4)), run(slice(4, 6))])
    assert torch.allclose(whole, parts, atol=1e-5)


@pytest.mark.parametrize("make", [
    lambda: unet(null=True), lambda: unet(null=True, conditioning="crossattn"), lambda: PointMLP(2, 16, 3, null=True),
], ids=["adanorm", "crossattn", "points"])
def test_a_dropped_z_is_the_same_as_none(make):
    network = awake(make())
    x, a, z = normal(4, *((2,) if isinstance(network, PointMLP) else (1, 8, 8))), torch.zeros(4), normal(4, 3)
    keep = torch.tensor([True, False, True, False])
    with torch.no_grad():
        mixed, without, given = network(x, a, z, keep), network(x, a), network(x, a, z)
    assert torch.allclose(mixed[keep], given[keep], atol=1e-6)
    assert torch.allclose(mixed[~keep], without[~keep], atol=1e-6)
    assert not torch.allclose(given, without, atol=1e-4)


SETTINGS = {
    "adanorm": lambda: unet(null=True), "crossattn": lambda: unet(conditioning="crossattn"),
    "bottleneck": lambda: unet(bottleneck=True), "vanilla": lambda: unet(z_dim=0),
    "encoder": lambda: Encoder(1, 8, 4, 8, (1, 2), 0.1), "decoder": lambda: Decoder(1, 8, 3, 8, (1, 2, 2), 0.1),
    "classifier": lambda: Classifier(1, 8, 4, width=8),
    "wide": lambda: UNet(1, 1, 16, (1, 2), 0.1, z_dim=3), "wide decoder": lambda: Decoder(1, 8, 3, 16, (1, 2), 0.1),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kernels", [pytest.param("plain", marks=pytest.mark.slow), "kernel"])
def test_fused_and_channels_last_the_result_and_its_gradients_are_the_same(name, kernels):
    try:
        kernels = (fused.Plain(),) if kernels == "plain" else (fused.build_kernel()[0], winograd.build_winograd()[0])
    except build.NoCompiler as error:
        pytest.skip(str(error))
    network = awake(SETTINGS[name]())
    x, a, z = normal(4, 1, 8, 8), torch.linspace(-4, 9, 4), normal(4, 3)
    inputs = {"encoder": (x,), "classifier": (x,), "decoder": (z,), "wide decoder": (z,), "vanilla": (x, a)}
    inputs = inputs.get(name, (x, a, z))
    if name == "adanorm":
        inputs += (torch.tensor([True, False, True, True]),)

    def run(use):
        use_kernels(network, *use)
        network.zero_grad()
        out = network(*inputs)
        (out * torch.linspace(-1, 2, out.numel()).reshape(out.shape)).sum().backward()
        return out, {name: p.grad for name, p in network.named_parameters()}

    (own, gradients), (out, fused_gradients) = run((None,)), run(kernels)
    assert (out - own).abs().max() <= 1e-5 * own.abs().max()
    largest = max(gradient.abs().max() for gradient in gradients.values() if gradient is not None)
    for name, gradient in gradients.items():
        if gradient is not None:
            assert (fused_gradients[name] - gradient).abs().max() <= 1e-5 * largest, name


def test_tokens_of_cross_attention_are_the_scalars_of_z():
    """Each scalar has its own token: permuting z without its embeddings changes the output, with them it does not."""
    network = awake(unet(conditioning="crossattn"))
    x, a, z = normal(2, 1, 8, 8), torch.zeros(2), normal(2, 3)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        out, permuted = network(x, a, z), network(x, a, z[:, order])
        for weights in (network.embed_z.first, network.embed_z.bias):
            weights.data = weights.data[order]
        again = network(x, a, z[:, order])
    assert not torch.allclose(out, permuted, atol=1e-4)
    assert torch.allclose(out, again, atol=1e-5)


def test_high_log_snrs_are_told_apart():
    """At 12 the noise's deviation is .0025: a network must still know the level."""
    network = awake(unet(z_dim=0))
    x = normal(1, 1, 8, 8)
    with torch.no_grad():
        outs = [network(x, torch.tensor([a])) for a in (11.0, 12.0, 13.0, 25.0, -20.0)]
    for i, one in enumerate(outs):
        for two in outs[:i]:
            assert (one - two).abs().max() > 1e-4


def test_the_latent_mlp_is_the_published_one():
    network = LatentMLP(16)
    assert [layer.in_features for layer in network.layers] == [16] + 8 * [80]
    assert all(layer.out_features == 64 for layer in network.layers)
    assert len(network.layers) + 1 == 10


def test_classifier_features_serve_any_size():
    for size in (4, 8, 28, 32):
        network = Classifier(1, size, 10, width=4)
        assert network.features(normal(2, 1, size, size)).shape == (2, 16)
        assert network(normal(2, 1, size, size)).shape == (2, 10)


def test_point_weights_from_before_the_waves_had_a_size_mean_what_they_meant():
    network, x, a = PointMLP(2, 16), normal(5, 2), torch.zeros(5)
    torch.nn.init.normal_(network.last.weight)
    old = {name: value for name, value in network.state_dict().items() if name != "size"}
    network.load_state_dict(old)
    frequency = torch.tensor([0.25, 0.25 * 16 ** (1 / 3), 0.25 * 16 ** (2 / 3), 4.0])
    angle = x[..., None] * frequency
    waves = torch.cat([angle.cos(), angle.sin()], -1) / frequency.clamp(min=1).square().repeat(2)
    h = network.first(torch.cat([x, waves.flatten(1)], 1))
    for layer, by_time in zip(network.layers, network.by_time, strict=True):
        scale, shift = by_time(network.embed_time(a)).chunk(2, 1)
        h = h + layer(torch.nn.functional.silu(shift + h * (1 + scale)))
    assert torch.allclose(network(x, a), network.last(torch.nn.functional.silu(h)), atol=1e-5)
    assert PointMLP(2, 16).size.eq(1).all()
