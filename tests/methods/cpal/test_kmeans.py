"""K-means against scikit-learn and against what its contract promises."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from wsss.methods.cpal.kmeans import group_means, kmeans


def blobs(groups: int, k: int, per_blob: int, dim: int, noise: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    centers = F.normalize(torch.randn(groups, k, dim, generator=generator), dim=2) * 5
    label = torch.arange(k).repeat_interleave(per_blob)[torch.randperm(k * per_blob)]
    points = centers[:, label] + noise * torch.randn(groups, len(label), dim, generator=generator)
    return points, label


def inertia(points, assignment, centers):
    """Sum of squared distances to the own center, point by point."""
    return sum(
        float((x - centers[a]).square().sum())
        for x, a in zip(points, assignment.tolist(), strict=True)
        if a >= 0
    )


def test_separated_blobs_give_the_partition_of_scikit_learn():
    points, label = blobs(groups=4, k=6, per_blob=25, dim=16, noise=0.05)
    assignment, _, sizes = kmeans(points, torch.full((4,), 150), 6, seed=3, normalize=False)
    for group in range(4):
        theirs = KMeans(6, n_init=5, random_state=0).fit(points[group].numpy())
        assert adjusted_rand_score(theirs.labels_, assignment[group].numpy()) == 1.0
        assert adjusted_rand_score(label.numpy(), assignment[group].numpy()) == 1.0
    assert (sizes == 25).all()


def test_inertia_is_that_of_scikit_learn():
    # Heavy overlap: many local optima, as with anchors of one class.
    points, _ = blobs(groups=12, k=15, per_blob=20, dim=8, noise=2.5)
    assignment, centers, _ = kmeans(points, torch.full((12,), 300), 20, seed=0)
    unit = F.normalize(points, dim=2)
    ours = [inertia(unit[g], assignment[g], centers[g]) for g in range(12)]
    theirs = [
        KMeans(20, n_init=1, random_state=seed).fit(unit[g].numpy()).inertia_
        for g in range(12)
        for seed in range(3)
    ]
    assert np.mean(ours) < 1.02 * np.mean(theirs)


def test_converged_clusters_are_a_fixed_point():
    points, _ = blobs(groups=3, k=5, per_blob=12, dim=4, noise=1.0)
    counts = torch.tensor([60, 41, 7])
    assignment, centers, sizes = kmeans(points, counts, 5, seed=1, normalize=False, tolerance=0.0)
    for group, count in enumerate(counts.tolist()):
        own = points[group, :count]
        for cluster in range(5):
            member = own[assignment[group, :count] == cluster]
            assert len(member) == int(sizes[group, cluster]) > 0
            torch.testing.assert_close(centers[group, cluster], member.mean(0))
        nearest = torch.cdist(own, centers[group]).argmin(1)
        assert (nearest == assignment[group, :count]).all()


def test_padding_is_marked_and_never_read():
    points, _ = blobs(groups=2, k=3, per_blob=10, dim=4, noise=0.5)
    counts = torch.tensor([30, 12])
    expected = kmeans(points, counts, 3, seed=0)
    points[1, 12:] = float("nan")
    points[1, 12:, 0] = 1e9
    spoiled = torch.nan_to_num(points, nan=7.0)
    for ours, theirs in zip(expected, kmeans(spoiled, counts, 3, seed=0), strict=True):
        assert torch.equal(ours, theirs)
    assert (expected[0][1, 12:] == -1).all()
    assert (expected[0][1, :12] >= 0).all()


def test_fewer_points_than_clusters_and_none():
    points = torch.randn(3, 6, 4)
    counts = torch.tensor([2, 0, 6])
    assignment, centers, sizes = kmeans(points, counts, 5, seed=0, normalize=False)
    assert (sizes > 0).sum(1).tolist() == [2, 0, 5]
    # Two points, two clusters: each is its own center, and the used clusters stand first.
    torch.testing.assert_close(centers[0, assignment[0, :2]], points[0, :2])
    assert (sizes[0] == torch.tensor([1, 1, 0, 0, 0])).all()
    assert (assignment[1] == -1).all() and (centers[1] == 0).all()


def test_number_of_clusters_may_differ_between_groups():
    _, _, sizes = kmeans(
        torch.randn(3, 20, 4), torch.tensor([20, 20, 3]), torch.tensor([2, 7, 5]), 0
    )
    assert (sizes > 0).sum(1).tolist() == [2, 7, 3]
    assert sizes.sum(1).tolist() == [20, 20, 3]


def test_no_cluster_is_empty_even_among_equal_points():
    points = torch.ones(2, 9, 3)
    points[1, 0] = -1
    _, _, sizes = kmeans(points, torch.tensor([9, 9]), 4, seed=0, normalize=False)
    assert (sizes > 0).all()
    assert sizes.sum(1).tolist() == [9, 9]


def test_clusters_do_not_depend_on_the_other_groups():
    points, _ = blobs(groups=3, k=4, per_blob=10, dim=4, noise=1.0)
    counts = torch.tensor([40, 40, 40])
    together = kmeans(points, counts, 4, seed=5)[0]
    others = points.clone()
    others[1:] = torch.randn(2, 40, 4)
    assert torch.equal(together[0], kmeans(others, counts, 4, seed=5)[0][0])
    assert torch.equal(together[0], kmeans(points[:1], counts[:1], 4, seed=5)[0][0])


def test_seed_decides():
    points, _ = blobs(groups=2, k=8, per_blob=15, dim=4, noise=2.0)
    counts = torch.tensor([120, 120])
    first = kmeans(points, counts, 8, seed=0)[0]
    torch.manual_seed(99)
    assert torch.equal(first, kmeans(points, counts, 8, seed=0)[0])
    assert not torch.equal(first, kmeans(points, counts, 8, seed=1)[0])


def test_normalized_clusters_ignore_the_length_of_points():
    points, _ = blobs(groups=1, k=4, per_blob=10, dim=4, noise=0.5)
    counts = torch.tensor([40])
    stretched = points * (1 + 9 * torch.rand(1, 40, 1))
    assert torch.equal(kmeans(points, counts, 4, 0)[0], kmeans(stretched, counts, 4, 0)[0])


def test_group_means_are_means_of_the_raw_members():
    points = torch.randn(2, 6, 3)
    assignment = torch.tensor([[0, 1, 0, 2, 2, 2], [1, 1, -1, -1, -1, -1]])
    points[1, 3] = float("nan")
    means = group_means(points, assignment, 3)
    for group in range(2):
        for cluster in range(3):
            member = [points[group, i].numpy() for i in range(6) if assignment[group, i] == cluster]
            expected = np.mean(member, axis=0) if member else np.zeros(3)
            np.testing.assert_allclose(means[group, cluster], expected, rtol=1e-5, atol=1e-6)
