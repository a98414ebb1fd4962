"""K-means of many groups at once: one batched call instead of one call per class."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.run.compute import at_least_float32


def kmeans(
    points: Tensor,
    counts: Tensor,
    k: int | Tensor,
    seed: int,
    iterations: int = 100,
    tolerance: float = 1e-4,
    normalize: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster every group of points by Lloyd's algorithm from a greedy k-means++ start.

    A group's clusters depend on its own points, its index and the seed, not on the groups that
    share the call. No cluster is empty: one that loses its last member takes the point that lies
    farthest from its own center. A group with fewer points than k has one cluster per point.

    Args:
        points: (G, n, d) float; rows from `counts[g]` on are padding and are never read as data.
        counts: (G,) int, number of points of each group, 0..n.
        k: number of clusters, one for all groups or (G,) int.
        seed: seed of the k-means++ draws; group g draws from a stream of its own.
        iterations: at most so many Lloyd steps.
        tolerance: a group is finished when its assignment stands still or when its centers move
            by less than this share of its variance (sum of squares), as in scikit-learn.
        normalize: cluster directions, that is Euclidean distance between L2-normalized points.

    Returns:
        assignment: (G, n) int64, cluster of each point, -1 for padding.
        centers: (G, k, d) means of the (normalized) members; 0 for unused clusters.
        sizes: (G, k) int64, number of members; min(k, count) clusters of a group are in use and
            stand first.
    """
    groups, length, _ = points.shape
    device = points.device
    counts = counts.to(device)
    wanted = torch.as_tensor(k, device=device).expand(groups).clamp(max=counts)
    slots = int(torch.as_tensor(k).max()) if groups else 0
    real = torch.arange(length, device=device) < counts[:, None]
    used = torch.arange(slots, device=device) < wanted[:, None]
    points = at_least_float32(points) * real[..., None]
    if normalize:
        points = F.normalize(points, dim=2)

    assignment = torch.full((groups, length), -1, dtype=torch.long, device=device)
    centers = points.new_zeros(groups, slots, points.shape[2])
    sizes = torch.zeros(groups, slots, dtype=torch.long, device=device)
    active = (counts > 0).nonzero().squeeze(1)
    if slots == 0 or len(active) == 0:
        return assignment, centers, sizes

    draws = _uniform_draws(active.tolist(), slots, seed).to(device)
    data, mask, free = points[active], real[active], used[active]
    center = _greedy_start(data, mask, free, draws)
    # Variance per feature dimension, the scale that scikit-learn measures its tolerance by.
    mean = data.sum(1, keepdim=True) / counts[active, None, None]
    spread = ((data - mean).square().sum(2) * mask).sum(1) / counts[active]
    limit = tolerance * spread / data.shape[2]
    member = torch.full_like(mask, -1, dtype=torch.long)

    for step in range(iterations):
        previous = member
        member = _assign(data, mask, free, center)
        onehot = _onehot(member, slots, data.dtype)
        size = onehot.sum(1)
        moved = center
        center = torch.bmm(onehot.transpose(1, 2), data) / size.clamp(min=1)[..., None]
        still = (member == previous).all(1) | ((center - moved).square().sum((1, 2)) <= limit)
        if step == iterations - 1:
            still = torch.ones_like(still)
        if bool(still.any()):
            done = active[still]
            assignment[done] = member[still]
            centers[done] = center[still]
            sizes[done] = size[still].long()
            if bool(still.all()):
                break
            # Finished groups leave the batch: late steps cost only what is still in motion.
            go = ~still
            active, data, mask, free = active[go], data[go], mask[go], free[go]
            center, member, limit = center[go], member[go], limit[go]
    return assignment, centers, sizes


def group_means(points: Tensor, assignment: Tensor, slots: int) -> Tensor:
    """Mean of the members of each cluster (CPAL eq. 5).

    Args:
        points: (G, n, d).
        assignment: (G, n) int64, -1 for points of no cluster.
        slots: number of clusters k.

    Returns:
        (G, k, d); 0 for clusters without members.
    """
    onehot = _onehot(assignment, slots, points.dtype)
    # Padding is cleared, not only weighted by 0: 0 x NaN would spoil the means.
    points = points.masked_fill((assignment < 0)[..., None], 0)
    return torch.bmm(onehot.transpose(1, 2), points) / onehot.sum(1).clamp(min=1)[..., None]


def _onehot(assignment: Tensor, slots: int, dtype: torch.dtype) -> Tensor:
    """(G, n) cluster ids to (G, n, k); a matrix product with it sums in a fixed order on any
    device, where a scatter on a GPU would not."""
    return (assignment[..., None] == torch.arange(slots, device=assignment.device)).to(dtype)


def _uniform_draws(groups: list[int], slots: int, seed: int) -> Tensor:
    """(G, slots, trials) uniform numbers, each group's from its own generator on the CPU."""
    trials = 2 + int(math.log(slots))
    draws = torch.empty(len(groups), slots, trials, dtype=torch.float32)
    for row, group in enumerate(groups):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + group) % 2**63)
        draws[row] = torch.rand(slots, trials, generator=generator, dtype=torch.float32)
    return draws


def _greedy_start(data: Tensor, mask: Tensor, free: Tensor, draws: Tensor) -> Tensor:
    """Greedy k-means++: of several D²-weighted draws, keep the one that lowers the inertia most."""
    groups, _, dim = data.shape
    slots, trials = draws.shape[1:]
    rows = torch.arange(groups, device=data.device)
    norms = data.square().sum(2)
    centers = data.new_zeros(groups, slots, dim)
    # All points are equally likely to be the first center.
    nearest = mask.to(data.dtype)
    for slot in range(int(free.sum(1).max())):
        tried = 1 if slot == 0 else trials
        cumulated = nearest.cumsum(1)
        target = draws[:, slot, :tried] * cumulated[:, -1:]
        chosen = torch.searchsorted(cumulated, target, right=True)
        # A group of equal points has no distance left to draw by: any point will do.
        chosen = torch.minimum(chosen, mask.sum(1, keepdim=True) - 1)
        candidates = data[rows[:, None], chosen]
        distance = torch.baddbmm(norms[:, None], candidates, data.transpose(1, 2), alpha=-2)
        distance = (distance + norms.gather(1, chosen)[..., None]).clamp(min=0) * mask[:, None]
        if slot:
            distance = torch.minimum(distance, nearest[:, None])
        best = distance.sum(2).argmin(1)
        nearest = distance[rows, best]
        centers[:, slot] = candidates[rows, best]
    return centers * free[..., None]


def _assign(data: Tensor, mask: Tensor, free: Tensor, centers: Tensor) -> Tensor:
    """Nearest used center of every point; every used center keeps at least one point."""
    # ||x - c||² without its constant ||x||²; unused clusters are infinitely far away.
    norms = centers.square().sum(2).masked_fill(~free, math.inf)
    score = torch.baddbmm(norms[:, None], data, centers.transpose(1, 2), alpha=-2)
    lowest, member = score.min(2)
    member = member.masked_fill(~mask, -1)
    sizes = _onehot(member, centers.shape[1], data.dtype).sum(1)
    lacking = ((sizes == 0) & free).any(1)
    if bool(lacking.any()):
        for group in lacking.nonzero().squeeze(1).tolist():
            distance = lowest[group] + data[group].square().sum(1)
            _fill_empty(member[group], distance.masked_fill(~mask[group], -1), free[group])
    return member


def _fill_empty(member: Tensor, distance: Tensor, free: Tensor) -> None:
    """Give each empty cluster of one group the farthest point that its cluster can spare."""
    size = torch.bincount(member[member >= 0], minlength=len(free))
    empty = (free & (size == 0)).nonzero().squeeze(1).tolist()
    order = iter(distance.argsort(descending=True, stable=True).tolist())
    for cluster in empty:
        point = next(i for i in order if size[member[i]] > 1)
        size[member[point]] -= 1
        size[cluster] += 1
        member[point] = cluster
