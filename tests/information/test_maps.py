"""Maps of I(x; z) over pixels: with the exact posterior over renders they sum to I and lie where the factor is seen."""

import math

import pytest
import torch

from dataset import shapes3d
from information.likelihood import average
from information.maps import gaps_of_denoiser, gaps_of_readers, maps, ratio

SIZE, HUES = 8, 5
ROWS = torch.tensor([((f * 10 + w) * 10 + o) * 480 + scene
                     for f in range(HUES) for w in range(HUES) for o in range(HUES) for scene in (77, 300)])
FACTORS = torch.from_numpy(shapes3d.factors(ROWS.numpy()))[:, :3]
IMAGES = torch.from_numpy(shapes3d.render(ROWS.numpy(), SIZE)).float() / 127.5 - 1
FLAT = IMAGES.flatten(1).double()


def posterior(x_noisy, logsnr):
    """log p(image | x_a) of the finite set. [B, M]"""
    signal, noise = torch.sigmoid(logsnr.double())[:, None], torch.sigmoid(-logsnr.double())[:, None]
    fit = signal.sqrt() * (x_noisy.flatten(1).double() @ FLAT.T) - 0.5 * signal * FLAT.square().sum(1)
    return torch.log_softmax(fit / noise, 1)


class Exact(torch.nn.Module):
    """log p(z_k | x_a) of the three hues."""

    def nats(self, x_noisy, logsnr, z):
        logs = posterior(x_noisy, logsnr)
        same = FACTORS.T[:, None] == z.T[:, :, None]  # [3, B, M]
        return torch.logsumexp(logs.masked_fill(~same, -torch.inf), 2).T


def denoiser(x_noisy, logsnr, z=None):
    """eps_hat of the softmax over images, all of them or those whose floor hue is z [B, 1]."""
    logs = posterior(x_noisy, logsnr)
    if z is not None:
        logs = torch.log_softmax(logs.masked_fill(FACTORS[:, 0] != z.long(), -torch.inf), 1)
    x_hat = (logs.exp() @ FLAT).reshape(x_noisy.shape)
    signal, noise = (torch.sigmoid(sign * logsnr.double())[:, None, None, None].sqrt() for sign in (1, -1))
    return (x_noisy - signal * x_hat) / noise


def coverage(index):
    return torch.from_numpy(shapes3d.coverage(ROWS[index].numpy(), SIZE))


@pytest.mark.slow
def test_an_exact_map_sums_to_the_information_and_lies_where_the_factor_is_seen():
    chosen = torch.arange(0, len(ROWS), 3)
    batches = [(part, IMAGES[part]) for part in chosen.split(25)]
    names = ["floor hue", "wall hue", "object hue"]
    gaps = gaps_of_readers((Exact(), Exact()), FACTORS, names)
    found = maps(gaps, batches, [-12.0, -8.0, -4.0, 0.0, 4.0], 4, 0, coverage)
    for region, name in enumerate(names):
        one = found[name]
        assert abs(one.total.mean - math.log(HUES)) < 3 * one.total.se + 0.02
        assert one.total.se < 0.35
        assert one.nats.sum().item() == pytest.approx(one.total.mean)
        assert one.shares[region].mean > 0.8
        assert sum(share.mean for share in one.shares) == pytest.approx(1)
        assert one.columns(shapes3d.MATERIALS)["share_on"][name.split()[0]]["mean"] == one.shares[region].mean


def test_errors_that_two_networks_do_not_share_cancel():
    rng = torch.Generator().manual_seed(0)

    def gaps(x_noisy, logsnr, index):
        noise = torch.randn((2, *x_noisy.shape), generator=rng)
        return {"apart": (1 + noise[0], 1 + noise[1]), "the same": (1 + noise[0], 1 + noise[0])}

    found = maps(gaps, [(torch.arange(200), torch.zeros(200, 3, 4, 4))], [0.0, 2.0], 4, 0)
    assert found["apart"].total.mean == pytest.approx(48, abs=1)
    assert found["the same"].total.mean == pytest.approx(96, abs=1)


def test_the_gradient_of_the_posterior_is_the_difference_of_the_two_branches():
    index = torch.arange(0, len(ROWS), 31)
    z = FACTORS[:, :1].float()
    logsnr = torch.full((len(index),), -6.0)
    x_noisy = IMAGES[index] * 0.05 + torch.randn(IMAGES[index].shape, generator=torch.Generator().manual_seed(1))
    branches = gaps_of_denoiser(denoiser, z, "z", [])(x_noisy, logsnr, index)["z"][0]
    names = ["floor hue", "wall hue", "object hue"]
    gradient = gaps_of_readers((Exact(), Exact()), FACTORS, names)(x_noisy, logsnr, index)
    assert torch.allclose(branches.float(), gradient["floor hue"][0].float(), atol=1e-5)
    assert branches.abs().max() > 0.01


def test_an_entry_of_z_is_mapped_by_taking_it_from_another_image():
    """A denoiser that shows entry k of z on column k alone."""
    def shows(x_noisy, logsnr, z=None):
        out = torch.zeros_like(x_noisy)
        if z is not None:
            out[..., :2] = z[:, None, None, :]
        return out

    z = torch.tensor([[1.0, 0.0], [3.0, 5.0]])
    x = torch.zeros(2, 1, 2, 3)
    found = maps(gaps_of_denoiser(shows, z, "z", [1]), [(torch.arange(2), x)], [0.0, 1.0, 3.0], 2, 0)
    assert found["z_1"].nats[0].tolist() == [[0.0, 12.5, 0.0]] * 2  # 1/2 * width 1 * 5^2, on average of both
    assert found["z_1"].nats[1].tolist() == [[0.0, 25.0, 0.0]] * 2
    assert found["z"].total.mean == pytest.approx(0.5 * 3 * 2 * (1 + 9 + 25) / 2)
    assert found["z"].shares is None
    nothing = maps(lambda x, logsnr, index: {"z": torch.zeros_like(x)}, [(torch.arange(2), x)], [0.0, 1.0], 1, 0,
                   lambda index: torch.ones(len(index), 1, 2, 3))["z"]
    assert nothing.total == (0.0, 0.0) and nothing.shares is None


def test_a_share_is_a_ratio_of_means_with_its_error():
    whole = torch.tensor([1.0, 2.0, 4.0, 1.0]).double()
    assert ratio(0.25 * whole, whole) == (0.25, 0.0)
    part = torch.tensor([1.0, 0.0, 4.0, 0.0]).double()
    assert ratio(part, whole).mean == pytest.approx(5 / 8)
    assert ratio(part, whole).se == pytest.approx(average((part - 5 / 8 * whole) / 2).se)
