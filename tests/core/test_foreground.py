"""Who waits for an answer, for work in the background to give way."""

from __future__ import annotations

from ryorin.foreground import Foreground


def test_each_waits_until_it_leaves_and_leaving_twice_counts_once() -> None:
    foreground = Foreground()
    first, second = foreground.enter(), foreground.enter()
    first()
    first()
    assert foreground.waiting == 1
    third = foreground.enter()
    second()
    second()
    assert foreground.waiting == 1
    third()
    assert foreground.waiting == 0
