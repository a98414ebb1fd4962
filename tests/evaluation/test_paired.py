"""Paired differences against SciPy, loops over dense matrices, closed forms and simulation."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from wsss.evaluation.confusion import scores
from wsss.evaluation.paired import (
    Interval,
    aligned,
    over_images,
    over_seeds,
    power,
    resampled,
    scores_of,
    seeds_to_show,
    shown_by,
    verdict,
)
from wsss.evaluation.per_image import Collector, Confusions, sparse

RNG = np.random.default_rng(3)


def confusions(dense: np.ndarray) -> Confusions:
    """(n, L, L) matrices."""
    collector = Collector(tuple(f"c{i}" for i in range(1, dense.shape[1])))
    for number, matrix in enumerate(dense):
        collector.add(f"image{number}", sparse(np.repeat(np.arange(matrix.size), matrix.ravel())))
    return collector.confusions()


def dense_runs(runs: int, images: int, labels: int) -> np.ndarray:
    """(runs, images, L, L) with the same truth in all runs and labels that are often absent."""
    found = np.zeros((runs, images, labels, labels), dtype=int)
    for image in range(images):
        truth = RNG.choice(labels, 30, p=[0.7] + [0.3 / (labels - 1)] * (labels - 1))
        for run in range(runs):
            predicted = np.where(RNG.random(30) < 0.6, truth, RNG.choice(truth, 30))
            np.add.at(found[run, image], (truth, predicted), 1)
    return found


def test_the_interval_over_seeds_is_that_of_the_t_test() -> None:
    for count in (2, 3, 10):
        a, b = RNG.normal(50, 3, (2, count))
        found = over_seeds(b - a)
        expected = stats.ttest_rel(b, a).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert found.beyond == (stats.ttest_rel(b, a).pvalue < 0.05)
    single = over_seeds([1.5])
    assert single.mean == 1.5 and np.isnan(single.low) and not single.beyond


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
@pytest.mark.parametrize("difference", [0.0, 0.4, 1.0, 2.0])
def test_power_is_that_of_the_noncentral_t_distribution(seeds: int, difference: float) -> None:
    limit = stats.t.ppf(0.975, seeds - 1)
    shifted = stats.nct(seeds - 1, difference * np.sqrt(seeds))
    expected = shifted.sf(limit) + (shifted.cdf(-limit) if difference else shifted.sf(limit))
    assert power(difference, 1.0, seeds) == pytest.approx(expected, abs=1e-4)
    assert power(-3 * difference, 3.0, seeds) == pytest.approx(expected, abs=1e-4)


def test_power_is_the_share_of_simulated_trials_that_leave_out_0() -> None:
    trials = np.random.default_rng(0).normal(0.8, 1.0, (20000, 6))
    half = stats.t.ppf(0.975, 5) * trials.std(1, ddof=1) / np.sqrt(6)
    share = np.mean(np.abs(trials.mean(1)) > half)
    assert power(0.8, 1.0, 6) == pytest.approx(share, abs=0.012)


def test_the_seeds_that_would_show_a_difference_are_the_fewest() -> None:
    for difference in (0.3, 0.5, 1.0, 4.0):
        count = seeds_to_show(difference, 0.6)
        by_hand = next(n for n in range(2, 200) if power(difference, 0.6, n) >= 0.8)
        assert count == by_hand
    assert seeds_to_show(0.001, 1.0) is None and seeds_to_show(0.0, 1.0) is None
    assert seeds_to_show(0.1, 0.0) == 2 and seeds_to_show(0.0, 0.0) is None


@pytest.mark.parametrize("seeds", [2, 3, 5, 30])
def test_what_some_seeds_show_is_shown_by_them(seeds: int) -> None:
    least = shown_by(0.7, seeds)
    assert power(least, 0.7, seeds) == pytest.approx(0.8, abs=1e-6)
    assert shown_by(0.0, seeds) == 0


def test_resampled_scores_are_those_of_a_loop_over_dense_matrices(monkeypatch) -> None:
    dense = dense_runs(4, 23, 5)
    runs = aligned([confusions(one) for one in dense])
    monkeypatch.setattr("wsss.evaluation.paired.BLOCK", 3 * 23)  # several blocks, the last smaller
    found = resampled(runs, resamples=40, seed=7)
    rng = np.random.default_rng(7)
    for draw in range(40):
        chosen = rng.integers(0, 23, 23)
        for run in range(4):
            expected = scores(sum(dense[run, image] for image in chosen))
            assert found[run, draw, 0] == pytest.approx(expected.miou)
            np.testing.assert_allclose(found[run, draw, 1:], expected.iou)
    for one, matrices in zip(runs, dense, strict=True):
        expected = scores(matrices.sum(0))
        np.testing.assert_allclose(scores_of(one), [expected.miou, *expected.iou])
    low, high = over_images(found[2:], found[:2])
    differences = (found[2:] - found[:2]).mean(0)
    for label in range(6):
        known = differences[:, label][~np.isnan(differences[:, label])]
        assert low[label] == pytest.approx(np.percentile(known, 2.5))
        assert high[label] == pytest.approx(np.percentile(known, 97.5))


def test_a_class_that_most_draws_do_not_have_has_no_interval() -> None:
    first, second = np.ones((2, 1, 10, 3))
    first[0, :6, 1], first[0, :4, 2] = np.nan, np.nan
    low, _ = over_images(first, second)
    assert np.isnan(low).tolist() == [False, True, False]


def test_where_the_score_is_a_mean_the_interval_is_the_normal_one() -> None:
    """All truth is background and every image as large: its IoU is the mean share of hits."""
    images, pixels = 400, 50
    hits = np.stack([RNG.binomial(pixels, p, images) for p in (0.7, 0.75)])
    dense = np.zeros((2, images, 2, 2), dtype=int)
    dense[:, :, 0, 0], dense[:, :, 0, 1] = hits, pixels - hits
    runs = [confusions(one) for one in dense]
    drawn = resampled(runs, resamples=4000)
    low, high = over_images(drawn[1:], drawn[:1])
    gaps = 100 * (hits[1] - hits[0]) / pixels
    half = 1.96 * gaps.std() / np.sqrt(images)
    assert low[1] == pytest.approx(gaps.mean() - half, abs=0.05 * half)
    assert high[1] == pytest.approx(gaps.mean() + half, abs=0.05 * half)


def test_what_can_not_be_compared_is_refused() -> None:
    dense = dense_runs(2, 6, 3)
    first, second = (confusions(one) for one in dense)
    other = Confusions(first.names, ("c1", "dog"), second.triplets)
    with pytest.raises(ValueError, match="other classes"):
        aligned([first, other])
    with pytest.raises(ValueError, match="other images"):
        aligned([first, confusions(dense[1][:5])])
    changed = dense[1].copy()
    changed[2, 0, 0] += 1
    with pytest.raises(ValueError, match="other masks"):
        aligned([first, confusions(changed)])
    turned = Confusions(tuple(reversed(second.names)), second.classes, second.triplets)
    with pytest.raises(ValueError, match="other masks"):
        aligned([first, turned])
    there_and_back = second.in_order(turned.names)
    np.testing.assert_array_equal(aligned([first, there_and_back])[1].triplets, second.triplets)


def test_memory_of_the_bootstrap_does_not_grow_with_draws_times_images() -> None:
    images, labels = 20_000, 81
    image = np.repeat(np.arange(images, dtype=np.int32), 4)
    cell = np.tile(np.array([0, 5, 82 * 7, 82 * 9], dtype=np.int32), images)
    triplets = np.stack([image, cell, np.full(len(image), 100, np.int32)])
    names, classes = tuple(map(str, range(images))), tuple(map(str, range(1, labels)))
    run = Confusions(names, classes, triplets)
    tracemalloc.start()
    try:
        resampled([run, run], resamples=300)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Weights of all draws are 48 MB, dense matrices of all images 1 GB.
    assert peak < 2 * 32 * 2**20


@pytest.mark.parametrize(
    ("differences", "images", "words"),
    [
        ([1.0, 1.2, 0.9], Interval(1.0, 0.4, 1.6), "beyond noise"),
        ([-1.0, -1.2, -0.9], Interval(-1.0, -1.6, -0.4), "beyond noise"),
        ([1.0, 1.2, 0.9], None, "beyond noise of seeds"),
        ([1.0, 1.2, 0.9], Interval(1.0, -0.4, 2.6), "beyond noise of seeds, inside that of images"),
        ([0.7], Interval(0.7, 0.2, 1.1), "one seed: noise of training unknown; beyond that of"),
        ([0.7], None, "one seed: noise of training unknown"),
        ([0.0, 0.0], None, "no difference"),
        ([1.0, -1.0, 0.003], None, "inside noise: no 1000 seeds would show 0.00; these 3 would"),
    ],
)
def test_the_verdict_in_words(differences, images, words) -> None:
    assert verdict(differences, images).startswith(words)


def test_the_verdict_counts_the_seeds_that_are_missing() -> None:
    gaps = [1.1, -0.3, 0.9, 0.2, 0.6]
    mean, deviation = np.mean(gaps), np.std(gaps, ddof=1)
    total = next(n for n in range(2, 100) if power(mean, deviation, n) >= 0.8)
    assert total > 5
    text = verdict(gaps, Interval(0.5, 0.1, 0.9))
    assert f"{total - 5} more seed" in text and "would show 0.50" in text
    assert text.endswith(f"these 5 would have shown {shown_by(deviation, 5):.2f}")
