"""A scorer that is stopped (SIGSTOP) at a bad moment, another one that runs meanwhile, and the first one woken again.

The second one takes over where nothing is held, or says that it had no patience with who holds a folder. Woken up, the
first one changes no byte of what is there and doubles nothing; the next run gives the undisturbed bytes. A scorer
without locks must be caught. This file is also the program that does it, see fork_samples.py.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from fork_samples import Results, Rounds, forked, jobs, ran, wait
from test_kill_score import unlocked

# when it stops, and whether it holds a folder then
PLACES = {
    "before the lock": False,
    "before the scores": True,
    "before the report": True,
    "before the record": True,
    "after the record": True,
    "before the alert": True,
    "before the mark": True,
}
QUICK = ("before the lock", "before the record")
BATCHES = 4  # of the inbox that can be scored: three days and the lines
TWIN = "unlocked before the mark"


def stop_once(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """Stop this process where ``owner.name`` is called the first time with arguments of which ``when`` holds."""
    real = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            setattr(owner, name, real)
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(*args, **kwargs)

    setattr(owner, name, call)


def stopping(place: str) -> None:
    """In a child: see to it that it stops at ``place``."""
    from vae_anomaly import scoring
    from vae_anomaly.store import commits, files

    published = {"scores": "scores", "report": "reports", "record": "commits"}
    what = place.removeprefix("before the ")
    if place == "before the lock":
        stop_once(commits.Ledger, "commit")
    elif what in published:
        stop_once(files.Store, "publish", lambda store, content, final: final.parent.name == published[what])
    elif place == "after the record":
        stop_once(commits.Ledger, "forget")
    elif place == "before the alert":
        stop_once(scoring, "deliver")
    else:
        stop_once(commits.Ledger, "mark_delivered")


def impatient() -> None:
    """A scorer that waits for a folder a moment only."""
    from vae_anomaly.store import files

    real = files._wait
    files._wait = lambda handle, folder, patience: real(handle, folder, 0.2)


def job(place: str, rounds: Rounds) -> dict[str, Any]:
    _, reference, keys = rounds.undisturbed()
    if place == TWIN:
        unlocked()
    rounds.fresh()

    def zombie() -> int:
        stopping(place.removeprefix("unlocked "))
        return rounds.score()

    def second() -> int:
        impatient()
        return rounds.score()

    first = forked(zombie)
    _, status = os.waitpid(first, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it never came to {place!r}"
    code = wait(forked(second))
    between = rounds.results()
    wrong = rounds.faults(reference, keys, complete=False)
    os.kill(first, signal.SIGCONT)
    codes = [wait(first), code]
    after = rounds.results()
    wrong += [f"{name} was changed" for name in between if after.get(name) != between[name]]
    codes.append(wait(forked(rounds.score)))
    wrong += rounds.faults(reference, keys, complete=True)
    wrong += ["an alert was told twice"] if rounds.keys() != keys else []
    return {"codes": codes, "bad": wrong, "meanwhile": sum(name.startswith("commits") for name in between)}


def assert_harmless(results: Results, place: str) -> None:
    result = results(place)
    assert result["bad"] == [], result["stderr"]
    first, second, last = result["codes"]
    assert (first, last) == (0, 0)
    assert (second != 0) == PLACES[place]
    assert not PLACES[place] or "must be free within" in result["stderr"]
    assert result["meanwhile"] == BATCHES or PLACES[place]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return ran(__file__, tmp_path_factory.mktemp("zombies"), *QUICK, TWIN)


@pytest.mark.parametrize("place", QUICK)
def test_a_stopped_scorer_does_no_harm_when_it_wakes(results: Results, place: str) -> None:
    assert_harmless(results, place)


def test_scorers_without_locks_are_caught(results: Results) -> None:
    assert "an alert was told twice" in results(TWIN)["bad"]


@pytest.mark.faults
def test_wherever_it_is_stopped(tmp_path: Path) -> None:
    found = ran(__file__, tmp_path, *PLACES)
    for place in PLACES:
        assert_harmless(found, place)


if __name__ == "__main__":
    jobs(Path(sys.argv[1]), job, sys.argv[2:])
