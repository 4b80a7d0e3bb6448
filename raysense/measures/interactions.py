"""KL divergence between the softmaxed mean interactions of classes (Khaitan & Banerjee 2026, section 4.2, ablation 1).

Row i of a class's prototype is softmax over j of ``W_ij a_j``, with ``a`` the class's mean activations. The bias is left
out: the paper's spreads 7.6251 and 6.6451 are log 2049 and log 769, of rows with the bias as one more column, where those
of layers with 2048 and 768 inputs are at most log 2048 and log 768 here.

With ``psi_i(a) = log sum_j exp(W_ij a_j)`` and ``Psi`` its sum over rows, the sum over rows of KL(a || b) is the Bregman
divergence ``Psi(b) - Psi(a) - grad Psi(a) . (b - a)``: a value and a gradient for each class, and one matrix product for
all pairs, where pair by pair every weight would be visited C^2 times. Such divergences are often 1e-9 and less while Psi
is of the order of the rows. So Psi is taken relative to its value and slope at the mean of all classes: what is left is
of second order, like the divergences, and is computed as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_RTOL = 1e-12
"""Divergences whose bound on rounding exceeds this fraction of them are computed pair by pair."""
_ROUNDING = 4 * torch.finfo(torch.float64).eps
_SMALL = 0.1
_TERMS = 12
_LARGE = 300.0
_BLOCK = {"cpu": 2**17, "cuda": 2**24}
"""Entries computed at a time: on a processor what its cache holds."""


@dataclass(frozen=True)
class Prototypes:
    """Mean interactions of C classes with one layer, ready to be compared.

    Attributes:
        weight: [G, O, I] float64.
        offsets: [C, G, I] float64, mean activations minus those of the centre.
        centre: [G, I] float64, mean over the classes of their mean activations.
        value: [C], Psi relative to the centre without the terms of first order; at least 0.
        slope: [C, G * I], its gradient.
        entropy: [C], mean entropy of the rows, in nats: the spread of a class.
    """

    weight: Tensor
    offsets: Tensor
    centre: Tensor
    value: Tensor
    slope: Tensor
    entropy: Tensor

    def divergences(self, start: int, stop: int) -> Tensor:
        """Mean over the rows of KL(a || b), in nats, for classes a of a run and all classes b.

        The relative error is about 1e-12. Entries that the matrix product would give with more, those of classes much
        nearer to each other than to the centre, are computed one by one from all weights.

        Args:
            start: First class a.
            stop: Last class a, exclusive.

        Returns:
            [stop - start, C] float64, exactly 0 where a is b.
        """
        rows = self.weight.shape[0] * self.weight.shape[1]
        offsets = self.offsets.flatten(1)
        own, slope, value = offsets[start:stop], self.slope[start:stop], self.value[start:stop, None]
        found = self.value - value - (slope @ offsets.T - (slope * own).sum(1, keepdim=True))
        sizes = self.value + value + slope.abs() @ offsets.abs().T + (slope * own).abs().sum(1, keepdim=True)
        inexact = _ROUNDING * sizes > _RTOL * found
        for pairs, same in ((found, 0), (inexact, False)):
            pairs[range(stop - start), range(start, stop)] = same
        for a, b in inexact.nonzero().tolist():
            found[a, b] = self._divergence(start + a, b)
        return found / rows

    def _divergence(self, a: int, b: int) -> Tensor:
        """Sum over the rows of KL(a || b) from every weight: log sum_j p_j exp(x_j) with x centred under p."""
        total = self.weight.new_zeros(())
        for group, row in _blocks(self.weight):
            weight = self.weight[group, row]
            means = (self.centre + self.offsets[a])[group, None]
            log_p = (weight * means).log_softmax(-1)
            step = (self.offsets[b] - self.offsets[a])[group, None]
            total += _excess(log_p, log_p.exp(), weight * step)[0].sum()
        return total


def prototypes(weight: Tensor, means: Tensor) -> Prototypes:
    """The mean interactions of classes, at a cost of a few exponentials a class and weight.

    Memory beyond the arguments and the result stays below some MB on a processor, and some hundred on a GPU.

    Args:
        weight: [G, O, I] float64, without bias.
        means: [C, G * I] float64, mean activations of every class; finite.
    """
    classes, (groups, _, inputs) = len(means), weight.shape
    means = means.reshape(classes, groups, inputs)
    centre = means.mean(0)
    offsets = means - centre
    value, entropy, slope = means.new_zeros(classes), means.new_zeros(classes), torch.zeros_like(means)
    for group, row in _blocks(weight):
        part = weight[group, row]
        log_p = (part * centre[group, None]).log_softmax(-1)
        p = log_p.exp()
        size = max(1, _block(weight) // part.numel())
        for first in range(0, classes, size):
            several = slice(first, first + size)
            excess, x = _excess(log_p, p, part * offsets[several, group, None])
            change = _change(log_p, p, x - excess)
            value[several] += excess.sum((1, 2, 3))
            slope[several, group] += (part * change).sum(2)
            entropy[several] -= ((p + change) * (log_p + x - excess)).sum((1, 2, 3))
    rows = weight.shape[0] * weight.shape[1]
    return Prototypes(weight, offsets, centre, value, slope.flatten(1), entropy / rows)


def _excess(log_p: Tensor, p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """log sum_j p_j exp(y_j) - sum_j p_j y_j, which is of second order where y is small, and y centred under p.

    Args:
        log_p: [..., I].
        p: [..., I], sums to 1.
        y: [..., I].

    Returns:
        [..., 1], at least 0, to a few units in the last place of itself; and [..., I].
    """
    x = y - (p * y).sum(-1, keepdim=True)
    fits = x.amax(-1, keepdim=True) <= _LARGE
    if bool(fits.all()):
        return (p * _exponential_excess(x)).sum(-1, keepdim=True).log1p(), x
    # The exponential of such a row may overflow; the other form loses only digits that matter where the sum is small.
    series = (p * _exponential_excess(torch.where(fits, x, 0))).sum(-1, keepdim=True).log1p()
    return torch.where(fits, series, (log_p + x).logsumexp(-1, keepdim=True).clamp(min=0)), x


def _exponential_excess(x: Tensor) -> Tensor:
    """exp(x) - 1 - x, which is never negative, to about 1e-14 of itself: a series where x is small."""
    if float(x.abs().amax()) <= _SMALL:
        return _series(x)
    return torch.where(x.abs() > _SMALL, x.expm1() - x, _series(x.clamp(-_SMALL, _SMALL)))


def _series(x: Tensor) -> Tensor:
    """x^2 / 2! + x^3 / 3! + ... to the precision of float64 for |x| up to 0.1."""
    one = x.new_ones(())
    total = torch.addcmul(one, one, x, value=1 / _TERMS)
    for k in range(_TERMS - 1, 2, -1):
        total = torch.addcmul(one, total, x, value=1 / k)
    return total.mul_(x).mul_(x).div_(2)


def _change(log_p: Tensor, p: Tensor, exponent: Tensor) -> Tensor:
    """p exp(exponent) - p, without cancellation where the exponent is small and without overflow where it is large."""
    if float(exponent.amax()) <= _LARGE:
        return p * exponent.expm1()
    return torch.where(exponent <= _LARGE, p * exponent.clamp(max=_LARGE).expm1(), (log_p + exponent).exp() - p)


def _blocks(weight: Tensor) -> Iterator[tuple[slice, slice]]:
    """Groups and rows of a weight [G, O, I] in blocks of a bounded number of entries, at least a row each."""
    groups, outputs, inputs = weight.shape
    many = max(1, _block(weight) // (outputs * inputs))
    rows = outputs if many > 1 else max(1, _block(weight) // inputs)
    for first in range(0, groups, many):
        for row in range(0, outputs, rows):
            yield slice(first, first + many), slice(row, row + rows)


def _block(weight: Tensor) -> int:
    return _BLOCK.get(weight.device.type, _BLOCK["cpu"])
