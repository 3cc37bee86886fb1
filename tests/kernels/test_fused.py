"""fused.py: the operation in PyTorch and in C++ beside torch's own, its derivatives, its mask; no compiler."""

import functools

import pytest
import torch
import torch.nn.functional as F

from kernels import build, fused

GROUPS, EPS = 4, 1e-5


def kernel():
    try:
        return fused.build_kernel()[0]
    except build.NoCompiler as error:
        pytest.skip(str(error))


KERNELS = {"plain": fused.Plain, "kernel": kernel, "compiled": fused.compiled}
BOTH = pytest.mark.parametrize("which", ["plain", "kernel", pytest.param("compiled", marks=pytest.mark.slow)])


def inputs(batch=3, channels=12, height=5, width=7, modulated=True, dtype=torch.float32):
    """x with a mean far from 0, weight, bias, and scale and shift as slices of one tensor; each wants its gradient."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    x = (normal(batch, channels, height, width) + 5 * normal(channels, 1, 1)).to(dtype)
    values = [x.contiguous(memory_format=torch.channels_last), normal(channels), normal(channels)]
    if modulated:
        values += list(normal(batch, 3 * channels).split(channels, dim=1)[:2])
    return [value.requires_grad_() for value in values]


def native(x, weight, bias, scale=None, shift=None, silu=True):
    h = F.group_norm(x, GROUPS, weight, bias, EPS)
    if scale is not None:
        h = h * scale[:, :, None, None] + shift[:, :, None, None]
    return F.silu(h) if silu else h


def with_gradients(function, values):
    y = function(*values)
    towards = torch.linspace(-1, 2, y.numel()).reshape(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, values, towards)]


@BOTH
@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("silu", [True, False])
def test_equal_to_torchs_own_forward_and_backward(which, modulated, silu):
    values, operation = inputs(modulated=modulated), KERNELS[which]()
    ours = with_gradients(lambda *v: fused.fused(operation, *v, groups=GROUPS, eps=EPS, silu=silu), values)
    theirs = with_gradients(lambda *v: native(*v, silu=silu), values)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@BOTH
def test_in_half_precision_within_its_rounding(which):
    values, operation = inputs(dtype=torch.bfloat16), KERNELS[which]()
    exact = with_gradients(native, [value.detach().double().requires_grad_() for value in values])
    with torch.autocast("cpu", torch.bfloat16):
        ours = with_gradients(lambda *v: fused.fused(operation, *v, groups=GROUPS, eps=EPS, silu=True), values)
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16
    for a, b in zip(ours, exact, strict=True):
        assert (a - b).abs().max() <= 1e-2 * b.abs().max()


@BOTH
def test_float32_in_half_precision_out(which):
    values, operation = inputs(), KERNELS[which]()
    with torch.autocast("cpu", torch.bfloat16):
        ours = with_gradients(lambda *v: fused.fused(operation, *v, groups=GROUPS, eps=EPS, silu=True), values)
    assert (ours[0].dtype, ours[1].dtype) == (torch.bfloat16, torch.float32)
    theirs = with_gradients(native, values)
    assert (ours[0] - theirs[0]).abs().max() <= 1e-2 * theirs[0].abs().max()


@BOTH
def test_dropout_is_a_function_of_the_seed_and_the_place_forward_and_backward(which):
    values, operation = inputs(batch=4, channels=32, height=16, width=16, modulated=False), KERNELS[which]()

    def drop(*v):
        torch.manual_seed(3)
        return fused.fused(operation, *v, groups=GROUPS, eps=EPS, silu=True, p=0.3)

    dropped = with_gradients(drop, values)
    assert torch.equal(dropped[0], drop(*values))
    torch.manual_seed(3)
    seed = torch.randint(-(2**31), 2**31, (1,), dtype=torch.int32)
    mask = fused.keep(seed, (4, 256, 32), 0.3).unflatten(1, (16, 16)).permute(0, 3, 1, 2)
    for a, b in zip(dropped, with_gradients(lambda *v: native(*v) * mask, values), strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())


def test_the_mask_keeps_its_share_everywhere_and_knows_no_neighbour():
    shape, p = (8, 256, 64), 0.1
    masks = torch.stack([fused.keep(torch.tensor([seed], dtype=torch.int32), shape, p) > 0 for seed in (0, 1, 2, 9)])
    kept = masks.double() - (1 - p)
    places = kept.numel() / 4
    for axis in range(1, 4):  # shares of samples, pixels, channels
        others = [d for d in range(4) if d != axis]
        share, spread = kept.mean(others), (p * (1 - p) * masks.shape[axis] / masks.numel()) ** 0.5
        assert share.abs().max() < 5 * spread
    for axis in range(4):  # correlation with the next seed, sample, pixel, channel
        pairs = kept.narrow(axis, 0, kept.shape[axis] - 1) * kept.narrow(axis, 1, kept.shape[axis] - 1)
        assert abs(pairs.mean()) < 5 * p * (1 - p) / places**0.5


def test_the_kernel_is_the_same_on_any_number_of_threads():
    values, operation = inputs(batch=5), kernel()
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            run = functools.partial(fused.fused, operation, groups=GROUPS, eps=EPS, silu=True)
            runs.append(with_gradients(run, values))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_constant_image_and_one_pixel_stay_finite():
    for x in (torch.full((2, 8, 3, 3), 100.0), torch.full((2, 8, 1, 1), -7.0)):
        values = [x.requires_grad_(), torch.ones(8), torch.zeros(8)]
        y = fused.fused(kernel(), *values, groups=GROUPS, eps=EPS, silu=True)
        y.sum().backward()
        assert torch.allclose(y, native(*values), atol=1e-3) and x.grad.isfinite().all()


def test_what_is_not_a_number_is_not_hidden():
    values = inputs(modulated=False)
    values[0].data[1, 2, 3, 4] = float("nan")
    y = fused.fused(kernel(), *values, groups=GROUPS, eps=EPS, silu=True)
    assert y[1].isnan().any() and y[0].isfinite().all()


def test_without_a_compiler_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(build.NoCompiler, match=r"no C\+\+ compiler \(g\+\+, c\+\+, clang\+\+\)"):
        fused.build_kernel.__wrapped__()
    monkeypatch.setattr(build.shutil, "which", lambda name: "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.NoCompiler, match=r"fused\.cpp"):
        fused.build_kernel.__wrapped__()
    assert not list(tmp_path.rglob("*.so*"))


@pytest.mark.slow
def test_the_kernel_is_built_once_and_found_again(monkeypatch, tmp_path):
    kernel()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fused.build_kernel.__wrapped__()[1] > 0
    assert fused.build_kernel.__wrapped__()[1] == 0
    assert len(list(tmp_path.rglob("*.so"))) == 1
