"""Seconds by part add up, each counted once."""

from __future__ import annotations

import json

import pytest

from metaloss.machine import clock
from metaloss.machine.clock import Clock, part
from tests.helpers import killed_when, train


@pytest.fixture
def now(monkeypatch):
    """The clock's own time, to be set."""
    time = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: time[0])
    return time


def test_parts_within_parts_are_counted_once(now):
    counted = Clock()
    with counted.running():
        with part("meta"):
            now[0] = 1.0
            with part("base"):
                now[0] = 3.0
            now[0] = 3.5
        now[0] = 10.0
    assert counted.seconds == {"meta": 1.5, "base": 2.0}
    assert counted.by_part(10.0) == {"base": 2.0, "meta": 1.5, "other": 6.5}


def test_what_is_in_a_whole_part_belongs_to_it(now):
    @part("base")
    def step():
        now[0] += 2.0

    counted = Clock()
    with counted.running(), part("initialization", whole=True):
        step()
        now[0] += 1.0
    step()  # no clock is running
    assert counted.seconds == {"initialization": 3.0}


def test_an_error_ends_its_part(now):
    counted = Clock()
    with counted.running():
        with pytest.raises(ValueError, match="lost"), part("data"):
            raise ValueError("lost")
        now[0] = 5.0
    assert counted.seconds == {"data": 0.0}


def test_a_run_says_where_its_seconds_went(tmp_path):
    """Also one that was killed: what came before counts on."""
    with killed_when(lambda state: state.steps == 9):
        train(tmp_path / "run")
    assert train(tmp_path / "run", resume=True) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    spent = result["seconds_by_part"]
    parts = {"initialization", "base", "meta", "data", "evaluation", "figures", "checkpoint"}
    assert {*spent} == {*parts, "other"}
    assert all(spent[name] > 0 for name in parts)
    assert sum(spent.values()) == pytest.approx(result["seconds"], abs=0.02)
