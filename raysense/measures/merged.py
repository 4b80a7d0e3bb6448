"""A classifier with some classes kept and the others merged into one: its logits, and their gradients.

Positions 0 to m - 1 are the kept classes, y first and then by falling probability; position m is the merged class, with
the log-sum-exp of the dropped logits. With all K classes kept nothing is merged. Gradients are taken of differences to a
reference, the most probable class, which is position 0 or 1: this saves a pass, and the digits that the Fisher metric
of a confident sample, whose gradients nearly cancel, would lose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def by_probability(logits: Tensor, classes: Tensor) -> Tensor:
    """Classes [N, K] in the order in which they are kept: y, then by falling logit.

    Args:
        logits: [N, K] float64.
        classes: [N] int64, y.
    """
    return logits.scatter(1, classes[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)


@dataclass(frozen=True)
class MergedClasses:
    """The merged problem of n samples.

    Attributes:
        full: [n, K] float64, the logits of all classes.
        kept: [n, m] int64, the kept classes, y first.
    """

    full: Tensor
    kept: Tensor

    @property
    def exact(self) -> bool:
        """Whether all classes are kept."""
        return self.kept.shape[1] == self.full.shape[1]

    @property
    def logits(self) -> Tensor:
        """[n, m + 1] float64, or [n, K] where all classes are kept."""
        kept = self.full.gather(1, self.kept)
        if self.exact:
            return kept
        return torch.cat((kept, torch.logsumexp(self._dropped_logits, dim=1, keepdim=True)), dim=1)

    @property
    def reference(self) -> Tensor:
        """[n] int64, the position of the most probable class: 0, or 1 where y is not it."""
        return (self.full.argmax(1) != self.kept[:, 0]).long()

    @property
    def _dropped_logits(self) -> Tensor:
        return self.full.scatter(1, self.kept, -torch.inf)

    @property
    def positions(self) -> int:
        """How many classes the problem has."""
        return self.kept.shape[1] + (not self.exact)

    def scalars(self, known: int = 0) -> tuple[list[Tensor], list[Tensor]]:
        """What is differentiated: every position's logit minus the reference's, as combinations of the logits.

        Args:
            known: How many of the first positions are known from a smaller problem; 0, or at least 2.

        Returns:
            Positions, [n] int64 each, and weights of the logits, [n, K] float64 each; one of both for every backward pass.
        """
        reference = self.reference
        # All positions but the reference: first the one of 0 and 1 that it is not, then 2, 3, ...
        others = [1 - reference, *(torch.full_like(reference, position) for position in range(2, self.positions))]
        new = others[max(0, known - 1) :]
        base = self._weight(reference)
        return new, [self._weight(position) - base for position in new]

    def combined(self, coefficients: Tensor) -> Tensor:
        """Weights [n, K] of the logits whose gradient is the combination of the differences.

        Args:
            coefficients: [n, positions]; that of the reference does not matter.
        """
        positions, weights = self.scalars()
        return sum(
            (
                coefficients.gather(1, position[:, None]) * weight
                for position, weight in zip(positions, weights, strict=True)
            ),
            torch.zeros_like(self.full),
        )

    def _weight(self, position: Tensor) -> Tensor:
        """[n, K]: the logit at a position as a combination of the logits of all classes, to first order."""
        last = self.kept.shape[1] - 1
        chosen = one_hot(self.kept.gather(1, position.clamp(max=last)[:, None]).squeeze(1), self.full.shape[1])
        weight = chosen.to(self.full.dtype)
        if self.exact or not (position > last).any():
            return weight
        return torch.where((position > last)[:, None], torch.softmax(self._dropped_logits, dim=1), weight)
