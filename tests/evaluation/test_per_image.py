"""The file of per-image confusion: what is read is what was counted, and no damage passes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from wsss.errors import WsssError
from wsss.evaluation.per_image import (
    Collector,
    Confusions,
    read_confusions,
    sparse,
    write_confusions,
)

CLASSES = ("zebra", "ant")
NAMES = ("b", "a/ü", "c")


def some(seed: int = 0) -> tuple[Confusions, np.ndarray]:
    """Random matrices of three images, sparse and dense."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(0, 9, (3, 3, 3)) * (rng.random((3, 3, 3)) < 0.5)
    collector = Collector(CLASSES)
    for name, matrix in zip(NAMES, dense, strict=True):
        cells = np.repeat(np.arange(9), matrix.ravel())
        collector.add(name, sparse(rng.permutation(cells)))
    return collector.confusions(), dense


def dense_of(one: Confusions) -> np.ndarray:
    found = np.zeros((len(one.names), 3, 3), dtype=int)
    for image, cell, count in one.triplets.T.tolist():
        assert count > 0
        found[image, cell // 3, cell % 3] += count
    return found


def test_what_was_counted_is_what_is_read(tmp_path: Path) -> None:
    rows = {"cam": some(0), "pacam": some(1)}
    path = tmp_path / "confusions.npz"
    write_confusions(path, {row: one for row, (one, _) in rows.items()})
    found = read_confusions(path)
    assert list(found) == ["cam", "pacam"]
    for row, (_, dense) in rows.items():
        assert found[row].names == NAMES and found[row].classes == CLASSES
        np.testing.assert_array_equal(dense_of(found[row]), dense)
        np.testing.assert_array_equal(found[row].total(), dense.sum(0))
    assert [path.name] == [p.name for p in tmp_path.iterdir()]


def test_images_can_be_put_in_another_order() -> None:
    one, dense = some()
    other = one.in_order(("c", "b", "a/ü"))
    np.testing.assert_array_equal(dense_of(other), dense[[2, 0, 1]])
    assert np.all(np.diff(other.triplets[0]) >= 0)
    with pytest.raises(ValueError, match="other images"):
        one.in_order(("c", "b", "d"))


def test_rows_of_other_images_are_not_written_together(tmp_path: Path) -> None:
    one, _ = some()
    other = one.in_order(("c", "b", "a/ü"))
    for rows in ({}, {"x": one, "y": other}):
        with pytest.raises(ValueError, match="same images"):
            write_confusions(tmp_path / "x.npz", rows)


def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path: Path) -> None:
    one, dense = some()
    path = tmp_path / "confusions.npz"
    write_confusions(path, {"cam": one})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:n] for n in (0, 1, 30, len(whole) // 2, len(whole) - 1)]
    for _ in range(200):
        start = int(rng.integers(len(whole)))
        noise = rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8).tobytes()
        damaged.append((whole[:start] + noise + whole[start + len(noise) :])[: len(whole)])
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found = read_confusions(path)["cam"]
        except WsssError as error:
            refused += 1
            assert "confusions.npz" in str(error) and "overwrite=true" in str(error)
            assert "\n" not in str(error)
        else:  # only what stands beside the content, such as a date, was hit
            np.testing.assert_array_equal(dense_of(found), dense)
    assert refused > 150
    path.unlink()
    with pytest.raises(WsssError, match="no scores by image"):
        read_confusions(path)


def about(**changes: object) -> bytes:
    return json.dumps({"rows": ["cam"], "classes": CLASSES, "names": NAMES, **changes}).encode()


@pytest.mark.parametrize(
    ("text", "triplets", "message"),
    [
        (about(), np.array([[3], [0], [1]], np.int32), "image outside 0..2"),
        (about(), np.array([[0], [9], [1]], np.int32), "cell outside 0..8"),
        (about(), np.array([[0], [0], [-1]], np.int32), "count outside"),
        (about(), np.array([[1, 0], [0, 0], [1, 1]], np.int32), "do not ascend"),
        (about(), np.zeros((3, 1)), "no table of triplets"),
        (about(), np.array([None, 1], object), "damaged"),
        (about(names=["a", "a", "b"]), np.zeros((3, 0), np.int32), "twice"),
        (about(names=[1, 2, 3]), np.zeros((3, 0), np.int32), "no text"),
        (b"[1, 2]", np.zeros((3, 0), np.int32), "damaged"),
        (b"\xff", np.zeros((3, 0), np.int32), "damaged"),
    ],
)
def test_content_that_no_stage_writes_is_refused(tmp_path, text, triplets, message) -> None:
    path = tmp_path / "confusions.npz"
    np.savez(path, about=np.frombuffer(text, np.uint8), row0=triplets)
    with pytest.raises(WsssError, match=message):
        read_confusions(path)


def test_a_file_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "confusions.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("row0.npy", bytes(2**21))
    monkeypatch.setattr("wsss.evaluation.per_image.LARGEST", 2**20)
    with pytest.raises(WsssError, match="more than 1 MiB"):
        read_confusions(path)


def test_a_thousand_images_take_a_few_kilobytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    collector = Collector(tuple(map(str, range(80))))
    for number in range(1000):
        cells = rng.choice(81, 2)[rng.integers(0, 2, 500)] * 82
        collector.add(f"COCO_train2014_{number:012d}", sparse(cells))
    path = tmp_path / "confusions.npz"
    write_confusions(path, {"cam": collector.confusions()})
    assert path.stat().st_size < 25_000  # dense: 26 million
