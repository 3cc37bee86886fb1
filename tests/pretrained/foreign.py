"""What the tests of pretrained networks share."""

import numpy as np
import pytest
import torch

import utils


def randomised(module, seed=0):
    """The module with every parameter drawn anew, norms and biases too, so that none hides behind a 0 or a 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def refusal(call, *arguments):
    """The one line with which a call is refused."""
    with pytest.raises(utils.CommandError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def published_cosine(steps):
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)
