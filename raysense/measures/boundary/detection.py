"""Detection of perturbed images by the curvature of the boundaries around them (Fawzi et al. 2018, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.measures.boundary.classified import Runs, runs_of
from raysense.measures.boundary.hessian import DifferenceHessian, Margin
from raysense.measures.boundary.margins import UnitVectors
from raysense.measures.boundary.shape_operator import Derivatives, ShapeOperator
from raysense.measures.gradients import Model, forward, jacobian_product

_DIRECTION_BYTES = 2**26
"""Of random directions held at once, unless those of one image take more."""


@dataclass(frozen=True)
class Detection:
    """What Algorithm 2 computes of N images.

    A class cannot be measured where its margin has no gradient, and so no normal, or a derivative is not finite; none can
    be where the image's logits are not finite. It is left out of the mean.

    Attributes:
        logits: [N, K].
        predicted: [N] int64, k.
        classes: [N, C] int64, the other classes whose boundaries were asked for, the largest logit first.
        n_classes: [N] int64, how many of them were measured.
        curvature: [N, C] float64, mean of v' G_F v over the directions, F = f_i - f_k for each of these classes, in
            1 / pixel values; positive where the region of k is convex. NaN where not measured.
        rho: [N] float64, mean over directions and ``n_classes`` + 1 classes, that of k itself counting as 0; NaN where
            none was measured.
        stderr: [N] float64, standard error of rho over the directions; NaN for one.
        recovered: [N] int64, the measured class whose boundary is curved the most; -1 where there is none.
    """

    logits: Tensor
    predicted: Tensor
    classes: Tensor
    n_classes: Tensor
    curvature: Tensor
    rho: Tensor
    stderr: Tensor
    recovered: Tensor

    def perturbed(self, threshold: float = 0.0) -> Tensor:
        """[N] bool: whether rho is at least the threshold, so that an image counts as perturbed.

        As published both branches say false; what is meant by the second one is true.
        """
        return self.rho >= threshold


def detect(
    model: Model,
    images: Tensor,
    seeds: Sequence[int],
    *,
    directions: int = 32,
    top: int = 0,
    derivatives: Derivatives = "exact",
    step: float | None = None,
    runs: Runs | None = None,
) -> Detection:
    """Algorithm 2: the mean curvature at images of the boundaries between their predicted class and the others.

    rho = 1 / (L T) sum over i != k and j of v_j' G_i v_j, with F_i = f_i - f_k, n_i = grad F_i / |grad F_i| and
    G_i = (I - n_i n_i') H_i (I - n_i n_i') / |grad F_i|, all at the image itself, not at a boundary point; v_j are uniform
    on the unit sphere, the same for all classes of an image. L is the number of classes that are measured, and k.

    Exact second derivatives are products of :class:`ShapeOperator`. Differences are those of directional derivatives of all
    logits at x + h v and x - h v, one forward-mode pass each, whatever the number of classes; the terms with n_i, which
    P leaves, take differences of gradients along n_i. Both are of order h^2 where the network is smooth. For one with kinks
    they are the curvature at scale h, as by :class:`ShapeOperator` but for moving along v, not its tangent part, which is
    shorter by a share of about 1 / 2P.

    Args:
        model: Maps images to logits [N, K], sample by sample.
        images: [N, ...], P values each; at least one.
        seeds: One an image, of its directions.
        directions: T.
        top: Classes other than the predicted one, those of largest logit; 0 takes all.
        derivatives: How second derivatives are found.
        step: h for ``differences``, in the Euclidean norm of the images.
        runs: Runs of derivatives computed at once, in images; 64 by default.

    Returns:
        It does not depend on the other images of the batch but for the last digits.

    Raises:
        ValueError: there are no directions, ``top`` is negative, the seeds do not match the images, or ``step`` is missing.
    """
    if directions < 1:
        raise ValueError(f"directions {directions} must be at least 1; use 32, say")
    if top < 0:
        raise ValueError(f"top {top} must not be negative; 0 takes all classes")
    if derivatives == "differences" and (step is None or not 0 < step < float("inf")):
        raise ValueError(f"step {step} must be positive and finite for differences; use 0.1, say")
    if len(seeds) != len(images):
        raise ValueError(f"{len(seeds)} seeds for {len(images)} images; give one an image")
    scale = step if derivatives == "differences" else None
    runs = runs or runs_of(64)
    group = max(1, _DIRECTION_BYTES // (directions * images[0].numel() * images.element_size()))
    parts = [
        _detected(model, images[at : at + group], seeds[at : at + group], directions, top, scale, runs)
        for at in range(0, len(images), group)
    ]
    fields = ("logits", "predicted", "classes", "n_classes", "curvature", "rho", "stderr", "recovered")
    return Detection(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


def _detected(
    model: Model,
    images: Tensor,
    seeds: Sequence[int],
    directions: int,
    top: int,
    step: float | None,
    runs: Runs,
) -> Detection:
    stream = UnitVectors(seeds, images)
    vectors = torch.stack([stream.draw() for _ in range(directions)], dim=1)
    logits = _logits(model, images, runs)
    predicted = logits.argmax(1)
    others = logits.scatter(1, predicted[:, None], -torch.inf)
    count = logits.shape[1] - 1
    classes = others.argsort(dim=1, descending=True, stable=True)[:, : min(top, count) if top else count]
    pairs = _Pairs(model, images, predicted, classes, vectors, runs)
    forms = pairs.exact() if step is None else pairs.differences(step)
    measured = forms.isfinite().all(2) & logits.isfinite().all(1, keepdim=True)
    n_classes = measured.sum(1)
    by_direction = forms.masked_fill(~measured[:, :, None], 0.0).sum(1) / (n_classes[:, None] + 1)
    by_direction[n_classes == 0] = torch.nan
    rho, curvature = by_direction.mean(1), forms.mean(2).masked_fill(~measured, torch.nan)
    recovered = classes.gather(1, curvature.nan_to_num(-torch.inf).argmax(1, keepdim=True)).squeeze(1)
    return Detection(
        logits=logits,
        predicted=predicted,
        classes=classes,
        n_classes=n_classes,
        curvature=curvature,
        rho=rho,
        stderr=by_direction.std(1) / directions**0.5 if directions > 1 else torch.full_like(rho, torch.nan),
        recovered=torch.where(n_classes > 0, recovered, -1),
    )


def _logits(model: Model, images: Tensor, runs: Runs) -> Tensor:
    parts: list[Tensor] = []
    runs(len(images), lambda start, stop: parts.append(forward(model, images[start:stop])))
    return torch.cat(parts)


class _Pairs:
    """Quadratic forms v' G v of N images, C other classes of each and T directions of each.

    Args:
        model: The network.
        images: [N, ...].
        predicted: [N] int64, k.
        classes: [N, C] int64, i.
        vectors: [N, T, P], v, of norm 1.
        runs: Runs of derivatives computed at once.
    """

    def __init__(
        self, model: Model, images: Tensor, predicted: Tensor, classes: Tensor, vectors: Tensor, runs: Runs
    ) -> None:
        self._model, self._images, self._vectors, self._runs = model, images, vectors, runs
        self._predicted, self._classes = predicted, classes
        self._forms = torch.zeros(
            (len(images), classes.shape[1], vectors.shape[1]), dtype=torch.float64, device=images.device
        )

    def exact(self) -> Tensor:
        """[N, C, T] float64, from products with exact Hessians."""
        forms = self._forms.flatten(0, 1)

        def work(start: int, stop: int) -> None:
            owner, of = self._margins(start, stop)
            operator = ShapeOperator(self._model, of.points, of.from_class, of.to_class, "exact")
            for place in range(self._vectors.shape[1]):
                forms[start:stop, place] = operator.quadratic_form(self._vectors[owner, place])

        self._runs(len(forms), work)
        return self._forms

    def differences(self, step: float) -> Tensor:
        """[N, C, T] float64, from differences over 2h: v' H v - 2 (n.v) n' H v + (n.v)^2 n' H n, over the gradient's norm.

        The first term is that of all classes at once; H n in the others takes gradients, class by class.
        """
        count = self._vectors.shape[1]
        others = torch.zeros_like(self._forms)
        scale = torch.zeros_like(self._forms[:, :, 0])

        def normals(start: int, stop: int) -> None:
            owner, of = self._margins(start, stop)
            operator = ShapeOperator(self._model, of.points, of.from_class, of.to_class, "differences", step)
            turned = DifferenceHessian(of, step).product(operator.normal)
            pulled = (operator.normal * turned).sum(1, dtype=torch.float64)
            scale.view(-1)[start:stop] = operator.gradient_norm
            for image in owner.unique().tolist():
                rows = owner == image
                along = (operator.normal[rows] @ self._vectors[image].T).double()
                across = (turned[rows] @ self._vectors[image].T).double()
                others.flatten(0, 1)[start:stop][rows] = along * (along * pulled[rows, None] - 2 * across)

        self._runs(self._classes.numel(), normals)

        def lines(start: int, stop: int) -> None:
            rows = torch.arange(start, stop, device=self._images.device)
            owner, place = rows // count, rows % count
            directions = self._vectors.flatten(0, 1)[start:stop].view(-1, *self._images.shape[1:])
            points, shift = self._images[owner], step * directions
            slopes = jacobian_product(
                self._model, torch.cat((points + shift, points - shift)), torch.cat((directions, directions))
            )
            # Forward mode records a graph where parameters require grad.
            after, before = slopes.detach().double().chunk(2)
            bent = (after - before) / (2 * step)
            of_class = bent.gather(1, self._classes[owner]) - bent.gather(1, self._predicted[owner, None])
            self._forms[owner, :, place] = of_class

        self._runs(len(self._images) * count, lines)
        # Where there is no gradient, there is no normal: both are not finite.
        return (self._forms + others) / scale[:, :, None]

    def _margins(self, start: int, stop: int) -> tuple[Tensor, Margin]:
        """F of pairs of image and class ``start`` to ``stop``, and whose image each is."""
        owner = torch.arange(start, stop, device=self._images.device) // self._classes.shape[1]
        other = self._classes.flatten()[start:stop]
        return owner, Margin(self._model, self._images[owner], self._predicted[owner], other)
