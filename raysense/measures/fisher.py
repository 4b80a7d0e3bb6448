"""The influence measure FI from logits and a Gram matrix of logit gradients (Shu & Zhu 2019, Eq. 3).

With logits z, p = softmax(z), J = dz/dw and G = J^T (diag p - p p^T) J, the influence of f = -log p_y is
FI = grad f G^+ grad f^T. Because grad f = (p - e_y)^T J, FI is a projection in the space of logit moves t = J h:

    FI = max over h of (grad f h)^2 / (h^T G h) = max over t in range(J) of (E_p[t] - t_y)^2 / Var_p(t)
       = || projection of phi onto range(J) + constants ||_p^2,    phi_k = 1 - [k = y] / p_y,

which depends on J only through its range. So the rank is decided on the Gram matrix of the gradient differences
d_k = dz_k - dz_r (r the most probable class), which holds no probabilities: a threshold on the metric G itself would
drop the directions of improbable classes, and with them the whole influence of a confidently misclassified sample.
At full rank K - 1, phi lies in the range and FI = (1 - p_y) / p_y in closed form; this is an upper bound in every case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RANK_RTOL = 1e-10
"""Eigenvalues of the difference Gram matrix below this fraction of the largest count as zero."""

_BLOCK_VALUES = 2**23  # float64 values of a block of gradients: 64 MiB


@dataclass(frozen=True)
class Influence:
    """Influence of f = -log p_y for a batch of N samples.

    Attributes:
        fi: [N] float64, at least 0.
        upper: [N] float64, (1 - p_y) / p_y.
        rank: [N] int64, rank of the Fisher metric, 0 to K - 1.
        move: [N, K] float64, the logit move t = J h that attains FI, up to scale and an additive constant.
    """

    fi: Tensor
    upper: Tensor
    rank: Tensor
    move: Tensor


def odds_against(logits: Tensor, classes: Tensor) -> Tensor:
    """(1 - p_y) / p_y without the subtraction, which loses every digit of a confident sample.

    Args:
        logits: [N, K] float64.
        classes: [N] int64, the class y of each sample.

    Returns:
        [N] float64; infinite where it exceeds the range of float64.
    """
    return torch.exp(log_odds_against(logits, classes))


def log_odds_against(logits: Tensor, classes: Tensor) -> Tensor:
    """log((1 - p_y) / p_y): finite and with all its digits where the odds over- or underflow; differentiable.

    Args:
        logits: [N, K] float64.
        classes: [N] int64, y.

    Returns:
        [N] float64.
    """
    chosen = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return torch.logsumexp(others - chosen, dim=1)


def gram_matrix(rows: Tensor) -> Tensor:
    """Gram matrix of gradients, accumulated in float64 whatever their dtype.

    Args:
        rows: [N, M, P].

    Returns:
        [N, M, M] float64.
    """
    samples, count, size = rows.shape
    gram = rows.new_zeros((samples, count, count), dtype=torch.float64)
    width = max(64, _BLOCK_VALUES // (samples * count))
    for start in range(0, size, width):
        block = rows[:, :, start : start + width].double()
        gram.baddbmm_(block, block.transpose(1, 2))
    return gram


def influence(logits: Tensor, gram: Tensor, classes: Tensor, reference: Tensor, rtol: float = RANK_RTOL) -> Influence:
    """FI of f = -log p_y, Eq. (3), from the Gram matrix of the gradient differences d_k = dz_k - dz_r.

    Args:
        logits: [N, K] float64.
        gram: [N, K, K] float64 of the d_k; row and column r are zero.
        classes: [N] int64, the class y of each sample.
        reference: [N] int64, the class r; where one class has nearly all probability, it must be that one.
        rtol: Relative threshold on the eigenvalues of ``gram`` below which a direction does not exist.

    Returns:
        The influence; invariant under invertible linear maps of the perturbation, Theorem 1. Below full rank the
        rounding of the gradients (1e-16 of their size) is divided by the square root of the smallest probability that
        matters, so that values above about 1e30 may be noise; at full rank they are exact.
    """
    count = logits.shape[1]
    upper = odds_against(logits, classes)
    fi = upper.clone()
    move = torch.nn.functional.one_hot(classes, count).to(torch.float64)
    rank = torch.full_like(classes, count - 1)
    # Full rank, the usual one, is closed form, and costs far less to see than eigenvalues.
    open_ranks = (~_certainly_full_rank(gram, reference, rtol)).nonzero().squeeze(1)
    if len(open_ranks):
        eigenvalues, eigenvectors = torch.linalg.eigh(gram[open_ranks])
        largest = eigenvalues[:, -1:].clamp_min(0)
        found = (eigenvalues > rtol * largest).sum(1)
        rank[open_ranks] = found
        lower = open_ranks[found < count - 1]
        vectors = eigenvectors[found < count - 1]
        fi[lower], move[lower] = _by_rank(
            rank[lower],
            lambda chosen, value: vectors[chosen][:, :, count - value :],
            logits[lower],
            classes[lower],
            reference[lower],
        )
    return Influence(torch.minimum(fi, upper), upper, rank, move)


def _certainly_full_rank(gram: Tensor, reference: Tensor, rtol: float) -> Tensor:
    """Whether all eigenvalues but the reference's zero exceed ``rtol`` times the trace, and so times the largest; [N]."""
    trace = gram.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    shift = torch.full_like(gram[:, 0], -rtol).scatter(1, reference[:, None], 1.0) * trace
    info: Tensor = torch.linalg.cholesky_ex(gram + torch.diag_embed(shift)).info
    return (info == 0) & (trace.squeeze(1) > 0)


def _by_rank(
    rank: Tensor, basis: Callable[[Tensor, int], Tensor], logits: Tensor, classes: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """FI [N] and moves [N, K] below full rank, zero at rank 0.

    Args:
        rank: [N].
        basis: Gives bases [n, K, q] of the ranges for the positions [n] of samples of rank q.
        logits: [N, K].
        classes: [N].
        reference: [N].
    """
    fi, move = torch.zeros_like(logits[:, 0]), torch.zeros_like(logits)
    for value in rank.unique().tolist():  # the ranks of a batch are few
        if value == 0:
            continue
        chosen = (rank == value).nonzero().squeeze(1)
        fi[chosen], move[chosen] = _project(logits[chosen], basis(chosen, value), classes[chosen], reference[chosen])
    return fi, move


def _project(logits: Tensor, basis: Tensor, classes: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norm of the projection of phi onto span(basis) + constants in L2(p), and the projection.

    The weights span hundreds of orders of magnitude, so the basis is first brought by Gaussian elimination with row
    pivoting, which treats rows of any scale alike, to a well-conditioned trapezoidal one.

    Args:
        logits: [N, K].
        basis: [N, K, q] with q < K - 1, zero in the row of the reference.
        classes: [N].
        reference: [N].

    Returns:
        [N] and [N, K], both float64.
    """
    logs = torch.log_softmax(logits, dim=1)
    weights = torch.exp(0.5 * logs)
    basis = basis.scatter(1, reference[:, None, None].expand(-1, 1, basis.shape[2]), 0.0)
    weighted = weights[:, :, None] * torch.cat((torch.ones_like(basis[:, :, :1]), basis), dim=2)
    lower = _eliminated(weighted)
    triangle = torch.linalg.qr(lower, mode="r").R
    rows = torch.linalg.solve_triangular(triangle, lower, upper=True, left=False)
    # Orthonormal columns; the first is the constants' sqrt(p), to which phi and all the others are orthogonal.
    rows = rows[:, :, 1:]
    index = classes[:, None, None].expand(-1, 1, rows.shape[2])
    chosen_weight = weights.gather(1, classes[:, None])
    direct = rows.gather(1, index).squeeze(1) / chosen_weight
    # Where p_y is near 1 its own row is a difference that has lost its digits; the other rows give the same sum.
    others = torch.einsum("nk,nkq->nq", weights.scatter(1, classes[:, None], 0.0), rows) / -(chosen_weight**2)
    coordinates = torch.where(chosen_weight**2 > 0.5, others, direct)
    move = torch.einsum(
        "nkq,nq->nk", rows / weights.clamp_min(torch.finfo(torch.float64).tiny)[:, :, None], coordinates
    )
    return (coordinates**2).sum(1), move


def _eliminated(matrix: Tensor) -> Tensor:
    """P L of the factorisation P L U with row pivoting; torch.linalg.lu would make P a dense K x K matrix.

    Args:
        matrix: [N, K, q] with q <= K.

    Returns:
        [N, K, q] with the same column space.
    """
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)  # does not refuse singular ones
    samples = torch.arange(len(matrix), device=matrix.device)
    order = torch.arange(matrix.shape[1], device=matrix.device).repeat(len(matrix), 1)
    for column, pivot in enumerate((pivots.long() - 1).unbind(1)):
        above, below = order[:, column].clone(), order[samples, pivot]
        order[samples, pivot] = above
        order[:, column] = below
    lower = factors.tril(-1)
    lower.diagonal(dim1=1, dim2=2).fill_(1.0)
    return torch.empty_like(lower).scatter_(1, order[:, :, None].expand_as(lower), lower)


def attained(logits: Tensor, move: Tensor, classes: Tensor) -> Tensor:
    """(E_p[t] - t_y)^2 / Var_p(t): the influence along one direction h with t = J h, a lower bound of FI.

    Args:
        logits: [N, K] float64.
        move: [N, K] float64, t; an additive constant and the scale do not matter.
        classes: [N] int64.

    Returns:
        [N] float64; 0 where t is constant.
    """
    probabilities = torch.softmax(logits, dim=1)
    reference = logits.argmax(1)[:, None]
    shifted = move - move.gather(1, reference)
    scale = shifted.abs().amax(1, keepdim=True)
    shifted = shifted / torch.where(scale > 0, scale, 1.0)
    others = probabilities.scatter(1, reference, 0.0)
    mean = (others * shifted).sum(1, keepdim=True)
    variance = (others * (shifted - mean) ** 2).sum(1) + (probabilities.gather(1, reference) * mean**2).squeeze(1)
    from_chosen = move - move.gather(1, classes[:, None])
    from_chosen = from_chosen / torch.where(scale > 0, scale, 1.0)
    slope = (probabilities.scatter(1, classes[:, None], 0.0) * from_chosen).sum(1)
    return torch.where(variance > 0, slope**2 / torch.where(variance > 0, variance, 1.0), 0.0)


def gradient_norm(logits: Tensor, gram: Tensor, classes: Tensor) -> Tensor:
    """Norm of df/dw for f = -log p_y: the Jacobian norm, Eq. (4).

    Args:
        logits: [N, K] float64.
        gram: [N, K, K] float64 of the gradient differences, as for :func:`influence`.
        classes: [N] int64.

    Returns:
        [N] float64, at least 0, in units of 1 / w.
    """
    # The reference's own coefficient multiplies a zero row, so no coefficient is a difference of near-equal numbers.
    coefficients = torch.softmax(logits, dim=1)
    coefficients = coefficients.scatter_add(1, classes[:, None], coefficients.new_full((len(classes), 1), -1.0))
    return torch.einsum("nk,nkl,nl->n", coefficients, gram, coefficients).clamp_min(0).sqrt()


def published_influence(logits: Tensor, gram: Tensor, classes: Tensor, epsilon: float = 1e-3) -> tuple[Tensor, Tensor]:
    """FI with the thresholds of the authors' published code, to compare with their tables.

    ``epsilon`` is added to sqrt(p) and to p_y, and singular values of L0 up to it are dropped; this breaks the
    invariance of Theorem 1 and the bound (1 - p_y) / p_y.

    Args:
        logits: [N, K] float64.
        gram: [N, K, K] float64 of gradient differences to any class.
        classes: [N] int64.
        epsilon: The authors' constant.

    Returns:
        FI [N] float64 and rank [N] int64.
    """
    probabilities = torch.softmax(logits, dim=1)
    # dp_k = p_k (d_k - sum_j p_j d_j): the Gram matrix of the probabilities' gradients.
    transform = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
    gram_p = transform @ gram @ transform
    scale = 1 / (probabilities.sqrt() + epsilon)
    metric = scale[:, :, None] * gram_p * scale[:, None, :]
    eigenvalues, eigenvectors = torch.linalg.eigh(metric)
    kept = eigenvalues.clamp_min(0).sqrt() > epsilon
    chosen = classes[:, None]
    row = gram_p.gather(1, chosen[:, :, None].expand(-1, 1, gram_p.shape[2])).squeeze(1) * scale
    slopes = torch.einsum("nk,nki->ni", row, eigenvectors) / (probabilities.gather(1, chosen) + epsilon)
    terms = torch.where(kept, slopes / torch.where(kept, eigenvalues, 1.0), 0.0)
    return (terms**2).sum(1), kept.sum(1)


def influence_of_rows(
    logits: Tensor, rows: Tensor, classes: Tensor, reference: Tensor, rtol: float = RANK_RTOL
) -> Influence:
    """FI of f = -log p_y, Eq. (3), from the gradient differences d_k = dz_k - dz_r themselves, by the cheaper side.

    A perturbation of fewer dimensions than K - 1, such as a pixel, needs no K x K matrix: the rank is decided on its
    P x P one, which has the same eigenvalues, and the range of the differences is spanned by their own combinations.

    Args:
        logits: [N, K] float64.
        rows: [N, K, P], the d_k, finite; row r is zero.
        classes: [N] int64, the class y of each sample.
        reference: [N] int64, the class r, as for :func:`influence`.
        rtol: As for :func:`influence`.

    Returns:
        As :func:`influence`.
    """
    count, size = rows.shape[1:]
    if size >= count - 1:
        return influence(logits, gram_matrix(rows), classes, reference, rtol)
    rows = rows.double()
    eigenvalues, eigenvectors = torch.linalg.eigh(rows.transpose(1, 2) @ rows)
    rank = (eigenvalues > rtol * eigenvalues[:, -1:].clamp_min(0)).sum(1)
    upper = odds_against(logits, classes)

    def basis(chosen: Tensor, value: int) -> Tensor:
        spanned = rows[chosen] @ eigenvectors[chosen, :, size - value :]
        scaled: Tensor = spanned / eigenvalues[chosen, None, size - value :].sqrt()
        return scaled

    fi, move = _by_rank(rank, basis, logits, classes, reference)
    return Influence(torch.minimum(fi, upper), upper, rank, move)


def published_influence_of_rows(
    logits: Tensor, rows: Tensor, classes: Tensor, epsilon: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """FI with the thresholds of the authors' published code, from gradient differences, by the cheaper side.

    Args:
        logits: [N, K] float64.
        rows: [N, K, P], finite gradient differences to any class.
        classes: [N] int64.
        epsilon: As for :func:`published_influence`.

    Returns:
        As :func:`published_influence`.
    """
    if rows.shape[2] >= rows.shape[1]:
        return published_influence(logits, gram_matrix(rows), classes, epsilon)
    probabilities = torch.softmax(logits, dim=1)[:, :, None]
    rows = rows.double()
    gradients = probabilities * (rows - (probabilities * rows).sum(1, keepdim=True))
    factor = gradients / (probabilities.sqrt() + epsilon)
    eigenvalues, eigenvectors = torch.linalg.eigh(factor.transpose(1, 2) @ factor)
    singular = eigenvalues.clamp_min(0).sqrt()
    kept = singular > epsilon
    chosen = classes[:, None, None]
    slope = gradients.gather(1, chosen.expand(-1, 1, rows.shape[2])) / (probabilities.gather(1, chosen) + epsilon)
    coordinates = (slope @ eigenvectors).squeeze(1)
    terms = torch.where(kept, coordinates / torch.where(kept, singular, 1.0), 0.0)
    return (terms**2).sum(1), kept.sum(1)
