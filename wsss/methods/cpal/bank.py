"""The support bank: per class the latest anchors, first in first out, and their clusters.

Everything is a buffer, so that a checkpoint alone holds what maps are made with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import WsssError
from wsss.methods.cpal.kmeans import group_means, kmeans
from wsss.methods.cpal.settings import BankSettings


class PrototypeBank(nn.Module):
    """Support bank and context prototypes of every class (CPAL section 3.2).

    Attributes:
        entries: (N, size, d), ring buffer of raw anchors; zeros where still empty.
        count: (N,) int64, entries held.
        cursor: (N,) int64, where the next entry of the class goes; the oldest one once full.
        context: (N, k, d), context prototypes p^c (eq. 5); zeros where unused.
        cluster_count: (N,) int64, context prototypes in use; they stand first.
        cluster_sizes: (N, k) int64, members of each cluster when it was made.
        clustered_epoch: int64 scalar, epoch whose start made the clusters, -1 for none.
    """

    entries: Tensor
    count: Tensor
    cursor: Tensor
    context: Tensor
    cluster_count: Tensor
    cluster_sizes: Tensor
    clustered_epoch: Tensor

    def __init__(self, num_classes: int, dim: int, options: BankSettings | None = None) -> None:
        """Make an empty bank.

        Args:
            num_classes: number of classes N.
            dim: length d of an anchor.
            options: size and clusters.
        """
        super().__init__()
        options = options or BankSettings()
        size, self.clusters = options.size, options.clusters
        slots = options.max_clusters if options.clusters == "auto" else options.clusters
        self.size, self.entries_per_cluster = size, options.entries_per_cluster
        self.register_buffer("entries", torch.zeros(num_classes, size, dim))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("cursor", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("context", torch.zeros(num_classes, slots, dim))
        self.register_buffer("cluster_count", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("cluster_sizes", torch.zeros(num_classes, slots, dtype=torch.long))
        self.register_buffer("clustered_epoch", torch.tensor(-1))

    @property
    def num_classes(self) -> int:
        """Number of classes N."""
        return len(self.count)

    @torch.no_grad()
    def push(self, anchors: Tensor, classes: Tensor) -> None:
        """Append anchors in their order; a full class drops its oldest entries.

        Args:
            anchors: (P, d) float; stored detached, in the precision of the bank.
            classes: (P,) int64, index 0..N-1 of each anchor's class.

        Raises:
            WsssError: an anchor is not finite.
        """
        if not bool(torch.isfinite(anchors).all()):
            raise WsssError(
                "bank: an anchor is no number, the training has diverged: lower optimizer.lr and "
                "optimizer.head_lr, or clip more (training.gradient_clip_val)"
            )
        onehot = F.one_hot(classes, self.num_classes)
        total = onehot.sum(0)
        # Place of each anchor among those of its class in this push.
        rank = (onehot.cumsum(0) - 1).gather(1, classes[:, None]).squeeze(1)
        # Of more than `size` anchors at once only the last ones stay; each slot is written once.
        kept = rank >= total[classes] - self.size
        classes, rank, anchors = classes[kept], rank[kept], anchors[kept]
        slot = (self.cursor[classes] + rank) % self.size
        self.entries[classes, slot] = anchors.to(self.entries.dtype)
        self.count.copy_((self.count + total).clamp(max=self.size))
        self.cursor.copy_((self.cursor + total) % self.size)

    def ordered(self, index: int) -> Tensor:
        """Entries of one class, oldest first, (count, d)."""
        count = int(self.count[index])
        start = int(self.cursor[index]) if count == self.size else 0
        return self.entries[index, :count].roll(-start, dims=0)

    def mean(self) -> Tensor:
        """Mean entry of each class, (N, d); 0 for an empty class."""
        return self.entries.sum(1) / self.count.clamp(min=1)[:, None]

    @torch.no_grad()
    def recluster(self, seed: int) -> None:
        """Group every class's entries and take the groups' means as context prototypes (eq. 5).

        The metric is Euclidean on L2-normalized entries; the means are those of the raw entries.

        Args:
            seed: seed of the k-means++ start.
        """
        length = int(self.count.max())
        entries = self.entries[:, :length]
        slots = self.context.shape[1]
        k = self.count.new_full((self.num_classes,), slots)
        if self.clusters == "auto":
            k = (self.count / self.entries_per_cluster).round().long().clamp(1, slots)
        assignment, _, sizes = kmeans(entries, self.count, k, seed)
        self.context.copy_(group_means(entries, assignment, slots))
        self.cluster_sizes.zero_()
        self.cluster_sizes[:, : sizes.shape[1]] = sizes
        self.cluster_count.copy_((sizes > 0).sum(1))

    @torch.no_grad()
    def clear(self) -> None:
        """Forget all entries; the context prototypes stay until the next `recluster`."""
        self.entries.zero_()
        self.count.zero_()
        self.cursor.zero_()

    def available(self) -> Tensor:
        """Which context prototypes are in use, (N, k) bool."""
        slots = torch.arange(self.context.shape[1], device=self.context.device)
        return slots < self.cluster_count[:, None]

    def statistics(self) -> dict[str, float]:
        """Fill of the bank and sizes of its clusters, for the log.

        Returns:
            `fill_mean`, `fill_min`: entries per class; `cluster_size_mean`, `cluster_size_max`:
            members per cluster in use (0 while there is none).
        """
        sizes = self.cluster_sizes[self.cluster_sizes > 0].float()
        return {
            "fill_mean": float(self.count.float().mean()),
            "fill_min": float(self.count.min()),
            "cluster_size_mean": float(sizes.mean()) if len(sizes) else 0.0,
            "cluster_size_max": float(sizes.max()) if len(sizes) else 0.0,
        }
