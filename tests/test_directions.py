"""FI of a few directions in the input, against the pseudo-inverse of the metric itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raysense.measures.directions import direction_influence, influence_of_products


def network(classes: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 16, 8), nn.Tanh(), nn.Linear(8, classes)
    ).double()


def by_pseudo_inverse(logits: Tensor, jacobian: Tensor, label: int) -> float:
    """Eq. (3) as it stands: grad f G^+ grad f^T."""
    p = torch.softmax(logits, 0)
    metric = jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    gradient = jacobian.T @ p - jacobian[label]
    return float(gradient @ torch.linalg.pinv(metric, rtol=1e-11, hermitian=True) @ gradient)


@pytest.mark.parametrize("directions", [1, 2, 4, 7])
def test_fi_of_directions_is_eq_3(directions: int) -> None:
    model = network()
    images = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    tangents = torch.randn(3, directions, 2, 6, 6, dtype=torch.float64)
    labels = torch.tensor([0, 3, 5])
    found = direction_influence(model, images, tangents, labels)
    for row in range(3):
        full = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], images[row]).flatten(1)
        jacobian = full @ tangents[row].flatten(1).T
        logits = model(images[row : row + 1])[0].detach()
        assert found.fi[row].item() == pytest.approx(by_pseudo_inverse(logits, jacobian, int(labels[row])), rel=1e-8)
        norm = (jacobian.T @ torch.softmax(logits, 0) - jacobian[labels[row]]).norm()
        assert found.jacobian_norm[row].item() == pytest.approx(norm.item(), rel=1e-10)
    assert found.rank.tolist() == [min(directions, 5)] * 3
    if directions >= 5:
        assert torch.allclose(found.fi, found.bound, rtol=1e-10)
    else:
        assert (found.fi < found.bound).all()


def test_fi_does_not_depend_on_the_units_of_the_directions() -> None:
    model, images = network(), torch.rand(2, 2, 6, 6, dtype=torch.float64)
    tangents = torch.randn(2, 2, 2, 6, 6, dtype=torch.float64)
    mixed = torch.stack((3 * tangents[:, 0], 0.01 * tangents[:, 1] - tangents[:, 0]), dim=1)
    plain, scaled = (direction_influence(model, images, part).fi for part in (tangents, mixed))
    assert torch.allclose(plain, scaled, rtol=1e-8)


def test_a_direction_that_moves_nothing_has_no_influence() -> None:
    model, images = network(), torch.rand(2, 2, 6, 6, dtype=torch.float64)
    found = direction_influence(model, images, torch.zeros(2, 1, 2, 6, 6, dtype=torch.float64))
    assert found.rank.tolist() == [0, 0]
    assert found.fi.tolist() == [0.0, 0.0]


def test_what_is_not_finite_is_not_a_number_and_spares_its_neighbours() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, float("inf")]], dtype=torch.float64)
    jacobian = torch.randn(2, 3, 1, dtype=torch.float64)
    found = influence_of_products(logits, jacobian, torch.tensor([0, 0]))
    assert found.fi.isnan().tolist() == [False, True]
    assert found.bound.isnan().tolist() == [False, True]
