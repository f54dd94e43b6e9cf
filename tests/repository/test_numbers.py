"""Numbers that are told in several places are those of docs/results.md."""

from __future__ import annotations

import re

import pytest

from tests.helpers import ROOT

#: The rows of the first table, by the task file that they are of.
PAIRS = {
    "MNIST + LeNet-5": "mnist_lenet5",
    "MNIST + logistic": "mnist_logistic",
    "Diabetes + MLP": "diabetes_mlp",
    "Crime + MLP": "crime_mlp",
}
METHODS = ("baseline", "ml3", "meta_lr", "adalfl")


def cells(line):
    return [cell.strip(" *`") for cell in line.strip().strip("|").split("|")]


def section(page, heading):
    text = (ROOT / page).read_text()
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def results():
    """By pair and method: the seeds' numbers, None where one diverged, and the mean as told."""
    found, pair = {}, ""
    for line in section("docs/results.md", "Four small pairs of Table 1").splitlines():
        row = cells(line)
        if len(row) == 8 and row[1] in METHODS:
            pair = row[0] or pair
            seeds = [None if text == "diverged" else float(text) for text in row[2:5]]
            found[pair, row[1]] = seeds, row[5]
    return found


def told(seeds):
    """A cell as other pages write it."""
    lost = seeds.count(None)
    if lost:
        return f"diverged, {lost} of {len(seeds)}"
    return f"{sum(seeds) / len(seeds):.4f}".removeprefix("0")


def test_the_means_are_those_of_the_runs_that_finished(results):
    assert {pair for pair, _ in results} == set(PAIRS)
    assert len(results) == len(PAIRS) * len(METHODS)
    for seeds, mean in results.values():
        finished = [number for number in seeds if number is not None]
        assert mean == f"{sum(finished) / len(finished):.4f}".removeprefix("0")


@pytest.mark.parametrize("pair", PAIRS)
def test_the_readme_tells_them(results, pair):
    rows = [cells(line) for line in section("README.md", "Results").splitlines()]
    (row,) = (row for row in rows if row[0].removesuffix(" regression") == pair)
    assert row[1:] == [told(results[pair, method][0]) for method in METHODS]


@pytest.mark.parametrize("pair", PAIRS)
def test_the_first_screen_tells_the_baseline_and_adalfl(results, pair):
    rows = [
        cells(line)
        for line in section("README.md", "What you gain, and what it costs").splitlines()
    ]
    (row,) = (row for row in rows if row[0].removesuffix(" regression") == pair)
    baseline, adalfl = (told(results[pair, method][0]) for method in ("baseline", "adalfl"))
    assert row[1:3] == [baseline, re.sub(r"diverged, (.*)", r"diverged in \1 runs", adalfl)]
    better = adalfl[0] == "." and float(adalfl) < float(baseline)
    assert row[3].startswith("yes") == better
    if better:
        fewer = 100 * (1 - float(adalfl) / float(baseline))
        assert f"{fewer:.0f} % fewer errors" in row[3]


@pytest.mark.parametrize("pair", PAIRS)
def test_the_header_of_a_task_file_tells_them(results, pair):
    header = (ROOT / "gin_configs" / "tasks" / f"{PAIRS[pair]}.gin").read_text()
    ours = re.search(r"# Ours \(docs/results\.md\): (.*), 3 seeds", header)[1]
    expected = [told(results[pair, method][0]) for method in METHODS]
    assert [
        re.sub(r"\((.*)\)", r", \1", text).replace(" ,", ",") for text in ours.split(" / ")
    ] == [*expected]
