"""Claims: one process works on a run, and a dead one's claim is taken over by one and only one other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

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
        assert theirs.is_alive("a")
        assert theirs.take("b")
        ours.release("a")
        assert not theirs.is_alive("a")
        assert theirs.take("a")
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_held_is_taken_over(tmp_path: Path) -> None:
    dead, alive = Claims(tmp_path), Claims(tmp_path, expires_after_seconds=60)
    assert dead.take("a")  # its thread never runs, so that nothing renews the claim
    assert not alive.take("a")
    age(tmp_path, "a", 61)
    assert not alive.is_alive("a")
    assert alive.take("a")
    dead.release("a")  # it was only asleep: what is another's now stays
    assert alive.is_alive("a")


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A claim on `a` whose process was killed a moment ago."""
    program = (
        "import pathlib, sys; from fedmr_merge.recipe.claims import Claims; "
        "claims = Claims(pathlib.Path(sys.argv[1])); print(claims.take('a'), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert Claims(tmp_path).is_alive("a")
        assert not Claims(tmp_path).take("a")
        process.kill()
    return tmp_path / "a.claim"


def test_what_a_killed_process_of_this_machine_held_is_free_at_once(killed: Path) -> None:
    claims = Claims(killed.parent)
    assert not claims.is_alive("a")
    assert claims.take("a")
    assert Claims(killed.parent).is_alive("a")
    claims.release("a")
    assert not killed.exists()


@pytest.mark.parametrize("claim", [b"its owner\nanother machine", b"its owner", b"", b"\xff\n\xfe"])
def test_what_another_machine_held_is_taken_over_when_it_has_expired(killed: Path, claim: bytes) -> None:
    killed.write_bytes(claim)
    assert not Claims(killed.parent).take("a")
    age(killed.parent, "a", 200)
    assert Claims(killed.parent).take("a")


def test_another_machine_is_at_work_when_it_renews_its_claim(killed: Path) -> None:
    killed.write_text("its owner\nanother machine")
    claims = Claims(killed.parent)
    assert not claims.is_alive("a")
    assert not claims.is_alive("a")
    age(killed.parent, "a", -20)
    assert claims.is_alive("a")


@pytest.mark.parametrize("expired", [False, True])
def test_of_many_one_takes_a_dead_process_over(killed: Path, expired: bool) -> None:
    tmp_path = killed.parent
    if expired:
        killed.write_text("of another machine")
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
            if Claims(tmp_path, expires_after_seconds=50).is_alive("a"):
                renewed.set()
                break
            renewed.wait(0.01)
        assert renewed.is_set()
