"""winograd.py: the convolution and its derivatives beside torch's in float64; odd sizes, layouts, threads, bfloat16."""

import pytest
import torch
import torch.nn.functional as F

from kernels import build, winograd


@pytest.fixture(scope="module")
def kernel():
    try:
        return winograd.build_winograd()[0]
    except build.NoCompiler as error:
        pytest.skip(str(error))


def inputs(batch, inside, outside, height, width, dtype=torch.float32):
    """x, weight, bias and rest; each wants its gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, inside, height, width), (outside, inside, 3, 3), (outside,), (batch, outside, height, width)
    x, weight, bias, rest = (torch.randn(shape, generator=generator) for shape in shapes)
    x, rest = (v.to(dtype).contiguous(memory_format=torch.channels_last) for v in (x, rest))
    return [v.requires_grad_() for v in (x, weight, bias, rest)]


def with_gradients(function, values):
    y = function(*values)
    towards = torch.linspace(-1, 2, y.numel()).sin().reshape(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, values, towards)]


def exact(values):
    def sums(x, weight, bias, rest):
        return F.conv2d(x, weight, bias, padding=1) + rest

    return with_gradients(sums, [v.detach().double().requires_grad_() for v in values])


def errors(ours, theirs):
    """Of each, relative to its size."""
    return [((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("shape", [(2, 16, 16, 4, 4), (3, 32, 48, 7, 5), (1, 48, 16, 28, 9), (40, 16, 32, 8, 8)])
def test_equal_to_the_definition_forward_and_backward(kernel, shape):
    values = inputs(*shape)
    ours = with_gradients(lambda *v: winograd.convolve(kernel, *v), values)
    assert max(errors(ours, exact(values))) < 2e-6
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


def test_weights_and_images_in_any_layout_with_and_without_bias_and_rest(kernel):
    x, weight, _, _ = inputs(2, 16, 32, 6, 6)
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = winograd.convolve(kernel, x.contiguous(), weight, None)
    assert errors([y], [F.conv2d(x.double(), weight.double(), padding=1)])[0] < 1e-6


def test_in_half_precision_within_its_rounding(kernel):
    values = inputs(4, 32, 48, 9, 6, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        if not kernel.serves(values[0], values[1]):
            pytest.skip("this processor multiplies no bfloat16, or faster in another way")
        ours = with_gradients(lambda *v: winograd.convolve(kernel, *v), values)
    assert (ours[0].dtype, ours[1].dtype, ours[2].dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert max(errors(ours, exact(values))) < 6e-3


def test_what_it_does_not_serve(kernel):
    x, weight, _, _ = inputs(2, 16, 32, 6, 6)
    assert kernel.serves(x, weight)
    assert not kernel.serves(x[:, :, :3], weight)
    assert not kernel.serves(x.double(), weight.double())
    assert not kernel.serves(x, weight[:20])
    assert not kernel.serves(x[:, :8], weight[:, :8])
    large, small = torch.empty(512, 512, 3, 3), torch.empty(256, 256, 3, 3)  # never, and with tiles enough
    assert not kernel.serves(torch.empty(64, 512, 8, 8), large)
    assert kernel.serves(torch.empty(8, 256, 8, 8), small) and not kernel.serves(torch.empty(7, 256, 8, 8), small)


def test_the_same_on_any_number_of_threads(kernel):
    values, before, runs = inputs(9, 16, 32, 24, 24), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(with_gradients(lambda *v: winograd.convolve(kernel, *v), values))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True) if a.dim() == 4)


def test_what_is_not_a_number_is_not_hidden(kernel):
    x, weight, bias, _ = inputs(2, 16, 16, 8, 8)
    x.data[1, 2, 3, 4] = float("nan")
    with torch.no_grad():
        y = winograd.convolve(kernel, x, weight, bias)
    assert y[1].isnan().any() and y[0].isfinite().all()
