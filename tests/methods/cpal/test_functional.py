"""CPAL's equations against loops over images, classes, positions and prototypes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wsss.methods.cpal.functional import (
    SIMILARITIES,
    anchor_mask,
    background_mask,
    distribution_shift,
    masked_average,
    positiveness,
    prototype_aware_cam,
    self_supervision_loss,
    similarity,
    soft_neighbors,
)

P, D, L, K = 5, 6, 12, 7


def cosine(a, b) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    available = torch.ones(P, K, dtype=torch.bool)
    available[1, 3:] = False
    available[2] = False
    return {
        "features": torch.randn(P, D, L, generator=generator),
        "anchors": torch.randn(P, D, generator=generator),
        "prototypes": torch.randn(P, K, D, generator=generator),
        "available": available,
    }


def test_anchors_average_the_strongly_activated_valid_positions():
    torch.manual_seed(0)
    cam, valid = torch.rand(2, 3, 4, 3), (torch.rand(2, 3, 4, 3) > 0.3).float()
    z = torch.randn(2, D, 4, 3)
    mask = anchor_mask(cam, valid, tau=0.4)
    for image in range(2):
        for index in range(3):
            total, weight = np.zeros(D), 0.0
            for y in range(4):
                for x in range(3):
                    if cam[image, index, y, x] > 0.4 and valid[image, index, y, x]:
                        total += z[image, :, y, x].numpy()
                        weight += 1
            ours = masked_average(z[image].flatten(1)[None], mask[image, index].view(1, -1))
            np.testing.assert_allclose(ours[0], total / weight, rtol=1e-4, atol=1e-5)


def test_anchor_mask_is_a_constant():
    cam = torch.rand(1, 2, 3, 3, requires_grad=True)
    assert not anchor_mask(cam, torch.ones(1, 2, 3, 3), 0.1).requires_grad


def test_average_without_weight_is_zero():
    assert (masked_average(torch.randn(1, D, L), torch.zeros(1, L)) == 0).all()


def test_background_mask_is_where_the_background_wins():
    cam = torch.rand(2, 4, 3, 3)
    window = torch.ones(2, 1, 3, 3)
    window[0, 0, 2] = 0
    mask = background_mask(cam, window)
    for image in range(2):
        for y in range(3):
            for x in range(3):
                wins = int(cam[image, :, y, x].argmax()) == 0 and window[image, 0, y, x] == 1
                assert mask[image, 0, y, x] == float(wins)


def test_shifted_features_have_the_mean_of_the_bank():
    torch.manual_seed(1)
    bank, anchors = torch.randn(3, 50, D), torch.randn(3, 4, D)
    known = torch.tensor([True, True, False])
    shift = distribution_shift(bank.mean(1), anchors.mean(1), known)
    shifted = (anchors + shift[:, None]).mean(1)
    torch.testing.assert_close(shifted[:2], bank.mean(1)[:2])
    assert torch.equal(shift[2], torch.zeros(D))


@pytest.mark.parametrize("number", [1, 3, K, None])
def test_neighbors_are_those_of_highest_cosine(pairs, number):
    anchors, prototypes = pairs["anchors"], pairs["prototypes"]
    selected = soft_neighbors(anchors, prototypes, pairs["available"], number)
    for pair in range(P):
        candidates = [j for j in range(K) if pairs["available"][pair, j]]
        ranked = sorted(
            candidates, key=lambda j: -cosine(anchors[pair].numpy(), prototypes[pair, j].numpy())
        )
        assert set(selected[pair].nonzero().flatten().tolist()) == set(ranked[:number])


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_similarities(pairs, kind):
    formula = {
        "dot": lambda a, b: float((a * b).sum()),
        "cosine": cosine,
        "l1": lambda a, b: -float(abs(a - b).sum()),
        "l2": lambda a, b: -math.sqrt(float(((a - b) ** 2).sum())),
    }[kind]
    ours = similarity(pairs["anchors"], pairs["prototypes"], kind)
    for pair in range(P):
        for j in range(K):
            expected = formula(pairs["anchors"][pair].numpy(), pairs["prototypes"][pair, j].numpy())
            assert float(ours[pair, j]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.3])
@pytest.mark.parametrize("kind", SIMILARITIES)
def test_positiveness_is_the_softmax_over_the_neighbors(pairs, kind, temperature):
    selected = soft_neighbors(pairs["anchors"], pairs["prototypes"], pairs["available"], 4)
    weights = positiveness(
        pairs["anchors"], pairs["prototypes"], selected, kind, temperature=temperature
    )
    score = similarity(pairs["anchors"], pairs["prototypes"], kind)
    divisor = temperature or math.sqrt(D)
    for pair in range(P):
        chosen = selected[pair].nonzero().flatten().tolist()
        total = sum(math.exp(float(score[pair, j]) / divisor) for j in chosen)
        for j in range(K):
            expected = math.exp(float(score[pair, j]) / divisor) / total if j in chosen else 0
            assert float(weights[pair, j]) == pytest.approx(expected, rel=1e-4)


def test_similarity_by_norm_has_a_finite_gradient_at_distance_zero():
    anchors = torch.ones(1, D, requires_grad=True)
    for kind in SIMILARITIES:
        similarity(anchors, torch.ones(1, 2, D), kind).sum().backward()
        assert torch.isfinite(anchors.grad).all(), kind


def test_pacam_against_loops(pairs):
    weights = torch.rand(P, K) * pairs["available"]
    ours = prototype_aware_cam(pairs["features"], pairs["prototypes"], weights)
    for pair in range(P):
        for i in range(L):
            z = pairs["features"][pair, :, i].numpy()
            terms = [
                (float(weights[pair, j]), cosine(z, pairs["prototypes"][pair, j].numpy()))
                for j in range(K)
                if weights[pair, j] > 0
            ]
            total = sum(w for w, _ in terms)
            if not terms:
                expected = 0.0
            else:
                expected = max(0.0, sum(w * c for w, c in terms) / total)
            assert float(ours[pair, i]) == pytest.approx(expected, abs=1e-5)


def test_all_neighbors_with_equal_weights_are_the_plain_average(pairs):
    features, prototypes = pairs["features"][:1], pairs["prototypes"][:1]
    everything = soft_neighbors(pairs["anchors"][:1], prototypes, pairs["available"][:1], None)
    ours = prototype_aware_cam(features, prototypes, everything.float())
    plain = torch.cosine_similarity(features[:, None], prototypes[..., None], dim=2).mean(1)
    torch.testing.assert_close(ours, plain.relu())


def test_scaling_the_anchor_does_not_change_pacam_with_cosine(pairs):
    def maps(anchors):
        selected = soft_neighbors(anchors, pairs["prototypes"], pairs["available"], 3)
        weights = positiveness(anchors, pairs["prototypes"], selected, "cosine")
        return prototype_aware_cam(pairs["features"], pairs["prototypes"], weights)

    torch.testing.assert_close(maps(pairs["anchors"]), maps(17.0 * pairs["anchors"]))


@pytest.mark.parametrize("reduction", ["all", "present"])
def test_self_supervision_against_loops(reduction):
    torch.manual_seed(2)
    cam, pacam = torch.rand(3, 4, 2, 5), torch.rand(3, 4, 2, 5)
    window = (torch.rand(3, 1, 2, 5) > 0.2).float()
    label = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1]])
    valid = torch.cat([window, window * label[:, :, None, None]], dim=1)
    answered = torch.tensor([[True] * 4, [False] * 4, [True, True, False, True]])
    total, counted = 0.0, 0
    for image in range(3):
        for channel in range(4):
            present = channel == 0 or label[image, channel - 1] == 1
            counted += int(present and bool(answered[image, channel]))
            for y in range(2):
                for x in range(5):
                    if present and answered[image, channel] and window[image, 0, y, x]:
                        total += abs(float(cam[image, channel, y, x] - pacam[image, channel, y, x]))
    channels = 12 if reduction == "all" else counted
    ours = self_supervision_loss(cam, pacam, valid, answered, reduction)
    assert float(ours) == pytest.approx(total / (channels * 10), rel=1e-5)


def test_loss_of_nothing_answered_is_zero_with_zero_gradient():
    cam = torch.rand(2, 3, 2, 2, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for reduction in ("all", "present"):
        loss = self_supervision_loss(
            cam, torch.rand(2, 3, 2, 2), torch.ones(2, 3, 2, 2), nothing, reduction
        )
        loss.backward()
        assert float(loss) == 0 and (cam.grad == 0).all()
