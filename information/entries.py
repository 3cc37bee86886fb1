"""One entry of z at a time: intervals of I(x; z_d), and of I(z_d; label) for labels that x determines."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from information.interval import Bracket, Normals, against_others, capacity, controlled, mean_zero
from information.likelihood import average

ENTRY_ROWS = 2_000  # rows that suffice for one entry: it seldom carries more than three nats


def of_entries(rows: Normals, fit: Normals | None = None) -> list[Bracket]:
    """The interval of I(x; z_d) for every entry d of z, from the first rows."""
    rows = rows.rows(slice(ENTRY_ROWS))
    return [entry_bracket(rows.entry(d), fit.entry(d) if fit else None) for d in range(rows.z.shape[1])]


def entry_bracket(entry: Normals, fit: Normals | None) -> Bracket:
    noise = mean_zero(entry)
    included, left_out = against_others(entry)
    bounds = {"left-out": controlled(left_out, noise)}
    if fit is not None:
        bounds["capacity"] = capacity(entry, fit)
    return Bracket(controlled(included, noise), bounds, len(entry))


def with_labels(rows: Normals, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Bounds of I(z_d; label_k) for every entry and label, [d, K] each: lower, lower_se, upper, upper_se.

    labels  [N, K] int64, functions of x

    I(z; f) = E log q(z|f) / q(z), both laws sums of q(z|x_j) over rows; row i is left out of the first and kept in the
    second for the lower bound, and the reverse for the upper (the bounds of I(x; z) minus those of I(x; z | f)).
    """
    rows, labels = rows.rows(slice(ENTRY_ROWS)), torch.from_numpy(np.asarray(labels)[:ENTRY_ROWS]).to(rows.z.device)
    names = ("lower", "lower_se", "upper", "upper_se")
    found = {name: np.zeros((rows.z.shape[1], labels.shape[1])) for name in names}
    members = [torch.nn.functional.one_hot(column).double() for column in labels.T]
    for d in range(rows.z.shape[1]):
        parts = [_label_terms(own, logs, members) for own, logs in rows.entry(d).log_pairs()]
        low, high = (torch.cat([part[side] for part in parts]) for side in (0, 1))  # [N, K]
        for k in range(labels.shape[1]):
            (found["lower"][d, k], found["lower_se"][d, k]) = average(low[:, k])
            (found["upper"][d, k], found["upper_se"][d, k]) = average(high[:, k])
    return found


def _label_terms(own: Tensor, logs: Tensor, members: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Lower and upper terms of rows `own` [B] from log q(z_i|x_j) [B, N] and one-hot labels [N, C]. -> [B, K] twice

    The sums that leave row i out are taken without it: where it outweighs all others, a difference would be 0.
    """
    count, places = logs.shape[1], torch.arange(len(own), device=own.device)
    others = logs.clone()
    others[places, own] = -torch.inf
    with_own, without = logs.logsumexp(1) - math.log(count), others.logsumexp(1) - math.log(count - 1)
    low, high = [], []
    for member in members:
        label = member[own].argmax(1)
        apart = torch.where(member.T[label] > 0, 0.0, -torch.inf)  # [B, N], 0 for rows of the same label
        size = member.sum(0)[label]
        alone = torch.where(size > 1, (others + apart).logsumexp(1) - (size - 1).clamp(min=1).log(), without)
        low.append(alone - with_own)
        high.append((logs + apart).logsumexp(1) - size.log() - without)
    return torch.stack(low, 1), torch.stack(high, 1)
