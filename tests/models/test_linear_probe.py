from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from models.linear_probe import Probe, choose_strength, fit_probe, stratified_folds, tempered_loss


def blobs(count: int, *, spread: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping classes in five dimensions, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2.0 * torch.eye(3, 5) + 10.0
    labels = torch.arange(count) % 3
    return centres[labels] + spread * torch.randn(count, 5, generator=generator), labels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(probe: Probe, x: torch.Tensor, y: torch.Tensor, penalty: float) -> float:
    loss = F.cross_entropy(probe.logits(x), y)
    return float(loss + 0.5 * penalty * probe.weight.square().sum())


def test_fit_is_scikit_learns_logistic_regression():
    x, y = blobs(60)
    scale = float((x.double() - x.double().mean(0)).square().sum(1).mean())
    strength = 0.01
    ours = fit_probe(x, y, 3, strength)
    theirs = LogisticRegression(C=1 / (strength * scale * len(y)), tol=1e-9, max_iter=10_000)
    theirs.fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(ours.weight, theirs.coef_, atol=1e-4)
    gap = ours.logits(x) - torch.from_numpy(theirs.decision_function(x.double().numpy()))
    assert float(gap.sub(gap.mean(1, keepdim=True)).abs().max()) < 1e-3


def test_gradient_vanishes_at_the_fit():
    x, y = blobs(30)
    start = Probe(torch.randn(3, 5, generator=seeded()).double(), torch.zeros(3).double())
    probe = fit_probe(x, y, 3, 0.1, start=start)
    scale = float((x.double() - x.double().mean(0)).square().sum(1).mean())
    weight = probe.weight.clone().requires_grad_()
    bias = probe.bias.clone().requires_grad_()
    loss = F.cross_entropy(x.double() @ weight.T + bias, y)
    loss = loss + 0.5 * 0.1 * scale * (weight - start.weight).square().sum()
    loss.backward()
    assert float(bias.grad.abs().max()) < 1e-4 and float(weight.grad.abs().max()) < 1e-3


def test_strength_is_blind_to_the_scale_of_the_features():
    x, y = blobs(30)
    one, two = fit_probe(x, y, 3, 0.03), fit_probe(100 * x, y, 3, 0.03)
    torch.testing.assert_close(one.logits(x), two.logits(100 * x), rtol=1e-3, atol=1e-4)


def test_strong_pull_stays_at_the_given_rows():
    x, y = blobs(30)
    start = Probe(torch.randn(3, 5, generator=seeded()).double(), torch.zeros(3).double())
    assert fit_probe(x, y, 3, math.inf, start=start) == start
    near, far = (fit_probe(x, y, 3, s, start=start).weight - start.weight for s in (10.0, 1e-3))
    assert near.norm() < 0.1 * far.norm()


def test_folds_are_stratified_even_and_seeded():
    labels = torch.tensor([0] * 8 + [1] * 5 + [2] * 3)
    folds = stratified_folds(labels, 4, seeded())
    assert folds.bincount().tolist() == [4, 4, 4, 4]
    for label in range(3):
        counts = folds[labels == label].bincount(minlength=4)
        assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(folds, stratified_folds(labels, 4, seeded()))
    assert not torch.equal(folds, stratified_folds(labels, 4, seeded(1)))


def test_tempered_loss_ignores_the_scale_of_logits_only():
    x, y = blobs(300)
    logits = fit_probe(x, y, 3, 1e-3).logits(x)
    least = tempered_loss(logits, y)
    assert least == pytest.approx(tempered_loss(5 * logits, y), rel=0.01)
    assert least <= F.cross_entropy(logits, y).item() + 1e-6
    assert tempered_loss(logits.flip(1), y) > 2 * least


def test_good_rows_are_kept_and_bad_rows_are_left():
    big, wanted = blobs(3000, spread=2.0, seed=1)
    good = fit_probe(big, wanted, 3, 1e-4)
    bad = Probe(good.weight.flip(0), good.bias.flip(0))

    def chosen(start: Probe | None) -> list[float]:
        strengths = []
        for seed in range(5):
            x, y = blobs(24, spread=2.0, seed=2 + seed)
            folds = stratified_folds(y, 4, seeded())
            strength, scores = choose_strength(x, y, 3, folds, start=start)
            assert (math.inf in scores) == (start is not None)
            strengths.append(strength)
        return sorted(strengths)

    assert chosen(good)[2] >= 0.03  # the median of five
    assert chosen(bad)[2] < 0.03
    assert math.isfinite(chosen(None)[-1])


def test_views_are_fitted_but_only_examples_are_scored():
    x, y = blobs(12)
    folds = stratified_folds(y, 3, seeded())
    plain = choose_strength(x, y, 3, folds)
    strength, scores = choose_strength(torch.cat([x, x]), y, 3, folds, views=2)
    assert strength == plain[0]
    for key, (loss, accuracy) in scores.items():
        assert loss == pytest.approx(plain[1][key][0]) and accuracy == plain[1][key][1]
