"""The dense CRF against exact Gaussian sums over all pairs of pixels, and against pydensecrf."""

from __future__ import annotations

import builtins
import math
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from wsss.data.voc import VOC
from wsss.errors import WsssError
from wsss.refine import crf
from wsss.refine.crf import (
    CrfSettings,
    DenseCrf,
    crf_from_labels,
    crf_from_probabilities,
    label_energies,
    prepare_crf,
)
from wsss.settings import resolve

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
    color = image.reshape(-1, 3).astype(float)

    def kernel(*features: np.ndarray) -> np.ndarray:
        distance = sum((f[:, None] - f[None, :]) ** 2 for f in features)
        weight = np.exp(-distance / 2)
        norm = 1 / np.sqrt(weight.sum(1))
        return norm[:, None] * weight * norm[None, :]

    smooth = kernel(rows / s.gaussian_sxy, columns / s.gaussian_sxy)
    look = kernel(rows / s.bilateral_sxy, columns / s.bilateral_sxy, *(color / s.bilateral_srgb).T)
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


NETWORK = CrfSettings(
    gaussian_sxy=1, gaussian_compat=3, bilateral_sxy=67, bilateral_srgb=3, bilateral_compat=4
)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth regions, texture, and areas of one color: what photographs are made of."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, (height, width, 3))
    image = 128 + 900 * gaussian_filter(image, (7, 7, 0)) + rng.normal(0, 4, image.shape)
    image[: height // 4, : width // 3] = 255
    return image.clip(0, 255).astype(np.uint8)


def blobs(count: int, height: int, width: int, seed: int = 1) -> np.ndarray:
    """(L, H, W) smooth scores around 0, of a few units."""
    noise = np.random.default_rng(seed).normal(0, 1, (count, height, width))
    return 40 * gaussian_filter(noise, (0, 8, 8))


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(0))
    return (powers / powers.sum(0)).astype(np.float32)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (found.argmax(0) == expected.argmax(0)).mean() >= 0.9995


@pytest.mark.parametrize("settings", [CrfSettings(), NETWORK, replace(SETTINGS, iterations=3)])
@pytest.mark.parametrize(("labels", "size"), [(2, (75, 100)), (4, (64, 50)), (11, (41, 93))])
def test_marginals_are_those_of_pydensecrf(
    settings: CrfSettings, labels: int, size: tuple[int, int]
) -> None:
    image, probabilities = picture(*size), softmax(blobs(labels, *size))
    found = crf_from_probabilities(image, probabilities, settings)
    theirs = replace(settings, backend="pydensecrf")
    assert_same(found, crf_from_probabilities(image, probabilities, theirs))
    assert np.abs(found - probabilities).max() > 0.5


def test_readings_together_are_those_of_pydensecrf() -> None:
    image = picture(60, 91)
    scores = blobs(4, 60, 91)
    unaries = [
        label_energies(scores.argmax(0), 4, 0.7),
        label_energies((scores + np.array([[[2]], [[0]], [[0]], [[0]]])).argmax(0), 4, 0.7),
        label_energies(scores[:2].argmax(0), 2, 0.9),
    ]
    found = DenseCrf(image).marginals(unaries)
    expected = DenseCrf(image, CrfSettings(backend="pydensecrf")).marginals(unaries)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.realdata
def test_real_photographs(voc2007_mini: Path) -> None:
    data = VOC(voc2007_mini)
    for name in data.names("train")[:40:10]:
        image = np.asarray(Image.open(data.image_path(name)).convert("RGB"))
        scores = blobs(4, *image.shape[:2])
        cautious = label_energies(scores.argmax(0), 4, 0.7)
        scores[0] += 1
        unaries = [cautious, label_energies(scores.argmax(0), 4, 0.7)]
        found = DenseCrf(image).marginals(unaries)
        expected = DenseCrf(image, CrfSettings(backend="pydensecrf")).marginals(unaries)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def many_labels(size: tuple[int, int]) -> np.ndarray:
    """Probabilities of 81 labels, 5 of which are somewhere likely."""
    scores = blobs(81, *size) - 9
    scores[[0, 7, 30, 31, 80]] += 18
    return softmax(scores)


def test_labels_that_no_pixel_takes_are_left_out_and_keep_their_marginals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, probabilities = picture(61, 80), many_labels((61, 80))
    kept = []
    reading = crf._Reading

    class Watched(reading):
        def __init__(self, unary: np.ndarray, weight: float) -> None:
            super().__init__(unary, weight)
            kept.append(self.kept)

    monkeypatch.setattr(crf, "_Reading", Watched)
    for settings in (CrfSettings(), NETWORK):
        found = crf_from_probabilities(image, probabilities, settings)
        theirs = replace(settings, backend="pydensecrf")
        expected = crf_from_probabilities(image, probabilities, theirs)
        assert_same(found, expected)
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
        # Those left out, too, are what they would have been.
        out = np.setdiff1d(np.arange(81), kept[-1])
        np.testing.assert_allclose(found[out], expected[out], atol=2e-5)
    assert all({0, 7, 30, 31, 80} <= set(k) and len(k) < 12 for k in kept)


def test_the_bound_of_labels_left_out_holds_in_every_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = picture(40, 48)
    scores = blobs(30, 40, 48)
    scores[5:] -= np.linspace(3, 12, 25)[:, None, None]  # from likely to out of the question
    unary = -np.log(softmax(scores))
    dense = DenseCrf(image)
    weight = float((dense.filters[0].ones + dense.filters[1].ones).max())
    out = crf._Reading(unary, weight).out
    assert 5 < len(out) < 24
    gap = (unary - unary.min(0)).min((1, 2))[out]
    bound = np.exp(-gap + weight * np.exp(1 - gap))
    crfs = [DenseCrf(image, CrfSettings(iterations=n)) for n in (1, 2, 5, 10)]
    some = [c.marginals([unary])[0] for c in crfs]
    monkeypatch.setattr(crf, "LEFT_OUT", -1)  # nothing is left out any more
    assert not crf._Reading(unary, weight).out
    every = [c.marginals([unary])[0] for c in crfs]
    for one, other in zip(some, every, strict=True):
        assert (other[out].max((1, 2)) <= bound).all()
        np.testing.assert_allclose(one, other, atol=1e-3)
    np.testing.assert_allclose(some[0], every[0], atol=1e-4)


def test_a_label_that_messages_could_lift_is_kept() -> None:
    """Weak everywhere, but the only one that all pixels have in common."""
    image = np.full((24, 24, 3), 90, dtype=np.uint8)
    probabilities = np.full((7, 24, 24), 1e-4, dtype=np.float32)
    rng = np.random.default_rng(0)
    np.put_along_axis(probabilities, rng.integers(0, 6, (1, 24, 24)), 0.6, axis=0)
    probabilities[6] = 0.39
    settings = CrfSettings(bilateral_compat=30)
    found = crf_from_probabilities(image, probabilities, settings)
    assert (found.argmax(0) == 6).all()
    assert_same(
        found, crf_from_probabilities(image, probabilities, replace(settings, backend="pydensecrf"))
    )


def test_threads_and_processes_and_repetition_change_nothing() -> None:
    image = picture(50, 66)
    labels = [blobs(3, 50, 66, seed).argmax(0) for seed in range(6)]
    arguments = [(image, reading, 3) for reading in labels]
    expected = [crf_from_labels(*a) for a in arguments]
    assert not np.array_equal(expected[0], expected[1])
    shared = DenseCrf(image)

    def marginals(reading: np.ndarray) -> np.ndarray:
        return shared.marginals([label_energies(reading, 3, 0.7)])[0]

    alone = [marginals(reading) for reading in labels]
    with ThreadPoolExecutor(4) as threads:
        for found, one in zip(threads.map(marginals, labels), alone, strict=True):
            np.testing.assert_array_equal(found, one)
    with ProcessPoolExecutor(2) as processes:
        for found, one in zip(processes.map(refine, arguments), expected, strict=True):
            np.testing.assert_array_equal(found, one)


def refine(arguments: tuple[np.ndarray, np.ndarray, int]) -> np.ndarray:
    return crf_from_labels(*arguments)


def test_what_is_no_number_is_refused() -> None:
    image = two_halves()
    for value in (np.nan, np.inf):
        unary = np.zeros((2, 20, 24), dtype=np.float32)
        unary[1, 3, 4] = value
        with pytest.raises(WsssError, match="no numbers"):
            DenseCrf(image).marginals([unary])


def test_settings() -> None:
    content = {"gaussian_sxy": 1, "backend": "pydensecrf"}
    assert resolve(CrfSettings, content) == CrfSettings(gaussian_sxy=1, backend="pydensecrf")
    for key, value in {"bilateral_srgb": 0, "bilateral_compat": -1, "iterations": 0}.items():
        with pytest.raises(WsssError, match=f"crf.{key}={value}"):
            resolve(CrfSettings, {key: value}, "crf")
    with pytest.raises(WsssError, match=r"crf\.backend=gpu: must be 'own' or 'pydensecrf'"):
        resolve(CrfSettings, {"backend": "gpu"}, "crf")


def test_a_kernel_without_weight_does_nothing() -> None:
    probabilities = softmax(blobs(3, 30, 40))
    nothing = CrfSettings(gaussian_compat=0, bilateral_compat=0)
    found = crf_from_probabilities(picture(30, 40), probabilities, nothing)
    np.testing.assert_allclose(found, probabilities, atol=2e-5)


def test_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("pydensecrf"):
            raise ImportError("No module named 'pydensecrf'")
        return real_import(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    labels, theirs = np.zeros((20, 24), dtype=int), CrfSettings(backend="pydensecrf")
    with pytest.raises(WsssError, match="pip install pydensecrf2"):
        crf_from_labels(two_halves(), labels, 2, settings=theirs)
    with pytest.raises(WsssError, match="backend=own"):
        prepare_crf(theirs)
    prepare_crf(CrfSettings())  # ours stops for nothing
    assert not crf_from_labels(two_halves(), labels, 2).any()
