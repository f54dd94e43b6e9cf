"""The heat map, small: where cross-entropy trains, AdaLFL does, or says that it does not."""

from __future__ import annotations

import json

import pytest

from benchmarks import heat_map
from tests.helpers import thinned

STEPS = 200
SHORT = {"steps": 10, "fit_steps": 200}
#: At the largest rate with momentum an image more or less decides a short training: this cell is
#: trained as the benchmark does, in which AdaLFL has fewer errors than cross-entropy.
AT_THE_EDGE = ("mlp", ("sgd", 0.3, 0.9))


def by_default(model, cell):
    """With momentum, and by signs: each asks for another initialisation."""
    return model == "mlp" and cell in (("sgd", 0.1, 0.9), ("adamw", 1e-2, 0.0))


@pytest.mark.parametrize(
    ("model", "cell"),
    thinned([(m, c) for m in heat_map.MODELS for c in heat_map.CELLS], keep=by_default),
)
def test_a_cell_of_the_heat_map(model, cell):
    """By a short initialisation and a short training, all else by its defaults."""
    steps, short = (heat_map.STEPS, {}) if (model, cell) == AT_THE_EDGE else (STEPS, SHORT)
    baseline = heat_map.train(model, cell, 0, "baseline", steps)
    row = heat_map.train(model, cell, 0, "adalfl", steps, short)
    assert heat_map.verdict(baseline, row) in ("holds", "untrained", "said")
    if by_default(model, cell):
        assert heat_map.verdict(baseline, row) == "holds"
        assert not heat_map.alarmed(row)


def row(method, test, status="healthy"):
    health = {step: {"status": status} for step in ("0", "50")}
    health["1000"] = {"status": "healthy"}
    return {
        "model": "mlp", "cell": "sgd 0.1 0.9", "seed": 0, "method": method, "steps": 1000,
        "test": test, "health": health,
    }  # fmt: skip


def test_verdicts():
    def verdict(baseline, adalfl, status="healthy"):
        return heat_map.verdict(row("baseline", baseline), row("adalfl", adalfl, status))

    assert verdict(0.10, 0.90) == "untrained"
    assert verdict(0.02, 0.035) == "holds"
    assert verdict(0.02, 0.037) == "silent"
    assert verdict(0.02, 0.037, "unhealthy") == "said"


def test_a_file_of_results_is_continued_and_shown(tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row("baseline", 0.02)) + "\n")
    trained = []

    def train(model, cell, seed, method, steps):
        trained.append((model, heat_map.name_of(cell), seed, method))
        return row(method, 0.025)

    monkeypatch.setitem(heat_map.TRAININGS, "loop", train)
    asked = ["--model=mlp", "--cell=sgd 0.1 0.9", "--seeds=1", f"--json={file}"]
    assert heat_map.main(["run", *asked]) == 0
    assert trained == [("mlp", "sgd 0.1 0.9", 0, "adalfl")]
    capsys.readouterr()
    assert heat_map.main(["show", *asked, f"--png={tmp_path / 'map.png'}"]) == 0
    line = "| mlp | sgd 0.1 0.9 | 1 | 0.0200 | 0.0250 | 1 | 0 | 0 | 0 |"
    assert line in capsys.readouterr().out
    assert (tmp_path / "map.png").stat().st_size > 5000


@pytest.mark.full  # a whole initialisation
def test_a_cell_by_the_runner():
    """From the gin files that ship, as `--by=runner` makes its rows."""
    cell = ("sgd", 0.1, 0.9)
    baseline = heat_map.run("mlp", cell, 0, "baseline", heat_map.STEPS)
    row = heat_map.run("mlp", cell, 0, "adalfl", heat_map.STEPS)
    assert heat_map.verdict(baseline, row) == "holds"
    assert not heat_map.alarmed(row)
    assert row["health"] == {"0": {"status": "healthy"}, "1000": {"status": "healthy"}}
