"""kernels/products.py: the same convolution and derivatives as torch's own, where few pixels meet many weights."""

import pytest
import torch

from kernels import products
from modules import Convolution, use_kernels

CASES = [  # channels inside, outside, side, stride, pixels a side, images; products each way, or by the weights alone
    (128, 64, 3, 1, 2, 2, True), (96, 64, 3, 2, 4, 1, True), (256, 256, 1, 1, 2, 2, True),
    (64, 32, 3, 1, 4, 1, False), (64, 48, 3, 2, 5, 1, False), (40, 64, 3, 1, 3, 2, False),
]


class NoWinograd:
    def serves(self, x, weight):
        return False


@pytest.mark.parametrize(("inside", "outside", "side", "stride", "pixels", "count", "all_three"), CASES)
def test_a_product_is_the_convolution_with_its_derivatives(inside, outside, side, stride, pixels, count, all_three):
    torch.manual_seed(0)
    layer = Convolution(inside, outside, side, stride)
    use_kernels(layer, object(), NoWinograd())
    x = torch.randn(count, inside, pixels, pixels).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert products.serves(x, layer.weight, stride)
    assert (products.weights_a_pixel(x, layer.weight, stride) >= products.MOST) == all_three
    rest = torch.randn_like(torch.nn.functional.conv2d(x, layer.weight, None, stride, side // 2)).requires_grad_()
    weight = torch.randn_like(rest)

    def run(winograd):
        layer.winograd = winograd
        wanted = (x, rest, layer.weight, layer.bias)
        out = layer(x, rest)
        return out, torch.autograd.grad((out * weight).sum(), wanted)

    (out, ours), (own, theirs) = run(NoWinograd()), run(None)
    assert torch.allclose(out, own, atol=1e-5)
    for one, two in zip(ours, theirs, strict=True):
        assert (one - two).abs().max() <= 1e-5 * two.abs().max()
    assert ours[2].is_contiguous(memory_format=torch.channels_last)  # as the weights lie: no copy when it is added
    with torch.no_grad():
        layer.winograd = NoWinograd()
        assert torch.allclose(layer(x, rest), own, atol=1e-5)


def test_large_images_and_other_precisions_are_not_for_it():
    weight = torch.zeros(64, 64, 3, 3)
    assert not products.serves(torch.zeros(2, 64, 32, 32), weight, 1)
    assert not products.serves(torch.zeros(1, 64, 2, 2, dtype=torch.bfloat16), weight, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not products.serves(torch.zeros(1, 64, 2, 2), weight, 1)
    assert products.serves(torch.zeros(1, 64, 2, 2), weight, 1)
