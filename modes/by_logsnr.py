"""The curve of I(x_a; z) over log-SNR a, and of I(x_a; label): lower bounds at every a, by networks fitted here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from dataset import shapes3d
from experiment import fit_gaussian
from experiment.intervals import Latent
from experiment.measuring import Sample
from information.by_logsnr import (
    Critic,
    Heads,
    Pair,
    exact_curve,
    exact_images,
    fit,
    joint_surprise,
    measure,
    paired,
    surprise,
)
from information.likelihood import average
from information.maps import gaps_of_readers
from information.mutual_information import lost_below
from modes.maps import Maps
from rng import Rng

GRID = 13  # log-SNRs at which a curve is measured
FAINT = 0.03  # nats that x_a holds at most, about anything, where a curve begins
HIGHEST = 12.0  # above, 8-bit images add nothing
EXACT_ROWS, EXACT_SIZE, EXACT_VALUES = 100, 8, 400  # for which the exact curve of shapes3d is worked out


class Curves:
    """Fits to the training split and measures on a sample, at log-SNRs over the range of the data's spectrum."""

    def __init__(self, trained, sample: Sample):
        self.trained, self.sample, self.config = trained, sample, trained.config
        training = Sample.of(trained, "train")
        self.training = replace(training, count=len(training.dataset))
        gaussian = getattr(trained.model, "gaussian", None) or fit_gaussian(training.dataset, 0)
        self.gaussian = gaussian.to(trained.device)
        low, high = gaussian.logsnr_range
        some = next(a for a in np.linspace(low, high, 500) if lost_below(gaussian, a) > FAINT)
        self.ends = float(some), min(high, HIGHEST)
        self.grid = np.linspace(*self.ends, GRID).tolist()
        self.x = torch.cat([x for _, x in sample.batches()])
        self.maps = Maps(sample, self.ends, self.config.r_seed)

    def heads(self, sizes: tuple[int, ...], chained: bool) -> Heads:
        return Heads(self.sample.dataset.shape, sizes, chained, gaussian=self.gaussian)

    def critic(self, z: Tensor) -> Critic:
        return Critic(self.sample.dataset.shape, z.shape[1], gaussian=self.gaussian)

    def nats(self, build: Callable[[], nn.Module], z_train: Callable[[Tensor, Tensor], Tensor], z: Tensor,
             names: list[str]) -> Tensor:
        """[L, N, K] of a pair of networks, once fitted, and its maps. z_train: (x, indices) of training rows -> z.

        Each is fitted to a half of the rows: what two learn by heart of the same rows, a map would take for knowledge.
        """
        def fitted(number: int) -> nn.Module:
            def batch_at(index: Tensor) -> tuple[Tensor, Tensor]:
                rows = 2 * index + number
                x = self.training.dataset.batch(rows.numpy(), self.trained.device)
                return x, z_train(x, rows).to(x.device)

            return fit(build().to(self.x.device), batch_at, self.training.count // 2, self.ends,
                       self.config.curve_steps, self.config.r_seed + number)

        pair = Pair(fitted(0), fitted(1))
        z = z.to(self.x.device)
        if self.sample.dataset.spec.kind == "image":
            self.maps.add(gaps_of_readers(tuple(pair.both), z, names))
        return measure(pair, self.x, z, self.grid, self.config.r_seed).cpu()

    def columns(self, nats: Tensor, exact: Tensor | None = None) -> dict:
        """As it stands in a result file, from [L, N]: the bound, and its slope between neighbouring log-SNRs; beside
        them, from [L, n] of the first n rows, what is exact and how far below it the bound lies."""
        a, means = np.array(self.grid), [average(level) for level in nats]
        values = np.array([one.mean for one in means])
        rise = [average(difference) for difference in nats.diff(dim=0)]
        found = {"logsnr": self.grid, "nats": values.tolist(), "se": [one.se for one in means],
                 "slope_at": ((a[1:] + a[:-1]) / 2).tolist(), "slope": (np.diff(values) / np.diff(a)).tolist(),
                 "slope_se": [one.se / step for one, step in zip(rise, np.diff(a), strict=True)]}
        if exact is not None:
            both = zip(*(paired(one, bound) for one, bound in zip(exact, nats, strict=True)), strict=True)
            for name, means in zip(("exact", "gap"), both, strict=True):
                found |= {name: [one.mean for one in means], f"{name}_se": [one.se for one in means]}
        return found

    def of_z(self, latent: Latent) -> dict:
        """Of z: a classifier's where it is labels, else a critic's."""
        dataset, known = self.sample.dataset, self.training.dataset
        count = len(self.x)
        if dataset.channel is not None and dataset.channel.classes is not None:
            _, came, sizes, *_ = dataset.channel.classes
            z, z_train = torch.from_numpy(came[:count]), torch.from_numpy(known.channel.classes[1])
            even = torch.tensor(sizes).double().log().sum().expand(count)
            entropy = joint_surprise(z) if dataset.spec.entropy is None else even
            nats = self.nats(lambda: self.heads(sizes, True), lambda x, index: z_train[index], z, [latent.name])
            return self.columns(nats.sum(2) + entropy, self.exact())
        if dataset.given is not None:
            z, z_train = torch.from_numpy(dataset.given[:count]), torch.from_numpy(known.given)
            nats = self.nats(lambda: self.critic(z), lambda x, index: z_train[index], z, [latent.name])
            return self.columns(nats[:, :, 0])
        centre, spread = latent.z.float().mean(0), latent.z.float().std(0).clamp(min=1e-6)

        def encoded(x: Tensor, index: Tensor) -> Tensor:
            return (self.drawn(latent, x, index) - centre) / spread

        z = (latent.z[:count].float() - centre) / spread
        return self.columns(self.nats(lambda: self.critic(z), encoded, z, [latent.name])[:, :, 0])

    @torch.no_grad()
    def drawn(self, latent: Latent, x: Tensor, index: Tensor) -> Tensor:
        """z of training images: of q(z|x), or with the noise of tau."""
        mean, logvar = self.trained.model.posterior(x)
        rng = Rng(self.config.r_seed, index.to(x.device)).fork("curve")
        if logvar is None:
            return latent.scale.add(mean, latent.tau, rng)
        return mean + (logvar / 2).exp() * rng.normal("z", mean.shape[1])

    def of_labels(self) -> dict[str, dict]:
        """Of the class, or of each attribute or factor alone: one network, a head a label."""
        dataset = self.sample.dataset
        z, z_train = torch.from_numpy(dataset.labels[: len(self.x)]), torch.from_numpy(self.training.dataset.labels)
        sizes = tuple(int(max(one.max(), other.max())) + 1 for one, other in zip(z.T, z_train.T, strict=True))
        names = ["class"] if dataset.spec.labels == "class" else list(map(str, dataset.label_names))
        nats = self.nats(lambda: self.heads(sizes, False), lambda x, index: z_train[index], z, names) + surprise(z)
        return {name: self.columns(nats[:, :, k]) for k, name in enumerate(names)}

    def exact(self) -> Tensor | None:
        """Of labels of shapes3d at 8 pixels, from the posterior over all 480,000 images; None for other data."""
        dataset = self.sample.dataset
        sent, came, sizes, error, independent = dataset.channel.classes
        if dataset.spec.name != "shapes3d" or dataset.spec.size != EXACT_SIZE or dataset.spec.channels != 3:
            return None
        whole = np.prod(sizes) == shapes3d.COUNT and not error and not independent  # z is the image's own number
        if not whole and np.prod(sizes) > EXACT_VALUES:
            return None
        images = torch.from_numpy(shapes3d.render(np.arange(shapes3d.COUNT), EXACT_SIZE)).flatten(1).float() / 127.5 - 1
        rows = slice(min(EXACT_ROWS, len(self.x)))
        if whole:
            return exact_images(images, torch.from_numpy(dataset.rows[rows]), self.grid, self.config.r_seed)
        tables = [np.full((m, m), 1 / m) if independent else
                  np.full((m, m), error / (m - 1)) + (1 - error - error / (m - 1)) * np.eye(m) for m in sizes]
        mixing = torch.from_numpy(reduce(np.kron, tables))
        names = dataset.channel.columns
        group = np.ravel_multi_index(shapes3d.factors(np.arange(shapes3d.COUNT))[:, names].T, sizes)
        z = torch.from_numpy(np.ravel_multi_index(came[rows].T, sizes))
        return exact_curve(images, torch.from_numpy(group), mixing, torch.from_numpy(dataset.rows[rows]), z, self.grid,
                            self.config.r_seed)


def curves(trained, sample: Sample, latents: list[Latent]) -> tuple[dict[str, dict], Maps]:
    """name -> curve: of z (the least noisy one), and of every label; with the maps of each."""
    measured = Curves(trained, sample)
    found = {latents[0].name: measured.of_z(latents[0])}
    found |= {} if sample.dataset.labels is None else measured.of_labels()
    return found, measured.maps
