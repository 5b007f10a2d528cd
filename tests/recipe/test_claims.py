"""Claims: one process works on a run, and a dead one's claim is taken over by one and only one other."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from fedmr_merge.recipe.claims import Claims


def age(folder: Path, name: str, seconds: float) -> None:
    path = folder / f"{name}.claim"
    before = path.stat().st_mtime
    os.utime(path, (before - seconds, before - seconds))


def test_a_claim_keeps_others_out_until_it_is_given_back(tmp_path: Path) -> None:
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        assert ours.take("a")
        assert ours.take("a")
        assert not theirs.take("a")
        assert theirs.is_taken("a")
        assert theirs.take("b")
        ours.release("a")
        assert not theirs.is_taken("a")
        assert theirs.take("a")
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_held_is_taken_over(tmp_path: Path) -> None:
    dead, alive = Claims(tmp_path), Claims(tmp_path, expires_after_seconds=60)
    assert dead.take("a")  # its thread never runs, so that nothing renews the claim
    assert not alive.take("a")
    age(tmp_path, "a", 61)
    assert not alive.is_taken("a")
    assert alive.take("a")
    dead.release("a")  # it was only asleep: what is another's now stays
    assert alive.is_taken("a")


def test_of_many_one_takes_a_dead_process_over(tmp_path: Path) -> None:
    assert Claims(tmp_path).take("a")
    age(tmp_path, "a", 100)
    crowd = [Claims(tmp_path, expires_after_seconds=60) for _ in range(16)]
    barrier, winners = threading.Barrier(len(crowd)), []

    def grab(claims: Claims) -> None:
        barrier.wait()
        if claims.take("a"):
            winners.append(claims)

    threads = [threading.Thread(target=grab, args=(claims,)) for claims in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1


def test_a_held_claim_is_renewed(tmp_path: Path) -> None:
    with Claims(tmp_path, touch_every_seconds=0.01) as claims:
        assert claims.take("a")
        age(tmp_path, "a", 100)
        renewed = threading.Event()
        for _ in range(500):
            if Claims(tmp_path, expires_after_seconds=50).is_taken("a"):
                renewed.set()
                break
            renewed.wait(0.01)
        assert renewed.is_set()
