"""SIPE's equations against slow loops that follow the paper literally."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss.maps import structure
from wsss.maps.functional import add_background, class_valid_mask, normalize_cam
from wsss.methods.sipe import functional as sipe


def loop_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors, 0 when one of them is zero."""
    lengths = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / lengths if lengths > 0 else 0.0


def loop_iou(feature: Tensor, maps: Tensor) -> np.ndarray:
    """Eq. 3 and 4, one pair of pixels at a time."""
    u, m = feature.double().numpy(), maps.double().numpy()
    batch, _, height, width = m.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    out = np.zeros_like(m)
    for b in range(batch):
        for y, x in pixels:
            s = [max(0.0, loop_cosine(u[b, :, y, x], u[b, :, v, w])) for v, w in pixels]
            for n in range(m.shape[1]):
                inter = sum(s[k] * m[b, n, v, w] for k, (v, w) in enumerate(pixels))
                union = sum(s) + m[b, n].sum() - inter
                out[b, n, y, x] = inter / union if union > 0 else 0.0
    return out


def loop_seeds(scores: np.ndarray, allowed: np.ndarray, attenuation: float) -> np.ndarray:
    """Eq. 5 with the background's factor, one pixel at a time."""
    out = np.zeros_like(scores)
    batch, classes, height, width = scores.shape
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                values = [
                    scores[b, n, y, x] * (attenuation if n == 0 else 1) for n in range(classes)
                ]
                best = max(range(classes), key=lambda n: values[n])
                out[b, best, y, x] = allowed[b, best, y, x]
    return out


def loop_is_cam(seeds: np.ndarray, feature: Tensor) -> np.ndarray:
    """Eq. 6 and 7: centroid of the seeds, then cosine of every pixel with it."""
    g = feature.double().numpy()
    out = np.zeros(seeds.shape)
    batch, classes, height, width = seeds.shape
    for b in range(batch):
        for n in range(classes):
            picked = [
                g[b, :, y, x] for y in range(height) for x in range(width) if seeds[b, n, y, x] > 0
            ]
            prototype = np.mean(picked, axis=0) if picked else np.zeros(g.shape[1])
            for y in range(height):
                for x in range(width):
                    out[b, n, y, x] = max(0.0, loop_cosine(g[b, :, y, x], prototype))
    return out


def loop_gsc(maps: Tensor, is_cam: Tensor, counted: np.ndarray) -> float:
    """Eq. 10: mean over the counted channels and all positions."""
    m, s = maps.double().numpy(), is_cam.double().numpy()
    total, number = 0.0, 0
    for b in range(m.shape[0]):
        for n in range(m.shape[1]):
            if counted[b, n]:
                total += np.abs(m[b, n] - s[b, n] / (s[b, n].max() + 1e-5)).sum()
                number += m[b, n].size
    return total / number


class Case:
    """Three images on a 5 x 7 grid: two classes; one, and the right part is padding; none."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        batch, classes, height, width = 3, 4, 5, 7
        self.label = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
        self.activation = torch.randn(batch, classes, height, width, generator=generator)
        self.structure = torch.randn(batch, 6, height, width, generator=generator)
        self.feature = torch.randn(batch, 9, height, width, generator=generator)
        self.structure[0, :, 2, 3] = 0  # a dead pixel: its vector has no direction
        self.feature[0, :, 1, 1] = 0
        valid = torch.ones(batch, height * 16, width * 16)
        valid[1, :, 64:] = 0
        self.mask = class_valid_mask(valid, self.label, (height, width))
        self.maps = add_background(normalize_cam(self.activation)) * self.mask


@pytest.fixture
def case() -> Case:
    return Case()


def test_structure_iou_equals_the_loop_over_pairs_of_pixels(case: Case) -> None:
    ours = structure.structure_iou(case.structure, case.maps)
    np.testing.assert_allclose(ours, loop_iou(case.structure, case.maps), atol=2e-5)


def test_structure_map_is_symmetric_with_ones_on_the_diagonal(case: Case) -> None:
    relation = structure.structure_map(case.structure)
    torch.testing.assert_close(relation, relation.transpose(1, 2))
    diagonal = relation.diagonal(dim1=1, dim2=2)
    expected = torch.ones_like(diagonal)
    expected[0, 2 * 7 + 3] = 0  # the dead pixel correlates with nothing, itself included
    torch.testing.assert_close(diagonal, expected, atol=1e-4, rtol=0)
    assert relation.min() >= 0


def test_structure_iou_of_two_flat_regions_is_exact() -> None:
    """Two orthogonal regions of 3 and 1 pixels; the class map covers the first one."""
    feature = torch.tensor([[[[1.0, 1, 1, 0]], [[0, 0, 0, 1.0]]]])
    maps = torch.tensor([[[[0.0, 0, 0, 1]], [[1.0, 1, 1, 0]]]])
    expected = torch.tensor([[[[0.0, 0, 0, 1]], [[1.0, 1, 1, 0]]]])
    torch.testing.assert_close(structure.structure_iou(feature, maps), expected, atol=1e-4, rtol=0)


def test_empty_maps_and_dead_pixels_score_zero_and_never_nan() -> None:
    iou = structure.structure_iou(torch.zeros(1, 3, 2, 3), torch.zeros(1, 2, 2, 3))
    assert torch.equal(iou, torch.zeros(1, 2, 2, 3))


@pytest.mark.parametrize("attenuation", [0.0, 0.5, 1.0])
def test_seeds_equal_the_loop(case: Case, attenuation: float) -> None:
    scores = torch.rand(3, 5, 5, 7, generator=torch.Generator().manual_seed(0))
    ours = structure.locate_seeds(scores, case.mask, attenuation)
    np.testing.assert_array_equal(ours, loop_seeds(scores.numpy(), case.mask.numpy(), attenuation))


def test_a_pixel_won_by_an_absent_class_is_no_seed(case: Case) -> None:
    scores = torch.zeros(3, 5, 5, 7)
    scores[:, 2] = 1.0  # class 2 is in the second image only
    seeds = structure.locate_seeds(scores, case.mask)
    assert seeds[0].sum() == 0 and seeds[2].sum() == 0
    assert torch.equal(seeds[1, 2], case.mask[1, 0])


def test_padding_holds_no_seed(case: Case) -> None:
    seeds = structure.locate_seeds(structure.structure_iou(case.structure, case.maps), case.mask)
    padding = case.mask[:, :1] == 0
    assert padding.any()
    assert seeds[padding.expand_as(seeds)].sum() == 0


def test_a_lower_attenuation_gives_the_background_fewer_pixels() -> None:
    scores = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(1, 3, 20, 20)
    shares = [structure.locate_seeds(scores, everywhere, a)[:, 0].mean() for a in (0.25, 0.5, 1.0)]
    assert shares[0] < shares[1] < shares[2]


def test_threshold_seeds_are_the_largest_foreground_above_it(case: Case) -> None:
    seeds = structure.threshold_seeds(case.maps, case.mask, 0.4)
    maps, mask = case.maps.numpy(), case.mask.numpy()
    for b, y, x in np.ndindex(3, 5, 7):
        best = 1 + int(maps[b, 1:, y, x].argmax())
        owner = best if maps[b, best, y, x] > 0.4 else 0
        expected = np.eye(5)[owner] * mask[b, :, y, x]
        np.testing.assert_array_equal(seeds[b, :, y, x], expected)


def test_prototypes_are_directions_of_the_centroids(case: Case) -> None:
    seeds = structure.locate_seeds(case.maps, case.mask)
    prototypes = sipe.image_prototypes(seeds, case.feature)
    for b in range(3):
        for n in range(5):
            picked = case.feature[b][:, seeds[b, n] > 0]
            if picked.shape[1] == 0:
                assert torch.equal(prototypes[b, n], torch.zeros(9))
            else:
                mean = picked.mean(dim=1)
                torch.testing.assert_close(prototypes[b, n], mean / mean.norm(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("choice", sipe.SEED_CHOICES)
def test_exploration_equals_the_loops(case: Case, choice: str) -> None:
    found = sipe.explore(
        case.maps, case.structure, case.feature, case.mask, seeds=choice, seed_threshold=0.4
    )
    if choice == "structure":
        expected = loop_seeds(loop_iou(case.structure, case.maps), case.mask.numpy(), 0.5)
    elif choice == "argmax":
        expected = loop_seeds(case.maps.double().numpy(), case.mask.numpy(), 0.5)
    else:
        expected = structure.threshold_seeds(case.maps, case.mask, 0.4).numpy()
    np.testing.assert_array_equal(found.seeds, expected)
    np.testing.assert_allclose(found.is_cam, loop_is_cam(expected, case.feature), atol=1e-4)


def test_a_class_without_seeds_has_a_zero_map(case: Case) -> None:
    found = sipe.explore(case.maps, case.structure, case.feature, case.mask)
    empty = found.seeds.sum(dim=(2, 3)) == 0
    assert empty.any() and not empty.all()
    assert found.is_cam[empty].abs().max() == 0


def test_is_cam_ignores_the_scale_of_feature_and_lies_in_the_unit_interval(case: Case) -> None:
    found = sipe.explore(case.maps, case.structure, case.feature, case.mask)
    scaled = sipe.explore(case.maps, case.structure * 40, case.feature * 50, case.mask)
    torch.testing.assert_close(found.is_cam, scaled.is_cam, atol=1e-4, rtol=0)
    assert found.is_cam.min() >= 0 and found.is_cam.max() <= 1


def test_an_unknown_seed_choice_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="structure, argmax, threshold"):
        sipe.explore(case.maps, case.structure, case.feature, case.mask, seeds="best")


def test_hierarchical_feature_gives_every_stage_the_same_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    fine = 100 * torch.randn(2, 3, 10, 14, generator=generator)
    coarse = 0.01 * torch.randn(2, 5, 5, 7, generator=generator)
    feature = structure.hierarchical_feature([fine, coarse], (5, 7))
    assert feature.shape == (2, 8, 5, 7)
    unit = coarse / (coarse.norm(dim=1, keepdim=True) + 1e-5)
    torch.testing.assert_close(feature[:, 3:], unit)
    # Halving with half-pixel centers is the mean of each 2 x 2 block.
    unit = fine / (fine.norm(dim=1, keepdim=True) + 1e-5)
    blocks = unit.reshape(2, 3, 5, 2, 7, 2).mean(dim=(3, 5))
    torch.testing.assert_close(feature[:, :3], blocks, atol=1e-5, rtol=1e-4)


def test_estimated_background_is_what_the_foreground_leaves(case: Case) -> None:
    found = sipe.explore(case.maps, case.structure, case.feature, case.mask)
    estimated = sipe.estimate_background(found.is_cam)
    is_cam = found.is_cam.numpy()
    for b in range(3):
        foreground = [is_cam[b, n] / (is_cam[b, n].max() + 1e-5) for n in range(1, 5)]
        np.testing.assert_allclose(estimated[b, 0], 1 - np.max(foreground, axis=0), atol=1e-6)
        np.testing.assert_allclose(estimated[b, 1:], foreground, atol=1e-6)


def test_gsc_equals_the_loop_over_all_and_over_present_classes(case: Case) -> None:
    is_cam = sipe.explore(case.maps, case.structure, case.feature, case.mask).is_cam
    specific = normalize_cam(is_cam)
    everything = np.ones((3, 5))
    assert sipe.gsc_loss(case.maps, specific).item() == pytest.approx(
        loop_gsc(case.maps, is_cam, everything), abs=1e-6
    )
    present = torch.cat([torch.ones(3, 1), case.label], dim=1)
    assert sipe.gsc_loss(case.maps, specific, present).item() == pytest.approx(
        loop_gsc(case.maps, is_cam, present.numpy()), abs=1e-6
    )


def test_gsc_vanishes_when_both_sides_agree() -> None:
    maps = torch.rand(2, 3, 5, 5)
    maps = maps / maps.amax(dim=(2, 3), keepdim=True)
    assert sipe.gsc_loss(maps, normalize_cam(7 * maps)).item() < 1e-5


def test_gradient_reaches_feature_and_cam_side_but_not_structure_or_seeds(case: Case) -> None:
    structure = case.structure.requires_grad_()
    feature = case.feature.requires_grad_()
    maps = case.maps.requires_grad_()
    found = sipe.explore(maps, structure, feature, case.mask)
    found.is_cam.sum().backward()
    assert feature.grad is not None and feature.grad.isfinite().all()
    assert feature.grad.abs().sum() > 0
    assert structure.grad is None and maps.grad is None and not found.seeds.requires_grad

    sipe.gsc_loss(maps, found.is_cam.detach()).backward()
    assert maps.grad is not None and maps.grad.abs().sum() > 0


def test_gradient_of_the_is_side_equals_finite_differences(case: Case) -> None:
    seeds = sipe.explore(case.maps, case.structure, case.feature, case.mask).seeds

    def loss(feature: Tensor) -> Tensor:
        is_cam = sipe.reactivate(feature, sipe.image_prototypes(seeds, feature))
        return sipe.gsc_loss(case.maps, normalize_cam(is_cam))

    feature = case.feature.clone().requires_grad_()
    loss(feature).backward()
    assert feature.grad is not None
    direction = torch.randn(feature.shape, generator=torch.Generator().manual_seed(1))
    direction[0, :, 1, 1] = 0  # the dead pixel: the length has a kink there
    step = 1e-3 * direction
    with torch.no_grad():
        numeric = (loss(case.feature + step) - loss(case.feature - step)) / 2e-3
    analytic = (feature.grad * direction).sum()
    assert numeric.item() == pytest.approx(analytic.item(), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_survives_sums_that_would_overflow(dtype: torch.dtype) -> None:
    """Vectors of length 1000 * sqrt(512): their square, 5e8, is far above half's 65504."""
    generator = torch.Generator().manual_seed(0)
    activation = torch.randn(1, 2, 9, 11, generator=generator)
    maps = add_background(normalize_cam(activation)).to(dtype)
    feature = (1000 * torch.rand(1, 512, 9, 11, generator=generator)).to(dtype)
    allowed = torch.ones(1, 3, 1, 1)
    found = sipe.explore(maps, feature, feature, allowed)
    exact = sipe.explore(maps.double().float(), feature.float(), feature.float(), allowed)
    assert found.is_cam.isfinite().all()
    torch.testing.assert_close(found.is_cam, exact.is_cam)
    assert sipe.gsc_loss(maps, found.is_cam.to(dtype)).isfinite()


def test_autocast_does_not_round_the_structure(case: Case) -> None:
    exact = sipe.explore(case.maps, case.structure, case.feature, case.mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sipe.explore(case.maps, case.structure, case.feature, case.mask)
    assert torch.equal(exact.seeds, inside.seeds)
    assert torch.equal(exact.is_cam, inside.is_cam)


def test_nothing_larger_than_a_structure_map_is_built() -> None:
    """Every tensor made in forward and backward is counted through the dispatcher."""
    from torch.utils._python_dispatch import TorchDispatchMode

    batch, classes, side, channels = 2, 20, 12, 64
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for made in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(made, Tensor):
                    largest = max(largest, made.numel())
            return out

    activation = torch.randn(batch, classes, side, side, requires_grad=True)
    feature = torch.randn(batch, channels, side, side, requires_grad=True)
    with Watch():
        maps = add_background(normalize_cam(activation))
        found = sipe.explore(maps, feature, feature, torch.ones(batch, classes + 1, 1, 1))
        sipe.gsc_loss(maps, normalize_cam(found.is_cam)).backward()
    assert largest == batch * (side * side) ** 2
