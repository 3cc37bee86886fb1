"""Noise by place: the same whatever the batch, and good enough to call random."""

import numpy as np
import pytest
import torch
from scipy import stats

from rng import Rng, seed_dropout


def test_a_sample_is_the_same_in_any_batch():
    whole = Rng(3, torch.arange(10), 5)
    for part in (torch.tensor([7]), torch.tensor([9, 2, 7]), torch.arange(4, 8)):
        some = Rng(3, part, 5)
        assert torch.equal(some.normal("x", 2, 3), whole.normal("x", 2, 3)[part])
        assert torch.equal(some.uniform("x", 5), whole.uniform("x", 5)[part])
        assert torch.equal(some.spread("x"), whole.spread("x")[part])


def test_a_longer_draw_begins_with_the_shorter_one():
    rng = Rng(0, torch.arange(3))
    assert torch.equal(rng.normal("x", 9)[:, :4], rng.normal("x", 4))


@pytest.mark.parametrize("other", [
    lambda: Rng(2, torch.arange(2000), 5).normal("x"),
    lambda: Rng(1, torch.arange(2000) + 2000, 5).normal("x"),
    lambda: Rng(1, torch.arange(2000), 6).normal("x"),
    lambda: Rng(1, torch.arange(2000), 5).at(4).normal("x"),
    lambda: Rng(1, torch.arange(2000), 5).normal("y"),
    lambda: Rng(1, torch.arange(2000) + 1, 4).normal("x"),
    lambda: Rng(2**31 - 1, torch.arange(2000), 5).normal("x"),
])
def test_seed_index_step_and_stream_each_make_other_numbers(other):
    one = Rng(1, torch.arange(2000), 5).normal("x").squeeze()
    two = other().squeeze()
    assert not (one == two).any()
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(2000)


def test_normal_numbers_follow_the_normal_law():
    x = Rng(0, torch.arange(1000), 3).normal("x", 100).double().numpy()
    n = x.size
    assert abs(x.mean()) < 4 / np.sqrt(n)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((x**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    for one, two in ((x[:, :-1], x[:, 1:]), (x[:-1], x[1:]), (x[:, ::2], x[:, 1::2])):  # pairs share their bits
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 4 / np.sqrt(one.size)
        assert abs(np.corrcoef(one.ravel() ** 2, two.ravel() ** 2)[0, 1]) < 4 / np.sqrt(one.size)


def test_uniform_numbers_are_uniform_and_never_reach_the_ends():
    u = Rng(0, torch.arange(1000), 3).uniform("x", 100)
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(u.double().numpy().ravel(), "uniform").pvalue > 1e-3


def test_spread_numbers_fill_the_interval_evenly_and_move_with_the_step():
    u = Rng(0, torch.arange(64), 7).spread("logsnr")
    assert torch.bincount((u * 16).long(), minlength=16).min() >= 2  # 64 random ones would leave a gap
    assert u.min() > 0 and u.max() < 1
    alone = torch.stack([Rng(0, torch.tensor([5]), step).spread("logsnr")[0] for step in range(500)])
    assert stats.kstest(alone.double().numpy(), "uniform").pvalue > 1e-3


def test_helpers_leave_the_global_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    Rng(0, torch.arange(4)).normal("x", 3)
    Rng(0, torch.arange(4)).uniform("x", 3)
    Rng(0, torch.arange(4)).spread("x")
    assert torch.equal(torch.rand(3), expected)


def test_dropout_is_a_function_of_seed_step_and_rank():
    def mask(*place):
        seed_dropout(*place)
        return torch.rand(100)

    assert torch.equal(mask(0, 5), mask(0, 5, 0))
    for other in ((0, 6), (1, 5), (0, 5, 1), (5, 0)):
        assert not torch.equal(mask(0, 5), mask(*other))
