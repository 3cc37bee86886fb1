"""One update of the weights and of their average, and the rate that it is made at."""

import pytest
import torch
from runs import BATCH, TINY, VANILLA, assert_equal, part

import commandline
import training
from dataset import registry
from experiment import build_fresh, fit_gaussian
from rng import Rng


def stepper(words=""):
    config = commandline.parse(f"{TINY} {VANILLA} {words}".split(), "run.py", registry.SPECS).config
    dataset = part(config.dataset, "train")
    model = build_fresh(config, dataset.shape, fit_gaussian(dataset, 0), torch.device("cpu"))
    return training.Stepper(model, config, torch.device("cpu")), dataset.batch(range(BATCH))


def advance(one, x, steps, rate=1e-3):
    for step in range(steps):
        one.update(x, Rng(0, torch.arange(BATCH), step), None, 0.0, rate)


def test_the_optimiser_flag_is_honoured():
    assert isinstance(stepper()[0].optimizer, torch.optim.AdamW)
    adam = stepper("--optimizer adam")[0].optimizer
    assert isinstance(adam, torch.optim.Adam) and not isinstance(adam, torch.optim.AdamW)
    moved = []
    for words in ("", "--optimizer adam"):
        one, x = stepper(words)
        advance(one, x, 3, rate=0.3)
        moved.append(torch.cat([p.detach().flatten() for p in one.model.parameters()]))
    assert not torch.equal(*moved)


def test_averaged_weights_keep_no_graph_of_their_past():
    one, x = stepper()
    advance(one, x, 2)
    assert all(p.is_leaf and not p.requires_grad for p in one.ema.parameters())


def test_the_average_warms_up_and_follows_its_decay():
    one, x = stepper("--ema_decay 0")
    advance(one, x, 2)
    assert_equal(one.ema.state_dict(), one.model.state_dict())
    one, x = stepper()  # .9999 from the start would leave the average where it began
    begin = {name: value.clone() for name, value in one.ema.state_dict().items()}
    advance(one, x, 20)
    far, near = (sum((one.model.state_dict()[n] - other[n]).square().sum() for n in begin)
                 for other in (begin, one.ema.state_dict()))
    assert 0 < near < 0.5 * far


def test_a_step_reads_nothing_back_from_the_device(monkeypatch):
    """Each read would make the host wait for a GPU."""
    one, x = stepper()
    advance(one, x, 1)

    def read(*_):
        raise AssertionError("a value was read back")

    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, read)
    advance(one, x, 1)


def test_gradients_are_clipped_at_one():
    one, x = stepper()
    norms = []
    step = one.optimizer.step

    def spy(*args, **kwargs):
        norms.append(sum(p.grad.square().sum() for p in one.model.parameters()).sqrt().item())
        return step(*args, **kwargs)

    one.optimizer.step = spy
    advance(one, 1000 * x, 2)
    assert max(norms) <= 1.0001


def test_the_rate_warms_up_to_twice_and_falls_along_a_cosine():
    def rates(words):
        config = commandline.parse(f"{TINY} {words}".split(), "run.py", registry.SPECS).config
        return [training.learning_rate(step, 100, 10, config) for step in range(100)]

    cosine = rates("--learning_rate 1e-3")
    assert cosine[0] == pytest.approx(1e-3) and cosine[10] == max(cosine) == pytest.approx(2e-3)
    assert cosine[55] == pytest.approx(1e-3) and 0 < cosine[99] < 2e-6
    assert set(rates("--learning_rate 1e-3 --lr_schedule constant")) == {1e-3}


def test_building_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    one = stepper()[0]
    assert torch.equal(torch.rand(2), expected)
    again = stepper()[0]
    assert_equal(one.model.state_dict(), again.model.state_dict())
