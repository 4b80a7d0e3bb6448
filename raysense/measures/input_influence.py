"""FI of the input: exactly from K - 1 backward passes, or certified in an interval from few."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from raysense.measures.fisher import (
    attained,
    gradient_norm,
    gram_matrix,
    influence,
    odds_against,
    published_influence,
)
from raysense.measures.gradients import Model, forward, forward_with_graph, jacobian_product
from raysense.measures.merged import MergedClasses, by_probability

GRADIENT_BYTES = 2**29
"""Default bound on the bytes of logit gradients held at once."""

_UPPER_RTOL = 1e-12  # below the exact rank threshold, so that the coarse metric's bound errs upwards
# Start where the dropped probability is this multiple of tolerance x min(p_y, 1 - p_y). Measured on a CIFAR-10 ResNet-20:
# the relative width is in the median 0.01 of the dropped probability over min(p_y, 1 - p_y), in 95% of cases below 0.06.
_DROPPED_SHARE = 50.0
_PASSES_OF_A_PRODUCT = 3  # a forward-mode product and the merged class cost about this many backward passes
_FLOATS = ("fi", "lower", "upper", "jacobian_norm")


@dataclass(frozen=True)
class InputInfluence:
    """FI of the input for N samples; all [N].

    Attributes:
        fi: float64; the middle of the interval for a certified one; NaN where only the bound is known.
        lower: float64.
        upper: float64.
        rank: int64, rank of the Fisher metric; -1 where it is not known.
        n_backward: int64, backward passes spent on the sample; forward-mode products, one for every try of a certified
            interval, are not counted.
        jacobian_norm: float64, ||df/dx||, in 1 / pixel value; NaN where it is not known.
        logits: [N, K] float64. A sample whose logits or gradients are not finite has NaN in the other fields.
    """

    fi: Tensor
    lower: Tensor
    upper: Tensor
    rank: Tensor
    n_backward: Tensor
    jacobian_norm: Tensor
    logits: Tensor


def bound_influence(model: Model, images: Tensor, classes: Tensor | None = None) -> InputInfluence:
    """The bound FI <= (1 - p_y) / p_y, from a forward pass only.

    Args:
        model: Maps images to logits [N, K], sample by sample, with no randomness.
        images: [N, C, H, W].
        classes: [N] int64, the class y of each sample; None takes the predicted one.
    """
    logits = forward(model, images).double()
    return _bound(logits, logits.argmax(1) if classes is None else classes)


def _bound(logits: Tensor, classes: Tensor) -> InputInfluence:
    upper = odds_against(logits, classes)
    unknown = torch.full_like(upper, torch.nan)
    none = torch.zeros_like(classes)
    return InputInfluence(unknown, torch.zeros_like(upper), upper, none - 1, none, unknown.clone(), logits)


def exact_influence(
    model: Model,
    images: Tensor,
    classes: Tensor | None = None,
    rank_rule: str = "invariant",
    gradient_bytes: int = GRADIENT_BYTES,
) -> InputInfluence:
    """FI of f = -log p_y with respect to the input, from K - 1 backward passes.

    Args:
        model: Maps images to logits [N, K], sample by sample, with no randomness.
        images: [N, C, H, W].
        classes: [N] int64, the class y of each sample; None takes the predicted one.
        rank_rule: ``invariant`` (relative threshold) or ``published`` (the authors' absolute thresholds).
        gradient_bytes: Bound on the logit gradients held at once; the batch is split to keep it.
    """
    count = forward(model, images[:1]).shape[1]
    everything = torch.arange(len(images), device=images.device)
    parts = [
        _exact(model, images[chunk], None if classes is None else classes[chunk], rank_rule)
        for chunk in _chunks(everything, _sample_bytes(images, count), gradient_bytes)
    ]
    return InputInfluence(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(InputInfluence))
    )


def _exact(model: Model, images: Tensor, classes: Tensor | None, rank_rule: str) -> InputInfluence:
    raw, inputs = forward_with_graph(model, images)
    logits = raw.detach().double()
    classes = logits.argmax(1) if classes is None else classes
    finite = torch.isfinite(logits).all(1)
    safe = torch.where(finite[:, None], logits, 0.0)
    problem = MergedClasses(safe, by_probability(safe, classes))
    rows, passes = problem.differences_of(raw, inputs)
    part = _solve(problem, rows, passes, rank_rule)
    return replace(
        part,
        **{name: torch.where(finite, getattr(part, name), torch.nan) for name in _FLOATS},
        logits=logits,
    )


def certified_influence(
    model: Model,
    images: Tensor,
    classes: Tensor | None = None,
    tolerance: float = 1e-3,
    gradient_bytes: int = GRADIENT_BYTES,
) -> InputInfluence:
    """An interval that contains FI, with (upper - lower) / upper <= tolerance, mostly from far fewer than K passes.

    The m - 1 most probable classes besides y are kept and the others merged into one. The metric of the merged classes
    is at most the full one, so its FI is an upper bound, and one forward-mode product along its solution h gives a lower
    one. m doubles until the interval is as narrow as asked for; a sample that needs most classes gets the exact value.

    Args:
        model: Maps images to logits [N, K], sample by sample, with no randomness.
        images: [N, C, H, W].
        classes: [N] int64, the class y of each sample; None takes the predicted one.
        tolerance: Relative width of the interval, at least the rounding of the model's dtype.
        gradient_bytes: Bound on the logit gradients held at once; the batch is split to keep it.
    """
    logits = forward(model, images).double()
    classes = logits.argmax(1) if classes is None else classes
    count = logits.shape[1]
    order = by_probability(logits, classes)
    result = _bound(logits, classes)
    # A sample with logits that are not finite keeps its NaN.
    levels = torch.where(torch.isfinite(logits).all(1), _first_levels(logits, order, tolerance), 0)
    held = _HeldGradients(gradient_bytes // _image_bytes(images))
    while len(active := (levels > 0).nonzero().squeeze(1)):
        level = int(levels[active].min())
        following = _rung(2 * level, count)
        for group in held.split(active[levels[active] == level]):
            for chunk in _chunks(group, _sample_bytes(images, level + 2), gradient_bytes):
                problem = MergedClasses(logits[chunk], order[chunk, :level])
                rows, passes = problem.differences(model, images[chunk], held.take(chunk))
                if problem.exact:
                    part = _solve(problem, rows, passes)
                    part = replace(part, upper=part.fi.clone())
                else:
                    part = _interval(problem, rows, passes, model, images[chunk])
                part.n_backward.add_(result.n_backward[chunk])
                _assign(result, chunk, part)
                done = (part.upper - part.lower <= tolerance * part.upper) | part.upper.isnan() | problem.exact
                levels[chunk] = torch.where(done, 0, following)
                if level > 1:  # at level 1 the only row is a difference to the merged class, which changes
                    held.put(chunk[~done], rows[~done, :level])
    return result


class _HeldGradients:
    """Gradients of the classes kept so far, for samples that go on to the next level; within a bound on their number."""

    def __init__(self, capacity: int) -> None:
        self._rows: dict[int, Tensor] = {}
        self._room = capacity

    def split(self, chosen: Tensor) -> list[Tensor]:
        """The samples in groups with the same number of held gradients."""
        counts = torch.tensor([len(self._rows.get(index, ())) for index in chosen.tolist()], device=chosen.device)
        return [chosen[counts == count] for count in counts.unique()]

    def put(self, chosen: Tensor, gradients: Tensor) -> None:
        """Hold [n, m, P] gradients; those beyond the bound are left to be computed again."""
        for index, rows in zip(chosen.tolist(), gradients, strict=True):
            if len(rows) <= self._room:
                self._room -= len(rows)
                self._rows[index] = rows.clone()

    def take(self, chosen: Tensor) -> Tensor | None:
        """The held gradients [n, m, P] of samples of one group, or None where there are none; no longer held."""
        rows = [self._rows.pop(index) for index in chosen.tolist() if index in self._rows]
        self._room += sum(len(row) for row in rows)
        return torch.stack(rows) if rows else None


def _first_levels(logits: Tensor, order: Tensor, tolerance: float) -> Tensor:
    """How many classes to keep first: so many that the dropped probability is small against min(p_y, 1 - p_y).

    Args:
        logits: [N, K].
        order: [N, K], y first, then by falling probability.
        tolerance: Relative width asked for.

    Returns:
        [N] int64, at least 1 and at most K.
    """
    count = logits.shape[1]
    probabilities = torch.softmax(logits, dim=1).gather(1, order)
    remaining = probabilities.flip(1).cumsum(1).flip(1)  # column m: probability of all but the first m
    small = torch.minimum(probabilities[:, 0], remaining[:, 1])
    enough = remaining[:, 1:] <= _DROPPED_SHARE * tolerance * small[:, None]
    needed = torch.where(enough.any(1), enough.long().argmax(1) + 1, count)
    rungs = torch.tensor([_rung(level, count) for level in range(count + 1)], device=logits.device)
    return rungs[needed]


def _rung(level: int, count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... so that samples share batches; all classes where few would be left."""
    power = 1 << max(0, level.bit_length() - 1)
    rung = level if level == power else 3 * power // 2 if level <= 3 * power // 2 else 2 * power
    return rung if rung + _PASSES_OF_A_PRODUCT < count else count


def _solve(problem: MergedClasses, rows: Tensor, passes: int, rank_rule: str = "invariant") -> InputInfluence:
    """The exact value, with all classes kept."""
    logits, reference = problem.logits, problem.reference
    first = torch.zeros_like(reference)  # y is the first of the kept classes
    gram, finite = _finite_gram(rows)
    upper, norm = odds_against(logits, first), gradient_norm(logits, gram, first)
    if rank_rule == "published":
        fi, rank = published_influence(logits, gram, first)
    else:
        result = influence(logits, gram, first, reference)
        fi, rank = result.fi, result.rank
    fi, upper, norm = (torch.where(finite, value, torch.nan) for value in (fi, upper, norm))
    return InputInfluence(fi, fi.clone(), upper, rank, torch.full_like(first, passes), norm, problem.full)


def _interval(problem: MergedClasses, rows: Tensor, passes: int, model: Model, images: Tensor) -> InputInfluence:
    """Upper bound from the merged classes, lower bound along the direction that solves their problem."""
    logits, reference = problem.logits, problem.reference
    first = torch.zeros_like(reference)
    gram, finite = _finite_gram(rows)
    solution = influence(logits, gram, first, reference, _UPPER_RTOL)
    direction = _direction(rows, gram, solution.move, reference)
    move = jacobian_product(model, images, direction.view_as(images)).double()
    rounding = 64 * torch.finfo(rows.dtype).eps
    upper = torch.where(solution.rank == problem.kept.shape[1], solution.upper, solution.fi * (1 + rounding))
    upper = torch.minimum(upper, odds_against(problem.full, problem.kept[:, 0]))
    lower = torch.minimum(attained(problem.full, move, problem.kept[:, 0]) * (1 - rounding), upper)
    lower, upper = (torch.where(finite, value, torch.nan) for value in (lower, upper))
    spent, unknown = torch.full_like(first, passes), torch.full_like(first, -1)
    norm = gradient_norm(logits, gram, first)
    return InputInfluence(0.5 * (lower + upper), lower, upper, unknown, spent, norm, problem.full)


def _finite_gram(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrices [n, M, M], zero for samples with gradients that are not finite, and which are finite [n]."""
    gram = gram_matrix(rows)
    finite = torch.isfinite(gram).flatten(1).all(1)
    return torch.where(finite[:, None, None], gram, 0.0), finite


def _direction(rows: Tensor, gram: Tensor, move: Tensor, reference: Tensor) -> Tensor:
    """The shortest h with (g_k - g_r) . h proportional to t_k - t_r, as a unit vector [n, P]."""
    target = move - move.gather(1, reference[:, None])
    coefficients = (torch.linalg.pinv(gram, rtol=_UPPER_RTOL, hermitian=True) @ target[:, :, None]).squeeze(2)
    tiny = torch.finfo(rows.dtype).tiny
    coefficients = coefficients / coefficients.abs().amax(1, keepdim=True).clamp_min(tiny)
    direction = torch.einsum("nm,nmp->np", coefficients.to(rows.dtype), rows)
    length: Tensor = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    return direction / length.clamp_min(tiny)


def _image_bytes(images: Tensor) -> int:
    return int(images[0].numel() * images.element_size())


def _sample_bytes(images: Tensor, rows: int) -> int:
    """Bytes of a sample's gradients, and of the float64 matrices that its Gram matrix goes through."""
    return rows * _image_bytes(images) + 4 * 8 * rows**2


def _chunks(indices: Tensor, sample_bytes: int, bound: int) -> tuple[Tensor, ...]:
    return torch.split(indices, max(1, bound // sample_bytes))


def _assign(result: InputInfluence, index: Tensor, part: InputInfluence) -> None:
    for field in fields(result):
        getattr(result, field.name)[index] = getattr(part, field.name)
