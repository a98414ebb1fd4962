"""The dense CRF against mean field with exact Gaussian sums over all pairs of pixels."""

from __future__ import annotations

import builtins
import math

import numpy as np
import pytest

from wsss.errors import WsssError
from wsss.refine.crf import CrfSettings, crf_from_labels, crf_from_probabilities

SETTINGS = CrfSettings(
    gaussian_sxy=2, gaussian_compat=2, bilateral_sxy=8, bilateral_srgb=20, bilateral_compat=4
)


def two_halves(height: int = 20, width: int = 24, noise: float = 4.0) -> np.ndarray:
    """A picture with a dark left and a bright right half."""
    image = np.full((height, width, 3), 60.0)
    image[:, width // 2 :] = 180
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def exact_mean_field(image: np.ndarray, unary: np.ndarray, s: CrfSettings) -> np.ndarray:
    """Mean field with full (n, n) kernels, symmetrically normalized, Potts compatibility."""
    count, height, width = unary.shape
    rows, columns = np.mgrid[:height, :width].reshape(2, -1)
    colour = image.reshape(-1, 3).astype(float)

    def kernel(*features: np.ndarray) -> np.ndarray:
        distance = sum((f[:, None] - f[None, :]) ** 2 for f in features)
        weight = np.exp(-distance / 2)
        norm = 1 / np.sqrt(weight.sum(1))
        return norm[:, None] * weight * norm[None, :]

    smooth = kernel(rows / s.gaussian_sxy, columns / s.gaussian_sxy)
    look = kernel(rows / s.bilateral_sxy, columns / s.bilateral_sxy, *(colour / s.bilateral_srgb).T)
    energy = unary.reshape(count, -1)
    q = np.exp(-energy)
    q /= q.sum(0)
    for _ in range(s.iterations):
        message = s.gaussian_compat * q @ smooth + s.bilateral_compat * q @ look
        q = np.exp(message - energy - (message - energy).max(0))
        q /= q.sum(0)
    return q.reshape(unary.shape)


def test_marginals_agree_with_exact_sums() -> None:
    """The filter of the library is an approximation: close, not equal."""
    image = two_halves()
    score = np.random.default_rng(1).random((3, 20, 24)) + 0.2
    score[1, :, 12:] += 0.25
    score[2, :, :12] += 0.25
    probabilities = score / score.sum(0)
    found = crf_from_probabilities(image, probabilities, SETTINGS)
    expected = exact_mean_field(image, -np.log(probabilities), SETTINGS)
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.97
    assert np.abs(found - expected).mean() < 0.03
    # The input itself is far from the answer, so agreement means something.
    assert (probabilities.argmax(0) == expected.argmax(0)).mean() < 0.8


def test_labels_agree_with_exact_sums() -> None:
    image = two_halves()
    rng = np.random.default_rng(2)
    labels = np.where(np.arange(24)[None, :] < 12, 0, 2) * np.ones((20, 1), dtype=int)
    wrong = rng.random(labels.shape) < 0.25
    labels = np.where(wrong, rng.integers(0, 3, labels.shape), labels)
    unary = np.where(
        labels[None] == np.arange(3)[:, None, None], -math.log(0.7), -math.log(0.3 / 2)
    )
    found = crf_from_labels(image, labels, 3, 0.7, SETTINGS)
    expected = exact_mean_field(image, unary, SETTINGS).argmax(0)
    assert (found == expected).mean() > 0.99
    assert (found == labels).mean() < 0.95


def test_a_region_snaps_to_the_border_of_the_object() -> None:
    image = two_halves(40, 60)
    labels = np.zeros((40, 60), dtype=int)
    labels[:, 34:] = 1  # four columns short
    refined = crf_from_labels(image, labels, 2)
    assert (refined[:, :29] == 0).all() and (refined[:, 31:] == 1).all()


def test_gray_pictures() -> None:
    gray = two_halves()[:, :, 0]
    labels = (np.random.default_rng(3).random(gray.shape) < 0.5).astype(np.uint8)
    expected = crf_from_labels(np.stack([gray] * 3, axis=2), labels, 2)
    assert np.array_equal(crf_from_labels(gray, labels, 2), expected)


def test_views_and_types_of_arrays_make_no_difference() -> None:
    image, rng = two_halves(), np.random.default_rng(4)
    labels = rng.integers(0, 3, (20, 24)).astype(np.uint8)
    expected = crf_from_labels(image, labels, 3)
    turned = np.ascontiguousarray(image.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert not turned.flags.c_contiguous
    assert np.array_equal(crf_from_labels(turned, np.asfortranarray(labels), 3), expected)
    assert np.array_equal(crf_from_labels(image, labels.astype(np.int64), 3), expected)
    scores = rng.dirichlet(np.ones(3), (20, 24))
    views = scores.transpose(2, 0, 1)
    assert not views.flags.c_contiguous
    expected = crf_from_probabilities(image, np.ascontiguousarray(views, dtype=np.float32))
    assert np.allclose(crf_from_probabilities(image, views), expected, atol=1e-6)


def test_inputs_are_left_alone() -> None:
    image, labels = two_halves(), np.zeros((20, 24), dtype=int)
    before = image.copy(), labels.copy()
    crf_from_labels(image, labels, 2)
    assert np.array_equal(image, before[0]) and np.array_equal(labels, before[1])


def test_marginals_sum_to_one_and_survive_zeros() -> None:
    probabilities = np.zeros((3, 20, 24), dtype=np.float32)
    probabilities[0] = 1
    found = crf_from_probabilities(two_halves(), probabilities)
    assert found.dtype == np.float32
    assert np.allclose(found.sum(0), 1, atol=1e-5)
    assert (found.argmax(0) == 0).all()


def test_one_label_needs_no_crf() -> None:
    image = two_halves()
    assert not crf_from_labels(image, np.zeros((20, 24), dtype=int), 1).any()
    assert (crf_from_probabilities(image, np.full((1, 20, 24), 0.3)) == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), dtype=np.uint8)
    labels = np.ones(size, dtype=int)
    assert (crf_from_labels(image, labels, 2) == 1).all()


def test_bad_input_is_refused() -> None:
    image, labels = two_halves(), np.zeros((20, 24), dtype=int)
    with pytest.raises(WsssError, match=r"0\.\.1"):
        crf_from_labels(image, labels + 255, 2)
    with pytest.raises(WsssError, match="gt_prob"):
        crf_from_labels(image, labels, 2, gt_prob=1.0)
    with pytest.raises(WsssError, match="maps' size"):
        crf_from_labels(image[:10], labels, 2)
    with pytest.raises(WsssError, match="uint8"):
        crf_from_labels(image.astype(np.float32), labels, 2)
    with pytest.raises(WsssError, match="no numbers"):
        crf_from_probabilities(image, np.full((2, 20, 24), np.nan))


def test_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("pydensecrf"):
            raise ImportError("No module named 'pydensecrf'")
        return real_import(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(WsssError, match="pip install pydensecrf2"):
        crf_from_labels(two_halves(), np.zeros((20, 24), dtype=int), 2)
