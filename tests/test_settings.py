"""Typed settings: what is accepted, and the one line for what is not."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Literal

import pytest

from wsss.errors import WsssError
from wsss.settings import Count, Positive, Share, resolve, settings


@settings
class Inner:
    """Nested settings."""

    size: Count = 3
    kind: Literal["a", "b"] | None = "a"


@settings
class Outer:
    """Settings of every sort of field."""

    name: str
    rate: Positive = 0.1
    share: Share | None = None
    steps: Count | Literal["all"] = "all"
    scales: tuple[Positive, ...] = (1.0,)
    pair: tuple[Count, Count] = (1, 2)
    inner: Inner = Inner()
    maybe: Inner | None = None

    def __post_init__(self) -> None:
        if self.pair[0] > self.pair[1]:
            raise WsssError(f"key.pair={self.pair}: the first must be the smaller")


def test_content_becomes_typed_and_frozen_settings_with_defaults() -> None:
    content = {
        "name": "x",
        "rate": 2,
        "steps": 5,
        "scales": [1, 0.5],
        "pair": [3, 4],
        "inner": {"size": 7},
        "maybe": {"kind": None},
    }
    found = resolve(Outer, content)
    assert found == Outer(
        name="x",
        rate=2.0,
        steps=5,
        scales=(1.0, 0.5),
        pair=(3, 4),
        inner=Inner(size=7),
        maybe=Inner(kind=None),
    )
    assert isinstance(found.scales, tuple) and isinstance(found.inner, Inner)
    assert found.share is None and resolve(Outer, {"name": "x"}).steps == "all"
    with pytest.raises(FrozenInstanceError):
        found.rate = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rate": "abc"}, "key.rate=abc: must be a valid number"),
        ({"rate": 0}, "key.rate=0: must be greater than 0"),
        ({"rate": float("nan")}, "key.rate=nan: must be a finite number"),
        ({"rate": float("inf")}, "key.rate=inf: must be a finite number"),
        ({"rate": None}, "key.rate=null: must be a valid number"),
        ({"share": 1.5}, "key.share=1.5: must be less than or equal to 1"),
        ({"steps": 0}, "key.steps=0: must be greater than or equal to 1 or must be 'all'"),
        ({"steps": "some"}, "key.steps=some: must be a valid integer or must be 'all'"),
        ({"scales": 1.0}, "key.scales=1.0: must be a valid tuple"),
        ({"scales": [1, -1]}, "key.scales.1=-1: must be greater than 0"),
        ({"pair": [1]}, "key.pair.1: is not given"),
        ({"pair": [2, 1]}, "key.pair=(2, 1): the first must be the smaller"),
        ({"name": 3}, "key.name=3: must be a valid string"),
        ({"inner": 3}, "key.inner=3: must be a dictionary or an instance of Inner"),
        ({"inner": {"size": 1.5}}, "key.inner.size=1.5: must be a valid integer"),
        ({"inner": {"kind": "c"}}, "key.inner.kind=c: must be 'a' or 'b'"),
        ({"maybe": {"size": 0}}, "key.maybe.size=0: must be greater than or equal to 1"),
        ({"inner": {"sise": 1}}, "key.inner.sise: unknown key; is 'size' meant?"),
        ({"inner": {"zzz": 1}}, "key.inner.zzz: unknown key; there are size, kind"),
        ({"maybe": {"zzz": 1}}, "key.maybe.zzz: unknown key; there are size, kind"),
        ({"rat": 1}, "key.rat: unknown key; is 'rate' meant?"),
        ({"name": None, "nam": "x"}, "key.nam: unknown key; is 'name' meant?"),
        ({"name": "x" * 99, "rate": ["y" * 99]}, "key.rate=['" + "y" * 55 + "...: must be a"),
    ],
)
def test_the_first_fault_is_one_line_with_key_value_and_wish(
    given: dict[str, object], told: str
) -> None:
    with pytest.raises(WsssError) as caught:
        resolve(Outer, {"name": "x", **given}, "key")
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_what_is_missing_is_named_and_without_a_key_names_stand_alone() -> None:
    with pytest.raises(WsssError, match="^key.name: is not given$"):
        resolve(Outer, {}, "key")
    with pytest.raises(WsssError, match="^inner.size=0: "):
        resolve(Outer, {"name": "x", "inner": {"size": 0}})
