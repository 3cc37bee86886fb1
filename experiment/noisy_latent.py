"""A denoiser that matches a noisy latent: z + tau * deviation * n, conditioned on tau (for I(x; z + noise)).

A denoiser trained on clean z is not optimal for a noisy one: the difference form of what it uses would come out low and
the orthogonal form high. So the encoder is frozen and a copy of the denoiser, which sees one entry more, log tau, is
fitted to random tau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion import Gaussian, SimpleObjective, proposal_for
from models import InfoDiff
from rng import Rng, seed_dropout
from utils import progress_bar


@dataclass(frozen=True)
class NoisyLatent:
    """How noise is put on codes. deviation [a_dim]: of the training split's codes, the unit that tau counts in."""

    deviation: Tensor

    @classmethod
    def of(cls, codes: Tensor) -> NoisyLatent:
        """From the training split's codes [N, a_dim]; an entry that never varies gets no noise to speak of."""
        return cls(codes.std(0).clamp(min=1e-6))

    def add(self, codes: Tensor, tau: Tensor | float, rng: Rng) -> Tensor:
        """codes [B, a_dim], tau [B] or one number -> noisy codes [B, a_dim]"""
        tau = torch.as_tensor(tau, device=codes.device).expand(len(codes))[:, None]
        return codes + tau * self.deviation * rng.normal("tau", codes.shape[1])


def with_tau(noisy: Tensor, tau: Tensor | float) -> Tensor:
    """What the fitted denoiser takes for z. [B, a_dim] -> [B, a_dim + 1]"""
    tau = torch.as_tensor(tau, device=noisy.device, dtype=noisy.dtype).expand(len(noisy))
    return torch.cat([noisy, tau.log()[:, None]], dim=1)


class WholeRange:
    """The mean squared noise error over all log-SNRs that the data's spectrum asks for, whatever the schedule saw."""

    unit = SimpleObjective.unit
    loss = SimpleObjective.loss

    def __init__(self, gaussian: Gaussian):
        self.proposal = proposal_for(gaussian)
        self.logsnr_range = self.proposal.low, self.proposal.high

    def draw(self, unit: Tensor) -> Tensor:
        return self.proposal.draw(unit)[0].float()


def fit(model: InfoDiff, batch_at, codes: Tensor, scale: NoisyLatent, taus: Sequence[float], steps: int,
        batch_size: int, learning_rate: float, seed: int) -> InfoDiff:
    """A copy of the model whose denoiser is conditioned on tau, fitted from the model's weights; in evaluation mode.

    batch_at        indices [B] -> x [B, *shape] of the training split, on the model's device
    codes           [N, a_dim] the frozen encoder's codes of that split
    scale           the unit of tau
    taus            log tau is drawn evenly between half the smallest and twice the largest
    learning_rate   at the start; it falls to 0 along a half cosine

    A model trained at the steps of a schedule is fitted over the data's own range of log-SNR. The unconditional branch
    goes on being trained, at the share of --z_dropout: both branches are to be taken from the twin. A function of
    `seed`.
    """
    twin = model.conditioned_on_tau()
    twin.train()
    if isinstance(twin.objective, SimpleObjective):
        twin.objective = WholeRange(model.gaussian)
    low, high = math.log(min(taus) / 2), math.log(max(taus) * 2)
    optimizer = torch.optim.Adam(twin.network.parameters(), lr=learning_rate)
    place = torch.arange(min(batch_size, len(codes)), device=codes.device)
    for step in progress_bar(range(steps), desc="fitting the denoiser conditioned on tau", leave=False):
        seed_dropout(seed, step)
        optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        rng = Rng(seed, place, step)
        index = (rng.uniform("row").double() * len(codes)).long()
        tau = (low + (high - low) * rng.uniform("level")).exp()
        z = with_tau(scale.add(codes[index], tau, rng), tau)
        keep = rng.uniform("keep") >= twin.z_dropout if twin.has_unconditional else None
        loss = twin.denoising_loss(batch_at(index), rng, z, keep).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.network.parameters(), 1.0)
        optimizer.step()
    return twin.eval().requires_grad_(False)
