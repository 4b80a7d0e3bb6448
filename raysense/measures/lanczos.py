"""Eigenvalues at the ends of the spectrum of symmetric operators, one a sample, by Lanczos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""Maps [N, P] to [N, P]: the product of each sample's operator and its vector; samples do not mix."""

_ROUNDING = 16  # multiples of the machine precision to which the eigenvalues of a matrix of norm 1 are known


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs of N operators, at both ends of their spectra.

    Attributes:
        values: [N, k] float64 on the vectors' device, descending: the largest ones, then the smallest ones; NaN where a
            product or the start was not finite, or the start was zero.
        residuals: [N, k] float64, |A v - value v| and what rounding may do to it: an eigenvalue lies within it.
        coefficients: [N, k, m] float64, the eigenvectors in the basis.
        basis: [N, m, P], orthonormal, in the start's dtype.
        converged: [N] bool: all residuals are within the tolerance, or the basis spans an invariant subspace.
        products: Products spent on the batch.
    """

    values: Tensor
    residuals: Tensor
    coefficients: Tensor
    basis: Tensor
    converged: Tensor
    products: int

    def vectors(self) -> Tensor:
        """The eigenvectors [N, k, P], of norm 1, in the basis's dtype."""
        return self.coefficients.to(self.basis.dtype) @ self.basis


def ritz_pairs(
    product: Product,
    start: Tensor,
    largest: int = 1,
    smallest: int = 0,
    tolerance: float = 1e-3,
    iterations: int = 50,
    renewed: Callable[[], Tensor] | None = None,
    excluded: Tensor | None = None,
) -> RitzPairs:
    """The largest and smallest eigenvalues, by Lanczos with full reorthogonalisation.

    The residual bounds the distance to an eigenvalue; that no other lies further out is not certified. From a random start
    it holds with probability one when Lanczos runs to the end; an eigenvalue of higher multiplicity counts once, unless
    too few are found without.

    Args:
        product: In the start's dtype.
        start: [N, P] of any length.
        largest: How many of the largest eigenvalues.
        smallest: How many of the smallest ones.
        tolerance: Stops when the residuals of every sample are at most this times the largest magnitude of its values.
        iterations: Most products. As many vectors [N, P] are held: the caller chooses N so that they fit.
        renewed: Gives new random vectors [N, P] for samples whose start spans too small an invariant subspace; without it
            the values that are not in it stay NaN.
        excluded: [N, e, P], orthonormal eigenvectors that do not count: all others are orthogonal to them.
    """
    samples, size = start.shape
    if excluded is None:
        excluded = start.new_empty((samples, 0, size))
    left_out = excluded.shape[1]
    steps, wanted = min(iterations, size - left_out), largest + smallest
    start, _ = _orthogonal(start, excluded)
    length = torch.linalg.vector_norm(start, dim=1, dtype=torch.float64)
    usable = torch.isfinite(length) & (length > 0)
    # What is left out stands before the basis: vectors are made orthogonal to both together.
    stacked = start.new_empty((samples, left_out + steps, size))
    stacked[:, :left_out] = excluded
    basis = stacked[:, left_out:]
    basis[:, 0] = torch.where(usable[:, None], divided(start, length), 0.0)
    # projected[:, i, j] = v_i . A v_j, tridiagonal but for rounding. The small algebra is done on the CPU.
    projected = torch.zeros((samples, steps, steps), dtype=torch.float64)
    values, residuals = (torch.full((samples, wanted), torch.nan, dtype=torch.float64) for _ in range(2))
    coefficients = torch.zeros((samples, wanted, steps), dtype=torch.float64)
    active, converged, products = usable.cpu(), torch.zeros(samples, dtype=torch.bool), 0
    rounding = _ROUNDING * torch.finfo(start.dtype).eps
    for step in range(steps):
        if not active.any():
            break
        known = stacked[:, : left_out + step + 1]
        rest, components = _orthogonal(product(basis[:, step]), known)
        products += 1
        projected[:, : step + 1, step] = components[:, left_out:]
        beta = torch.linalg.vector_norm(rest, dim=1, dtype=torch.float64)
        broken = active & ~torch.isfinite(beta).cpu()
        values[broken] = residuals[broken] = torch.nan
        rows = (active & ~broken).nonzero().squeeze(1)
        found = _Ends(projected[rows, : step + 1, : step + 1], beta.cpu()[rows], largest, smallest, rounding)
        values[rows], residuals[rows] = found.values, found.residuals
        coefficients[rows, :, : step + 1] = found.coefficients
        limit = tolerance * found.values.abs().amax(1, keepdim=True)
        # At the floor the subspace is invariant, and holds every eigenvector that the start has a share of.
        done = ((found.residuals <= limit) | (found.residuals <= 2 * found.floor[:, None])).all(1)
        stuck = beta.cpu()[rows] <= found.floor
        converged[rows] = done
        active = torch.zeros_like(active)
        active[rows] = ~done & (~stuck | (renewed is not None))
        if step + 1 < steps:
            following = divided(rest, beta)
            again = torch.zeros_like(active)
            again[rows] = active[rows] & stuck
            if renewed is not None and again.any():
                fresh, _ = _orthogonal(renewed(), known)
                fresh = divided(fresh, torch.linalg.vector_norm(fresh, dim=1, dtype=torch.float64))
                following = torch.where(again.to(fresh.device)[:, None], fresh, following)
            basis[:, step + 1] = following
            projected[:, step + 1, step] = torch.where(again, 0.0, beta.cpu())
    device = start.device
    return RitzPairs(
        values.to(device),
        residuals.to(device),
        coefficients[:, :, :products].to(device),
        basis[:, :products],
        converged.to(device),
        products,
    )


def divided(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Vectors [N, P] over lengths [N]; zero where the length is."""
    return vectors / torch.where(lengths > 0, lengths, 1.0)[:, None].to(vectors.dtype)


def _orthogonal(vectors: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [N, P] without their part in the span of orthonormal ones [N, m, P], and its components [N, m] float64."""
    total = torch.zeros(known.shape[:2], dtype=torch.float64)
    for _ in range(2):  # the second time removes what rounding left
        components = known @ vectors[:, :, None]
        vectors = vectors - (known.transpose(1, 2) @ components).squeeze(2)
        total += components.squeeze(2).double().cpu()
    return vectors, total


class _Ends:
    """The ends of the spectrum of small matrices, as far as they have that many eigenvalues.

    Args:
        projected: [n, m, m] float64, V^T A V.
        beta: [n] float64, norm of the part of A v_m outside the span of V.
        largest: How many at the upper end.
        smallest: How many at the lower end.
        rounding: Relative rounding of a product with A.

    Attributes:
        values: [n, k] float64, descending; NaN where m < k.
        residuals: [n, k] float64.
        coefficients: [n, k, m] float64.
        floor: [n] float64, the part of the residuals that is put down to rounding.
    """

    def __init__(self, projected: Tensor, beta: Tensor, largest: int, smallest: int, rounding: float) -> None:
        symmetric = 0.5 * (projected + projected.transpose(1, 2))
        every, vectors = torch.linalg.eigh(symmetric)
        count, size = every.shape
        self.floor = rounding * torch.maximum(every.abs().amax(1), beta)
        shape = (count, largest + smallest)
        self.values, self.residuals = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2))
        self.coefficients = torch.zeros((*shape, size), dtype=torch.float64)
        if size < largest + smallest:
            return
        chosen = [*range(size - 1, size - 1 - largest, -1), *range(smallest - 1, -1, -1)]
        ends = vectors[:, :, chosen]
        # A V = V T + beta v e_m^T, also where rounding makes the measured T asymmetric.
        inside = torch.linalg.vector_norm((projected - symmetric) @ ends, dim=1)
        outside = beta[:, None] * ends[:, -1].abs()
        self.values, self.coefficients = every[:, chosen], ends.transpose(1, 2)
        self.residuals = torch.hypot(inside, outside) + self.floor[:, None]
