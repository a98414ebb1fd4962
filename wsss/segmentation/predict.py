"""From photographs to label maps: scales, mirror image, fusion, enlargement, dense CRF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from wsss.data.masks import write_mask
from wsss.maps.functional import resize_maps
from wsss.refine.crf import CrfSettings, crf_from_probabilities, prepare_crf
from wsss.run.pool import process_pool
from wsss.segmentation.settings import EvalSettings

Logits = Callable[[Tensor], Tensor]  # normalized images (B, 3, H, W) -> (B, C, h, w)


def class_probabilities(logits: Logits, image: Tensor, test: EvalSettings) -> Tensor:
    """Class probabilities of one photograph, over all scales and its mirror image.

    Args:
        logits: the network.
        image: (3, H, W) float32, normalized.
        test: scales, mirror, fusion.

    Returns:
        (C, H, W) float32: for each scale, logits enlarged to the photograph's size, then softmax;
        their mean, which sums to 1, or maximum.
    """
    height, width = image.shape[-2:]
    fused: Tensor | None = None
    for scale in test.scales:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        scaled = resize_maps(image[None], size, align_corners=test.align_corners)
        for mirrored in (False, True)[: 1 + test.mirror]:
            answer = logits(scaled.flip(-1) if mirrored else scaled).float()
            answer = resize_maps(answer, (height, width), align_corners=False).softmax(dim=1)[0]
            answer = answer.flip(-1) if mirrored else answer
            if fused is None:
                fused = answer
            elif test.fuse == "max":
                fused = torch.maximum(fused, answer)
            else:
                fused = fused + answer
    assert fused is not None
    count = len(test.scales) * (1 + test.mirror)
    return fused / count if test.fuse == "mean" else fused


def label_map(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """Best class of each pixel after bilinear enlargement, one class at a time.

    Args:
        probabilities: (C, h, w).
        size: (H, W) of the result. Of all classes only the best so far is held at this size: a
            photograph of 50 million pixels needs 0.4 GB and not C times 0.2.

    Returns:
        (H, W) uint8; the lowest class at a tie.
    """
    if tuple(probabilities.shape[-2:]) == tuple(size):
        return probabilities.argmax(dim=0).to(torch.uint8)
    best = resize_maps(probabilities[None, :1], size, align_corners=False)[0, 0]
    labels = torch.zeros(size, dtype=torch.uint8, device=probabilities.device)
    for index in range(1, len(probabilities)):
        value = resize_maps(probabilities[None, index : index + 1], size, align_corners=False)[0, 0]
        labels[value > best] = index
        best = torch.maximum(best, value)
    return labels


def refined_labels(
    picture: np.ndarray, probabilities: np.ndarray, settings: CrfSettings
) -> np.ndarray:
    """Best class of each pixel after a dense CRF on the photograph.

    Args:
        picture: (H, W, 3) uint8 RGB. (deeplab-pytorch gives the CRF a mean-subtracted BGR picture
            whose negative values wrap around; here it sees the photograph.)
        probabilities: (C, h, w) float32; enlarged to the photograph's size where smaller.
        settings: pairwise terms.

    Returns:
        (H, W) uint8.
    """
    height, width = picture.shape[:2]
    full = resize_maps(torch.from_numpy(probabilities)[None], (height, width), align_corners=False)[
        0
    ].numpy()
    return crf_from_probabilities(picture, full, settings).argmax(axis=0).astype(np.uint8)


def _refine_file(
    path: Path, picture: np.ndarray, probabilities: np.ndarray, settings: CrfSettings
) -> None:
    write_mask(path, refined_labels(picture, probabilities, settings))


class CrfQueue:
    """Dense CRFs in processes beside the network: it predicts on while they refine.

    No more than two photographs per process wait, so that memory stays bounded. Results do not
    depend on the number of processes.

    Args:
        settings: pairwise terms.
        workers: number of processes; below 2 the CRF runs in this one.
    """

    def __init__(self, settings: CrfSettings, workers: int) -> None:
        self.settings, self.workers = settings, workers
        self.pending: set[Future[None]] = set()
        self.pool: ProcessPoolExecutor | None = None
        self.stack = ExitStack()

    def __enter__(self) -> CrfQueue:
        prepare_crf(self.settings)
        if self.workers > 1:
            self.pool = self.stack.enter_context(process_pool(self.workers))
        return self

    def __exit__(self, *error: Any) -> bool | None:
        """Wait until all are written; after an error what still waits is dropped."""
        if error[0] is None:
            while self.pending:
                self._collect()
        return self.stack.__exit__(*error)

    def add(self, path: Path, picture: np.ndarray, probabilities: np.ndarray) -> None:
        """Refine one photograph and write its label map; waits while the queue is full.

        Raises:
            WsssError: what an earlier one ended with.
        """
        if self.pool is None:
            _refine_file(path, picture, probabilities, self.settings)
            return
        while len(self.pending) >= 2 * self.workers:
            self._collect()
        self.pending.add(
            self.pool.submit(_refine_file, path, picture, probabilities, self.settings)
        )

    def _collect(self) -> None:
        done, self.pending = wait(self.pending, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()


class Predictor(pl.LightningModule):
    """Runs the network over whole photographs; each one's label map is written at once.

    Args:
        network: has `logits(images)`.
        test: scales, mirror, fusion.
        masks: folder of the label maps, NAME.png.
        crf: refines them into `refined`; None: not.
        refined: folder of the refined label maps.
        after: called with sample and label map before the label map is written.
    """

    def __init__(
        self,
        network: nn.Module,
        test: EvalSettings,
        masks: Path,
        crf: CrfQueue | None = None,
        refined: Path | None = None,
        after: Callable[[Mapping[str, Any], np.ndarray], None] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.test_scales = network, test
        self.masks, self.refined, self.crf, self.after = masks, refined, crf, after

    def predict_step(self, sample: Mapping[str, Any], batch_idx: int) -> None:
        """Label map of one photograph; one that could not be read is passed over."""
        if sample["images"] is None:
            return
        name, (height, width) = sample["name"], sample["size"].tolist()
        logits: Logits = self.network.logits  # type: ignore[assignment]
        probabilities = class_probabilities(logits, sample["images"][0], self.test_scales)
        labels = label_map(probabilities, (height, width)).cpu().numpy()
        if self.after is not None:
            self.after(sample, labels)
        write_mask(self.masks / f"{name}.png", labels)
        if self.crf is not None and self.refined is not None:
            picture = sample["picture"].cpu().numpy()
            self.crf.add(self.refined / f"{name}.png", picture, probabilities.cpu().numpy())
