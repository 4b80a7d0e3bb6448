"""The algebra of FI against its definition, in float64 and in 60 digits."""

from __future__ import annotations

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import dense_influence

from raysense.measures.fisher import (
    attained,
    gradient_norm,
    gram_matrix,
    influence,
    odds_against,
    published_influence,
)


def gram_of(jacobian: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    reference = logits.argmax(1)[:, None, None].expand(-1, 1, jacobian.shape[2])
    return gram_matrix(jacobian - jacobian.gather(1, reference))


def random_case(
    classes: int, rank: int, scale: float, seed: int, samples: int = 6, size: int = 40
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, Jacobians [N, K, P] of the given rank, and classes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    jacobian = normal(samples, classes, rank) @ normal(samples, rank, size)
    return scale * normal(samples, classes), jacobian, torch.randint(classes, (samples,), generator=generator)


@pytest.mark.parametrize(
    ("classes", "rank"), [(2, 1), (2, 40), (5, 1), (5, 3), (5, 40), (10, 4), (10, 40), (30, 7), (30, 40)]
)
@pytest.mark.parametrize("scale", [0.3, 1.5])
def test_influence_equals_its_definition(classes: int, rank: int, scale: float) -> None:
    logits, jacobian, chosen = random_case(classes, rank, scale, seed=classes * 100 + rank)
    result = influence(logits, gram_of(jacobian, logits), chosen, logits.argmax(1))
    expected = torch.tensor(
        [dense_influence(j, z, int(y)) for j, z, y in zip(jacobian, logits, chosen, strict=True)], dtype=torch.float64
    )
    torch.testing.assert_close(result.fi, expected, rtol=1e-9, atol=0)
    assert result.rank.tolist() == [min(rank, classes - 1)] * len(chosen)
    assert (result.fi <= result.upper).all()


def exact_influence_in_digits(jacobian: torch.Tensor, logits: torch.Tensor, chosen: int) -> mpmath.mpf:
    """FI in 120 digits for a Jacobian with fewer columns than classes - 1 and full column rank: G is then invertible."""
    with mpmath.workdps(120):
        rows = [[mpmath.mpf(value) for value in row] for row in jacobian.tolist()]
        z = [mpmath.mpf(value) for value in logits.tolist()]
        total = mpmath.fsum(mpmath.exp(value) for value in z)
        p = [mpmath.exp(value) / total for value in z]
        size = len(rows[0])
        mean = [mpmath.fsum(pk * row[i] for pk, row in zip(p, rows, strict=True)) for i in range(size)]
        centred = [[row[i] - mean[i] for i in range(size)] for row in rows]
        metric = mpmath.matrix(size, size)
        for i in range(size):
            for j in range(size):
                metric[i, j] = mpmath.fsum(pk * row[i] * row[j] for pk, row in zip(p, centred, strict=True))
        slope = mpmath.matrix(centred[chosen])
        return (slope.T * mpmath.lu_solve(metric, slope))[0]


@pytest.mark.parametrize("spread", [1.0, 20.0, 60.0, 150.0])
def test_low_rank_influence_keeps_its_digits_over_hundreds_of_orders_of_magnitude(spread: float) -> None:
    classes, rank = 7, 3
    generator = torch.Generator().manual_seed(3)
    jacobian = torch.randn(1, classes, rank, generator=generator, dtype=torch.float64)
    logits = -spread * torch.tensor([[0.0, 0.13, 0.9, 0.4, 1.7, 0.65, 2.0]], dtype=torch.float64)
    gram = gram_of(jacobian, logits)
    for chosen in range(classes):
        expected = exact_influence_in_digits(jacobian[0], logits[0], chosen)
        result = influence(logits, gram, torch.tensor([chosen]), logits.argmax(1))
        assert result.rank.item() == rank
        assert abs(mpmath.mpf(result.fi.item()) / expected - 1) < 1e-8, (spread, chosen)


def test_confidently_misclassified_sample_keeps_its_influence() -> None:
    """A rank threshold on the metric would drop the improbable class's direction and return 0."""
    logits = torch.tensor([[0.0, -45.0, -3.0, -5.0]], dtype=torch.float64)
    _, jacobian, _ = random_case(4, 40, 1.0, seed=0, samples=1)
    result = influence(logits, gram_of(jacobian, logits), torch.tensor([1]), logits.argmax(1))
    p = torch.softmax(logits, 1)[0, 1].item()
    assert result.fi.item() == pytest.approx((1 - p) / p, rel=1e-12)
    assert result.fi.item() > 1e19


def test_influence_is_the_closed_form_at_full_rank() -> None:
    logits, jacobian, chosen = random_case(10, 40, 8.0, seed=5, samples=50)
    result = influence(logits, gram_of(jacobian, logits), chosen, logits.argmax(1))
    p = torch.softmax(logits, 1).gather(1, chosen[:, None]).squeeze(1)
    torch.testing.assert_close(result.fi, (1 - p) / p, rtol=1e-9, atol=1e-12)


def test_no_gradient_no_influence() -> None:
    logits, _, chosen = random_case(5, 3, 1.0, seed=0)
    result = influence(logits, torch.zeros(6, 5, 5, dtype=torch.float64), chosen, logits.argmax(1))
    assert result.fi.tolist() == [0.0] * 6
    assert result.rank.tolist() == [0] * 6


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 12), rank=st.integers(1, 14), condition=st.floats(0.0, 2.0))
def test_influence_is_invariant_under_reparameterisation(seed: int, classes: int, rank: int, condition: float) -> None:
    """Theorem 1: J R with R invertible has the same influence, for any conditioning short of the rank threshold."""
    logits, jacobian, chosen = random_case(classes, rank, 2.0, seed, samples=3, size=15)
    generator = torch.Generator().manual_seed(seed + 1)
    q, _ = torch.linalg.qr(torch.randn(15, 15, generator=generator, dtype=torch.float64))
    scales = torch.logspace(-condition / 2, condition / 2, 15, dtype=torch.float64)
    transformed = 7.0 * jacobian @ q @ torch.diag(scales)
    before = influence(logits, gram_of(jacobian, logits), chosen, logits.argmax(1))
    after = influence(logits, gram_of(transformed, logits), chosen, logits.argmax(1))
    torch.testing.assert_close(after.fi, before.fi, rtol=1e-8, atol=0)


def test_gradient_norm_is_that_of_the_objective() -> None:
    logits, jacobian, chosen = random_case(6, 4, 2.0, seed=9)
    p = torch.softmax(logits, 1)
    slopes = torch.stack([(p[i] @ jacobian[i]) - jacobian[i, chosen[i]] for i in range(len(chosen))])
    norm = gradient_norm(logits, gram_of(jacobian, logits), chosen)
    torch.testing.assert_close(norm, slopes.norm(dim=1), rtol=1e-10, atol=0)


def test_odds_of_confident_samples_are_not_a_difference() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0], [0.0, -700.0, 0.0]], dtype=torch.float64)
    odds = odds_against(logits, torch.tensor([0, 1]))
    assert odds[0].item() == pytest.approx(float(2 * mpmath.exp(-60)), rel=1e-14)
    assert odds[1].item() == pytest.approx(float(2 * mpmath.exp(700)), rel=1e-12)


def test_attained_is_a_lower_bound_that_the_solution_attains() -> None:
    for rank in (2, 40):
        logits, jacobian, chosen = random_case(8, rank, 2.0, seed=rank)
        result = influence(logits, gram_of(jacobian, logits), chosen, logits.argmax(1))
        torch.testing.assert_close(attained(logits, result.move, chosen), result.fi, rtol=1e-9, atol=0)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            direction = torch.randn(6, 40, generator=generator, dtype=torch.float64)
            along = attained(logits, torch.einsum("nkp,np->nk", jacobian, direction), chosen)
            assert (along <= result.fi * (1 + 1e-12)).all()


def test_published_rule_equals_a_transcription_on_the_gradients() -> None:
    """The authors' steps on the probabilities' gradients: epsilon in both places, SVD, singular values above epsilon."""
    epsilon = 1e-3
    logits, jacobian, chosen = random_case(10, 40, 3.0, seed=11)
    jacobian = 0.01 * jacobian
    fi, rank = published_influence(logits, gram_of(jacobian, logits), chosen)
    for i, y in enumerate(chosen.tolist()):
        p = logits[i].softmax(0)
        gradients = (p[:, None] * (jacobian[i] - p @ jacobian[i])).T
        u, s, _ = torch.linalg.svd(gradients / (p.sqrt() + epsilon), full_matrices=False)
        kept = s > epsilon
        coordinates = (gradients[:, y] / (p[y] + epsilon)) @ u[:, kept] / s[kept]
        assert rank[i].item() == int(kept.sum())

        assert fi[i].item() == pytest.approx(float(coordinates @ coordinates), rel=1e-9)
    assert 0 < rank.min() < 9  # the thresholds do drop directions here
