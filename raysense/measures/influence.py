"""FI of any targets: exactly from K - 1 backward passes, or certified in an interval from few."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from raysense.measures.capture import IrregularUses
from raysense.measures.differences import Differences
from raysense.measures.directions import DirectionInfluence
from raysense.measures.fisher import attained, gradient_norm, influence, odds_against, published_influence
from raysense.measures.merged import MergedClasses, by_probability
from raysense.measures.perturbed import Perturbed

GRADIENT_BYTES = 2**29
"""Default bound on the bytes of logit gradients held at once."""

_UPPER_RTOL = 1e-12  # below the exact rank threshold, so that the coarse metric's bound errs upwards
# Start where the dropped probability is this multiple of tolerance x min(p_y, 1 - p_y). Measured on a CIFAR-10 ResNet-20:
# the relative width is in the median 0.01 of the dropped probability over min(p_y, 1 - p_y), in 95% of cases below 0.06.
_DROPPED_SHARE = 50.0
_PASSES_OF_A_PRODUCT = 3  # a forward-mode product and the merged class cost about this many backward passes
_BY_TARGET = ("fi", "lower", "upper", "rank", "jacobian_norm")


@dataclass(frozen=True)
class TargetInfluence:
    """FI of T targets for N samples.

    Attributes:
        fi: [N, T] float64; the middle of the interval for a certified one; NaN where only the bound is known.
        lower: [N, T] float64.
        upper: [N, T] float64.
        rank: [N, T] int64, rank of the Fisher metric; -1 where it is not known.
        jacobian_norm: [N, T] float64, ||df/dw||, Eq. (4), in 1 / unit of w; NaN where it is not known.
        bound: [N] float64, (1 - p_y) / p_y.
        n_backward: [N] int64, backward passes spent on the sample for all targets together; forward-mode products, one a
            target for every try of a certified interval, are not counted.
        logits: [N, K] float64. A sample whose logits or gradients are not finite has NaN in the other fields.
    """

    fi: Tensor
    lower: Tensor
    upper: Tensor
    rank: Tensor
    jacobian_norm: Tensor
    bound: Tensor
    n_backward: Tensor
    logits: Tensor

    def with_directions(self, found: DirectionInfluence) -> TargetInfluence:
        """With one more target, a few directions in the input, known exactly."""
        return self._with(found.fi, found.fi, found.fi, found.rank, found.jacobian_norm)

    def with_bound(self) -> TargetInfluence:
        """With one more target, of which only the bound is known."""
        unknown = torch.full_like(self.bound, torch.nan)
        return self._with(unknown, 0 * self.bound, self.bound, torch.full_like(self.n_backward, -1), unknown)

    def _with(self, *columns: Tensor) -> TargetInfluence:
        names = ("fi", "lower", "upper", "rank", "jacobian_norm")
        joined = {
            name: torch.cat((getattr(self, name), column[:, None]), dim=1)
            for name, column in zip(names, columns, strict=True)
        }
        return replace(self, **joined)


def bound_influence(perturbed: Perturbed, images: Tensor, classes: Tensor | None = None) -> TargetInfluence:
    """The bound FI <= (1 - p_y) / p_y, from a forward pass only.

    Args:
        perturbed: Network and targets.
        images: [N, C, H, W].
        classes: [N] int64, the class y of each sample; None takes the predicted one.
    """
    logits = perturbed.forward(images)
    return _bound(perturbed, logits, logits.argmax(1) if classes is None else classes)


def _bound(perturbed: Perturbed, logits: Tensor, classes: Tensor) -> TargetInfluence:
    bound = odds_against(logits, classes)
    upper = bound[:, None].repeat(1, len(perturbed.targets))
    unknown = torch.full_like(upper, torch.nan)
    rank = torch.full_like(upper, -1, dtype=torch.int64)
    return TargetInfluence(
        unknown,
        torch.zeros_like(upper),
        upper,
        rank,
        unknown.clone(),
        bound,
        torch.zeros_like(classes),
        logits,
    )


def exact_influence(
    perturbed: Perturbed,
    images: Tensor,
    classes: Tensor | None = None,
    rank_rule: str = "invariant",
    gradient_bytes: int = GRADIENT_BYTES,
) -> TargetInfluence:
    """FI of f = -log p_y for every target, from K - 1 backward passes.

    Args:
        perturbed: Network and targets.
        images: [N, C, H, W].
        classes: [N] int64, the class y of each sample; None takes the predicted one.
        rank_rule: ``invariant`` (relative threshold) or ``published`` (the authors' absolute thresholds).
        gradient_bytes: Bound on the gradients held at once; the batch is split to keep it, and where one sample's exceed
            it, the passes are repeated for parts of the parameters.
    """
    return _regularly(perturbed, lambda: _all_exact(perturbed, images, classes, rank_rule, gradient_bytes))


def _regularly(perturbed: Perturbed, measure: Callable[[], TargetInfluence]) -> TargetInfluence:
    """Measure; once more, sample by sample, where a batch turns out to use parameters irregularly."""
    try:
        return measure()
    except IrregularUses:
        return measure()


def _all_exact(
    perturbed: Perturbed, images: Tensor, classes: Tensor | None, rank_rule: str, gradient_bytes: int
) -> TargetInfluence:
    count = perturbed.forward(images[:1]).shape[1]
    everything = torch.arange(len(images), device=images.device)
    parts = [
        _exact(perturbed, images[chunk], None if classes is None else classes[chunk], rank_rule, gradient_bytes)
        for chunk in _chunks(everything, perturbed, images, count, gradient_bytes)
    ]
    return TargetInfluence(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(TargetInfluence))
    )


def _exact(
    perturbed: Perturbed, images: Tensor, classes: Tensor | None, rank_rule: str, gradient_bytes: int
) -> TargetInfluence:
    # The graph is built once: the logits say which classes there are before any gradient is taken.
    differences = Differences(perturbed, images, range(len(perturbed.targets)), gradient_bytes)
    logits = differences.logits
    classes = logits.argmax(1) if classes is None else classes
    finite = torch.isfinite(logits).all(1)
    safe = torch.where(finite[:, None], logits, 0.0)
    problem = MergedClasses(safe, by_probability(safe, classes))
    result = _bound(perturbed, logits, classes)
    for index, gram in differences.grams(problem):
        part = _solved(problem, gram, rank_rule)
        if rank_rule == "invariant" and perturbed.spans(perturbed.targets[index], differences.spanning):
            part = _spanned(problem, gram)
        for name in _BY_TARGET:
            getattr(result, name)[:, index] = getattr(part, name)
    for name in ("fi", "lower", "upper", "jacobian_norm"):
        getattr(result, name)[~finite] = torch.nan
    result.n_backward.add_(differences.passes)
    return result


def certified_influence(
    perturbed: Perturbed,
    images: Tensor,
    classes: Tensor | None = None,
    tolerance: float = 1e-3,
    gradient_bytes: int = GRADIENT_BYTES,
) -> TargetInfluence:
    """Intervals that contain FI, with (upper - lower) / upper <= tolerance, mostly from far fewer than K passes.

    The m - 1 most probable classes besides y are kept and the others merged into one. The metric of the merged classes
    is at most the full one, so its FI is an upper bound, and one forward-mode product along its solution h gives a lower
    one. m doubles until the interval is as narrow as asked for; a sample that needs most classes gets the exact value.
    A target that holds the bias of the last layer, or its weight, spans all moves of the logits: its FI is the bound.

    Args:
        perturbed: Network and targets.
        images: [N, C, H, W].
        classes: [N] int64, the class y of each sample; None takes the predicted one.
        tolerance: Relative width of the interval, at least the rounding of the model's dtype.
        gradient_bytes: Bound on the gradients held at once, as for :func:`exact_influence`.
    """
    return _regularly(perturbed, lambda: _all_certified(perturbed, images, classes, tolerance, gradient_bytes))


def _all_certified(
    perturbed: Perturbed, images: Tensor, classes: Tensor | None, tolerance: float, gradient_bytes: int
) -> TargetInfluence:
    logits = perturbed.forward(images)
    classes = logits.argmax(1) if classes is None else classes
    count = logits.shape[1]
    order = by_probability(logits, classes)
    result = _bound(perturbed, logits, classes)
    # A sample with logits that are not finite keeps its NaN.
    missing = torch.isfinite(logits).all(1)[:, None].repeat(1, len(perturbed.targets))
    levels = torch.where(missing[:, 0], _first_levels(perturbed, logits, order, tolerance), 0)
    held = _HeldGradients(gradient_bytes // _image_bytes(images))
    while len(waiting := (levels > 0).nonzero().squeeze(1)):
        level = int(levels[waiting].min())
        for group in held.split(waiting[levels[waiting] == level]):
            for chunk in _chunks(group, perturbed, images, level + 2, gradient_bytes):
                problem = MergedClasses(logits[chunk], order[chunk, :level])
                targets = missing[chunk].any(0).nonzero().squeeze(1).tolist()
                differences = Differences(perturbed, images[chunk], targets, gradient_bytes, held.take(chunk))
                for index, gram in differences.grams(problem):
                    part = _narrowed(perturbed, problem, differences, index, gram)
                    fresh = missing[chunk, index]
                    for name in _BY_TARGET:
                        column = getattr(result, name)
                        column[chunk, index] = torch.where(fresh, getattr(part, name), column[chunk, index])
                    # Equal where both are infinite, too, whose difference is not a number.
                    narrow = (part.upper == part.lower) | (part.upper - part.lower <= tolerance * part.upper)
                    done = narrow | part.upper.isnan() | problem.exact
                    missing[chunk, index] &= ~done
                result.n_backward[chunk] += differences.passes
                rest = missing[chunk].any(1)
                following = _rung(2 * level, perturbed, count, int(missing[chunk].any(0).sum()))
                levels[chunk] = torch.where(rest, following, 0)
                if level > 1 and perturbed.input_only and differences.rows is not None:
                    # At level 1 the only row is a difference to the merged class, which changes.
                    held.put(chunk[rest], differences.rows[rest, :level])
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


def _first_levels(perturbed: Perturbed, logits: Tensor, order: Tensor, tolerance: float) -> Tensor:
    """How many classes to keep first: so many that the dropped probability is small against min(p_y, 1 - p_y).

    Args:
        perturbed: Network and targets.
        logits: [N, K].
        order: [N, K], y first, then by falling probability.
        tolerance: Relative width asked for.

    Returns:
        [N] int64, at least 1 and at most K.
    """
    count = logits.shape[1]
    if all(perturbed.spans(target) for target in perturbed.targets):
        return torch.ones_like(order[:, 0])
    probabilities = torch.softmax(logits, dim=1).gather(1, order)
    remaining = probabilities.flip(1).cumsum(1).flip(1)  # column m: probability of all but the first m
    small = torch.minimum(probabilities[:, 0], remaining[:, 1])
    enough = remaining[:, 1:] <= _DROPPED_SHARE * tolerance * small[:, None]
    needed = torch.where(enough.any(1), enough.long().argmax(1) + 1, count)
    targets = sum(not perturbed.spans(target) for target in perturbed.targets)
    rungs = torch.tensor([_rung(level, perturbed, count, targets) for level in range(count + 1)], device=logits.device)
    return rungs[needed]


def _rung(level: int, perturbed: Perturbed, count: int, targets: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... so that samples share batches; all classes where few would be left.

    Args:
        level: Classes to keep at least.
        perturbed: Network and targets.
        count: K.
        targets: How many targets need a forward-mode product each for their lower bound.
    """
    power = 1 << max(0, level.bit_length() - 1)
    rung = level if level == power else 3 * power // 2 if level <= 3 * power // 2 else 2 * power
    product = _PASSES_OF_A_PRODUCT * (1 if perturbed.input_only else max(1, targets))
    return rung if rung + product < perturbed.passes(count) + 1 else count


@dataclass(frozen=True)
class _Part:
    """The fields of one target for n samples; all [n]."""

    fi: Tensor
    lower: Tensor
    upper: Tensor
    rank: Tensor
    jacobian_norm: Tensor


def _solved(problem: MergedClasses, gram: Tensor, rank_rule: str) -> _Part:
    """The exact value, with all classes kept."""
    logits, reference = problem.logits, problem.reference
    first = torch.zeros_like(reference)  # y is the first of the kept classes
    gram, finite = _finite(gram)
    upper, norm = odds_against(logits, first), gradient_norm(logits, gram, first)
    if rank_rule == "published":
        fi, rank = published_influence(logits, gram, first)
    else:
        solution = influence(logits, gram, first, reference)
        fi, rank = solution.fi, solution.rank
    fi, upper, norm = (torch.where(finite, value, torch.nan) for value in (fi, upper, norm))
    return _Part(fi, fi.clone(), upper, rank, norm)


def _narrowed(
    perturbed: Perturbed, problem: MergedClasses, differences: Differences, index: int, gram: Tensor
) -> _Part:
    """The interval of one target: exact with all classes kept, or where the target spans all moves of the logits."""
    if perturbed.spans(perturbed.targets[index], differences.spanning):
        return _spanned(problem, gram)
    if problem.exact:
        part = _solved(problem, gram, "invariant")
        return _Part(part.fi, part.lower, part.fi.clone(), part.rank, part.jacobian_norm)
    return _interval(problem, differences, index, gram)


def _spanned(problem: MergedClasses, gram: Tensor) -> _Part:
    """The bound, for a target that alone moves the logits in every direction, however little in some."""
    gram, finite = _finite(gram)
    bound = torch.where(finite, odds_against(problem.full, problem.kept[:, 0]), torch.nan)
    full = torch.full_like(problem.reference, problem.full.shape[1] - 1)
    norm = gradient_norm(problem.logits, gram, torch.zeros_like(problem.reference))
    return _Part(bound, bound.clone(), bound.clone(), full, norm)


def _interval(problem: MergedClasses, differences: Differences, index: int, gram: Tensor) -> _Part:
    """Upper bound from the merged classes, lower bound along the direction that solves their problem."""
    logits, reference = problem.logits, problem.reference
    first = torch.zeros_like(reference)
    gram, finite = _finite(gram)
    solution = influence(logits, gram, first, reference, _UPPER_RTOL)
    move = differences.moves(index, _coefficients(gram, solution.move, reference))
    rounding = 64 * torch.finfo(differences.dtype).eps
    upper = torch.where(solution.rank == problem.kept.shape[1], solution.upper, solution.fi * (1 + rounding))
    upper = torch.minimum(upper, odds_against(problem.full, problem.kept[:, 0]))
    lower = torch.minimum(attained(problem.full, move, problem.kept[:, 0]) * (1 - rounding), upper)
    lower, upper = (torch.where(finite, value, torch.nan) for value in (lower, upper))
    unknown = torch.full_like(first, -1)
    return _Part(0.5 * (lower + upper), lower, upper, unknown, gradient_norm(logits, gram, first))


def _finite(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrices [n, M, M], zero for samples with gradients that are not finite, and which are finite [n]."""
    finite = torch.isfinite(gram).flatten(1).all(1)
    return torch.where(finite[:, None, None], gram, 0.0), finite


def _coefficients(gram: Tensor, move: Tensor, reference: Tensor) -> Tensor:
    """The shortest h with (g_k - g_r) . h proportional to t_k - t_r, as a combination of the differences [n, M]."""
    wanted = move - move.gather(1, reference[:, None])
    coefficients = (torch.linalg.pinv(gram, rtol=_UPPER_RTOL, hermitian=True) @ wanted[:, :, None]).squeeze(2)
    scaled: Tensor = coefficients / coefficients.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return scaled


def _image_bytes(images: Tensor) -> int:
    return int(images[0].numel() * images.element_size())


def _chunks(indices: Tensor, perturbed: Perturbed, images: Tensor, rows: int, bound: int) -> Iterator[Tensor]:
    size = 1 if perturbed.one_by_one else max(1, bound // perturbed.sample_bytes(images, rows))
    yield from torch.split(indices, size)
