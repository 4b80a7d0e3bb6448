"""FI of a few directions in the input, such as semantic parameters: exact, from one forward-mode product a direction.

With s directions the Jacobian of the logits has rank s at most. For s < K - 1 FI lies below its bound (1 - p)/p, and says
more than the softmax does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from raysense.measures.fisher import influence_of_rows, odds_against, published_influence_of_rows
from raysense.measures.gradients import Model, forward, jacobian_product


class DirectionInfluence(NamedTuple):
    """FI of s directions jointly, for N samples.

    Attributes:
        fi: [N] float64, Eq. (3) of Shu & Zhu (2019); NaN where the logits or their derivatives are not finite.
        bound: [N] float64, (1 - p_y) / p_y, which FI does not exceed; NaN as ``fi``.
        rank: [N] int64, at most s.
        jacobian_norm: [N] float64, norm of the derivatives of -log p_y, Eq. (4), in 1 / unit of the directions.
        logits: [N, K] float64.
    """

    fi: Tensor
    bound: Tensor
    rank: Tensor
    jacobian_norm: Tensor
    logits: Tensor


def direction_influence(
    model: Model, images: Tensor, tangents: Tensor, classes: Tensor | None = None, rank_rule: str = "invariant"
) -> DirectionInfluence:
    """FI of f = -log p_y with respect to s parameters of the input.

    Args:
        model: Maps images [N, C, H, W] to logits [N, K], sample by sample.
        images: [N, C, H, W].
        tangents: [N, s, C, H, W], derivatives of the images by the parameters. Their units matter only to what counts as
            rank zero: a parameter whose unit moves the logits 1e5 times less than another's counts as moving nothing, so
            give derivatives per length of the parameters' ranges.
        classes: [N] int64, the class y of each sample; None takes the predicted one.
        rank_rule: ``invariant``, or ``published`` for the authors' absolute thresholds.
    """
    logits = forward(model, images).double()
    chosen = logits.argmax(1) if classes is None else classes
    products = [jacobian_product(model, images, tangents[:, index]).double() for index in range(tangents.shape[1])]
    return influence_of_products(logits, torch.stack(products, dim=2), chosen, rank_rule)


def influence_of_products(
    logits: Tensor, jacobian: Tensor, classes: Tensor, rank_rule: str = "invariant"
) -> DirectionInfluence:
    """FI from the Jacobian of the logits by s parameters.

    Args:
        logits: [N, K] float64.
        jacobian: [N, K, s] float64.
        classes: [N] int64, y.
        rank_rule: As of :func:`direction_influence`.
    """
    finite = logits.isfinite().all(1) & jacobian.isfinite().flatten(1).all(1)
    kept = torch.where(finite[:, None], logits, 0.0)
    reference = kept.argmax(1)
    rows = torch.where(finite[:, None, None], jacobian, 0.0)
    rows = rows - rows.gather(1, reference[:, None, None].expand(-1, 1, rows.shape[2]))
    bound = odds_against(kept, classes)
    if rank_rule == "published":
        fi, rank = published_influence_of_rows(kept, rows, classes)
    else:
        found = influence_of_rows(kept, rows, classes, reference)
        fi, rank = found.fi, found.rank
    residual = torch.softmax(kept, dim=1) - one_hot(classes, kept.shape[1])
    norm = torch.einsum("nk,nks->ns", residual, rows).norm(dim=1)
    fi, bound, norm = (torch.where(finite, value, torch.nan) for value in (fi, bound, norm))
    return DirectionInfluence(fi, bound, rank, norm, logits)
