"""Numbers in the documents are those of the files of their runs in docs/results/.

Where no files were kept they are those of docs/earlier_results.md.
"""

from __future__ import annotations

import re
from functools import cache
from statistics import mean

import numpy as np
import pytest

from benchmarks import tables
from metaloss.experiments import groups, records
from metaloss.experiments.reports import choice, paper
from metaloss.experiments.reports.tables import number, plus_minus, signed
from metaloss.experiments.statistics import summarize, welch
from tests.helpers import ROOT

RESULTS = ROOT / "docs" / "results"

# --- tables ---

printed = cache(tables.printed)


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_the_tables_of_a_page_are_what_their_commands_print(page, monkeypatch):
    """Byte for byte; `python -m benchmarks.tables` writes them."""
    monkeypatch.chdir(ROOT)
    text = page.read_text()
    assert tables.remade(text, printed) == text


def test_a_table_is_what_stands_under_its_title():
    text = "a\n<!-- python x --y='1 2' # T 1 -->\nold\n\n* old\n<!-- end -->\nb\n"
    report = "# R\n\n### T\n\nno\n\n### T 1\n\nsaid\n\n| 1 |\n\n* note\n\n## Next\n\nno\n"
    asked = []
    new = tables.remade(text, lambda command: asked.append(command) or report)
    assert asked == ["x --y='1 2'"]
    assert new.splitlines()[2:-2] == ["", "said", "", "| 1 |", "", "* note", ""]
    assert tables.remade(new, lambda command: report) == new
    with pytest.raises(ValueError, match="under the title 'T 1'"):
        tables.remade(text, lambda command: "### T 2\n\nno\n")
    with pytest.raises(ValueError, match="no <!-- end --> before the next one"):
        tables.remade(text.replace("<!-- end -->", "kept") + text, lambda command: report)


def test_every_table_of_the_results_is_made_again():
    """All but that of the paper's claims."""
    text = tables.BLOCK.sub("", (ROOT / "docs/results.md").read_text())
    assert re.findall(r"^(\|.*)\n\|[-| ]*\n", text, re.MULTILINE) == ["| the paper | here |"]


def test_every_folder_of_the_results_is_told_with_its_command():
    text = section("docs/results.md", "Which numbers can be made again")
    named = set(re.findall(r"docs/results/([\w.]+)", text))
    assert named == {path.name for path in RESULTS.iterdir()}


def test_of_a_run_two_files_are_kept_and_no_path_of_a_machine():
    for folder in filter(lambda path: path.is_dir(), RESULTS.iterdir()):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.name for path in files} == {"config.gin", "result.json"}
        assert not [path for path in files if re.search(r"""["'](/|\w:\\)""", path.read_text())]


# --- the pairs of the paper, in README.md and the headers of the gin files ---

#: Pairs with runs to the letter, by the task file that they are of; then those with others alone.
PAIRS = {
    "MNIST + LeNet-5": "mnist_lenet5",
    "MNIST + logistic": "mnist_logistic",
    "Diabetes + MLP": "diabetes_mlp",
    "Crime + MLP": "crime_mlp",
}
SIX_PAIRS = PAIRS | {"MNIST + MLP": "mnist_mlp", "California + MLP": "california_mlp"}
METHODS = ("baseline", "ml3_letter", "meta_lr_letter", "adalfl_letter")
PAPER = paper.load()
TABLE_1 = next(table for table in PAPER.tables if table.number == 1)


def cells(line):
    return [cell.replace("`", "").strip(" *") for cell in line.strip().strip("|").split("|")]


def section(page, heading):
    text = (ROOT / page).read_text()
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def earlier():
    """By pair and method: the seeds' numbers, None where one diverged, and the mean as told."""
    found, pair = {}, ""
    for line in section("docs/earlier_results.md", "Four small pairs of Table 1").splitlines():
        row = cells(line)
        if len(row) == 8 and row[1] in METHODS:
            pair = row[0] or pair
            seeds = [None if text == "diverged" else float(text) for text in row[2:5]]
            found[pair, row[1]] = seeds, row[5]
    return found


@pytest.fixture(scope="module")
def kept():
    """By pair and method the numbers of the seeds, of the shipped files' runs: *_pairs/."""
    names = {tuple(file.rsplit("_", 1)): pair for pair, file in SIX_PAIRS.items()}
    found = groups.group(records.read(sorted(RESULTS.glob("*_pairs"))).runs)[0]
    return {(names[g.pair], g.method): [run.test for run in g.runs] for g in found}


@pytest.fixture(scope="module")
def results(earlier, kept):
    """By pair and method the numbers of the seeds: of files where there are some."""
    return {key: seeds for key, (seeds, _) in earlier.items()} | kept


def told(seeds):
    """A cell as other pages write it."""
    lost = seeds.count(None)
    if lost:
        return f"diverged, {lost} of {len(seeds)}"
    return f"{sum(seeds) / len(seeds):.4f}".removeprefix("0")


def test_the_means_are_those_of_the_runs_that_finished(earlier):
    assert {pair for pair, _ in earlier} == set(PAIRS)
    assert len(earlier) == len(PAIRS) * len(METHODS)
    for seeds, written in earlier.values():
        finished = [value for value in seeds if value is not None]
        assert written == f"{sum(finished) / len(finished):.4f}".removeprefix("0")


@pytest.mark.parametrize("pair", PAIRS)
def test_the_readme_tells_them(earlier, pair):
    rows = [cells(line) for line in section("README.md", "Results").splitlines()]
    (row,) = (row for row in rows if row[0].removesuffix(" regression") == pair)
    assert row[1:] == [told(earlier[pair, method][0]) for method in METHODS]


def test_what_is_said_of_the_first_runs_follows(earlier):
    """What docs/results.md says of runs to the letter, from docs/earlier_results.md."""
    pages = ("docs/results.md", "docs/earlier_results.md")
    text = " ".join(" ".join((ROOT / page).read_text() for page in pages).split())
    seeds = {key: found for key, (found, _) in earlier.items()}
    baseline, learned = (seeds["MNIST + LeNet-5", m] for m in METHODS[::3])
    fewer = 100 * (1 - mean(learned) / mean(baseline))
    assert f"On MNIST + LeNet-5 it makes {fewer:.0f} % fewer errors" in text
    published = TABLE_1.values["mnist_lenet5"][0]
    beside = welch(summarize(baseline), published.mean, published.deviation, 10)
    errors = beside.difference / beside.error
    assert f"is {errors:.1f} standard errors above the paper's" in text
    assert f"p = {beside.p:.2f}".replace("0.", ".") in text
    for pair in PAIRS:
        losers = seeds[pair, "adalfl_letter"]
        behind = None in losers or mean(losers) > mean(seeds[pair, "baseline"])
        assert behind == (pair != "MNIST + LeNet-5")  # "behind its baseline on three of four"
    ml3 = [
        f"{a - b:.4f}".replace("0.", ".")
        for a, b in zip(learned, seeds["MNIST + LeNet-5", "ml3_letter"], strict=True)
    ]
    assert f"three paired differences are {ml3[0]}, {ml3[1]} and {ml3[2]}" in text


def first_screen():
    lines = section("README.md", "What you gain, and what it costs").splitlines()
    return [cells(line) for line in lines]


@pytest.mark.parametrize("pair", [*PAIRS, "California + MLP"])
def test_the_first_screen_tells_baseline_recipe_and_letter(results, pair):
    (row,) = (row for row in first_screen() if row[0].removesuffix(" regression") == pair)
    methods = ("baseline", "adalfl", "adalfl_letter")
    found = (results.get((pair, method)) for method in methods)
    expected = [told(seeds) if seeds else "–" for seeds in found]
    assert row[1:] == [re.sub(r"diverged, (.*)", r"diverged in \1 runs", text) for text in expected]


def test_the_first_screen_tells_how_many_seeds_there_are(results):
    text = " ".join(section("README.md", "What you gain, and what it costs").split())
    (recipe,), (letter,) = (
        {len(results[pair, method]) for pair in PAIRS} for method in ("adalfl", "adalfl_letter")
    )
    more = ("MNIST + logistic", "California + MLP")
    (many,) = {len(results[pair, "baseline"]) for pair in more}
    (few,) = {len(results[pair, "baseline"]) for pair in PAIRS if pair not in more}
    assert f"({few} seeds; logistic regression and California {many})" in text
    assert f"the shipped files ({recipe} seeds;" in text
    assert f"as they are written ({letter} seeds)" in text


def test_what_the_first_screen_says_of_the_time_is_that_of_these_runs():
    runs = records.read([RESULTS / "recipe_pairs/mnist_lenet5"]).runs
    parts = [run.result["seconds_by_part"] for run in runs if run.method == "adalfl"]
    shares = sorted(part["initialization"] / part["base"] for part in parts)
    (meta,) = {f"{part['meta'] / part['base']:.2f}".removeprefix("0") for part in parts}
    least, most = (f"{share:.2f}".removeprefix("0") for share in (shares[0], shares[-1]))
    for page in ("README.md", "docs/measurements.md"):
        text = " ".join((ROOT / page).read_text().split())
        assert f"initialisation took {least} to {most} times as long as the 10,000 base" in text
        assert re.search(rf"all (meta-steps|improvements together) {meta} times", text)


@pytest.mark.parametrize("file", [pair.name for pair in PAPER.pairs])
def test_the_header_of_a_task_file_tells_the_papers_numbers(file):
    header = (ROOT / "gin_configs" / "tasks" / f"{file}.gin").read_text()
    (told,) = re.findall(r"# The paper's test .*\n# +(.*)\n", header)
    assert told.split(" / ") == [plus_minus(value) for value in TABLE_1.values[file]]


@pytest.mark.parametrize("path", sorted((ROOT / "gin_configs/ablations").glob("table*.gin")))
def test_the_header_of_a_table_s_file_tells_the_papers_numbers(path):
    """Each of them is in the table that the file is named after, or AdaLFL's in Table 1."""
    (table,) = (table for table in PAPER.tables if table.number == int(path.name[5]))
    known = {plus_minus(v) for t in (table, TABLE_1) for row in t.values.values() for v in row if v}
    told = re.findall(r"\.\d{4}±\.\d{4}", path.read_text())
    assert set(told) <= known and (told or path.stem == "table7_objective_next")


@pytest.mark.parametrize("pair", PAIRS)
def test_the_header_of_a_task_file_tells_them(earlier, pair):
    header = (ROOT / "gin_configs" / "tasks" / f"{PAIRS[pair]}.gin").read_text()
    ours = re.search(r"# Ours.* \(docs/earlier_results\.md\): (.*), 3 seeds", header)[1]
    expected = [told(earlier[pair, method][0]) for method in METHODS]
    assert [
        re.sub(r"\((.*)\)", r", \1", text).replace(" ,", ",") for text in ours.split(" / ")
    ] == [*expected]


# --- what pages say of their tables, from the files of the runs ---


def raw(folder):
    """The configurations of a folder, by method."""
    found = groups.group(records.read([RESULTS / folder]).runs)[0]
    return {
        method: [g for g in found if g.method == method] for method in {g.method for g in found}
    }


def rate_of(group):
    return group.settings.values["base_optimizers.sgd.lr"]


def cross_entropy(group):
    return mean(run.result["test_metrics"]["loss"] for run in group.runs)


def test_what_is_said_of_the_example_follows_from_its_runs():
    text = section("docs/protocol.md", "An example: digits")
    text += "".join((ROOT / page).read_text() for page in ("README.md", "docs/own_loop.md"))
    tried = raw("protocol_digits")
    (shipped,) = (group for group in tried["baseline"] if rate_of(group) == 0.01)
    tuned, smoothed = (choice.best(tried[name]) for name in ("baseline", "label_smoothing"))
    (adalfl,) = raw("quickstart_digits")["adalfl"]
    # As they are told: a reader divides these.
    first, second, learned = (float(number(g.summary.mean)) for g in (shipped, tuned, adalfl))
    assert text.count(f"{100 * (first - second) / (first - learned):.0f} % of AdaLFL's gain") == 3
    assert f"({number(first)}, at the rate .01)" in text
    assert f"is {cross_entropy(adalfl) / cross_entropy(tuned):.1f} times" in text
    assert smoothed.summary.mean < learned
    (letter,) = (group for group in raw("digits_letter")["adalfl_letter"] if len(group.runs) == 3)
    times = cross_entropy(letter) / cross_entropy(tuned)
    assert f"the letter the test cross-entropy is {times:.0f} times" in text
    loss = f"{cross_entropy(letter):.3f}".removeprefix("0")
    assert f"({loss}; 500 meta-steps, three seeds)" in text
    assert f"test error is {number(letter.summary.mean)}" in text


def test_the_rate_free_optimizers_are_told_as_the_earlier_page_has_them():
    rows = section(
        "docs/earlier_results.md", "Prodigy and schedule-free SGD on digits"
    ).splitlines()
    prodigy, free = (row[2] for row in map(cells, rows) if len(row) == 4 and row[2][:1] == ".")
    assert f"have {prodigy} and {free}, in runs" in section(
        "docs/protocol.md", "An example: digits"
    )


#: Of seeds, as pages write them.
COUNTS = {1: "one seed", 2: "two seeds", 3: "three seeds", 4: "four seeds", 5: "five seeds"}


def test_what_is_said_of_logistic_regression_follows(kept):
    text = section("docs/protocol.md", "An example: logistic regression on MNIST")
    tried = raw("protocol_logistic")
    (seeds,) = {tuple(group.tests) for of in tried.values() for group in of}
    said = COUNTS[len(seeds)]
    assert f"**{said.capitalize()} ({', '.join(map(str, seeds))})**" in text
    found = {method: choice.best(of).summary.mean for method, of in tried.items()}
    rates = {
        method: [f"{rate_of(g):g}".removeprefix("0") for g in of] for method, of in tried.items()
    }
    seven = [".003", ".01", ".03", ".06", ".1", ".2", ".3"]
    assert rates["baseline"] == rates["label_smoothing"] == seven
    assert (len(rates["brier"]), rates["brier"][0], rates["brier"][-1]) == (7, ".1", "30")
    assert rates["cosine"] == [".03", ".1", ".2", ".3"]
    tuned = found["baseline"]
    learned = mean(kept["MNIST + logistic", "adalfl"][seed] for seed in seeds)
    for name, other in (("Brier", found["brier"]), ("schedule", found["cosine"])):
        assert re.search(rf"{name}[^.]*\s{number(tuned - other)}", text), name
    assert f"{number(learned)} under the same seed" in text
    assert f"That is {number(tuned - learned)} below the tuned baseline" in text
    assert f"and {number(learned - found['brier'])} above the Brier score" in text
    smoothed, baseline = (
        {rate_of(g): g.summary.mean for g in tried[name]}
        for name in ("label_smoothing", "baseline")
    )
    hardly = " and ".join(f"{smoothed[rate]:.3f}".removeprefix("0") for rate in (0.2, 0.3))
    assert f"at .2 and .3 the model hardly trains ({hardly})" in text
    assert f"At the shipped rate, .01, it is {number(baseline[0.01])}" in text
    assert all(error > baseline[rate] for rate, error in smoothed.items())
    page = " ".join((ROOT / "docs/results.md").read_text().split())
    for value in (found["brier"], tuned, learned):
        assert number(value) in page.split(f"On logistic regression, {said},")[1][:400]
    assert f"on logistic regression {number(learned)} and {number(tuned)}, {said};" in page
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"On logistic regression, {said}, a tuned Brier score has {number(found['brier'])}"
        in readme
    )


def test_what_is_said_of_logistic_regression_under_another_seed_follows():
    _, text = (ROOT / "docs/protocol.md").read_text().split("**Another seed (1), all methods**")
    text = " ".join(text.split("\n## ")[0].split())
    tried = raw("protocol_logistic_seed1")
    found = {method: choice.best(of).summary.mean for method, of in tried.items()}
    told = [number(found[method]) for method in ("adalfl", "cheap", "brier", "baseline")]
    first, second, third, baseline = told
    assert f"chosen rate has {first} and the cheap recipe {second}, below the Brier" in text
    assert f"score ({third}) and the tuned baseline ({baseline})" in text
    ours = {rate_of(group): group.summary.mean for group in tried["adalfl"]}
    assert f"at the shipped rate, .01, its error is {number(ours[0.01])}" in text
    small = [error for rate, error in ours.items() if rate <= 0.1]
    assert f"all its errors are between {number(min(small))} and {number(max(small))}" in text
    entropies = [
        f"{cross_entropy(choice.best(tried[m])):.2f}".lstrip("0") for m in ("adalfl", "baseline")
    ]
    assert "cross-entropy is {}, the tuned baseline's {}".format(*entropies) in text
    poly, cosine = (number(found[method]) for method in ("poly", "cosine"))
    assert found["focal"] > found["baseline"] > found["poly"] > found["cosine"]
    assert f"PolyLoss ahead of it ({poly}) and behind the schedule ({cosine})" in text
    page = " ".join((ROOT / "docs/results.md").read_text().split())
    assert f"another seed AdaLFL has {first}, its rate tuned too, the Brier score {third}" in page
    assert f"under another {first} and {baseline}, AdaLFL's rate tuned too" in page


def test_what_is_said_of_the_loss_that_stays_follows():
    found = raw("question_online")
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    (stays,) = found["ml3"]
    (seeds,) = {tuple(group.tests) for of in found.values() for group in of}
    said = COUNTS[len(seeds)]
    assert f"left it is as good**, {said} (" in text
    assert f"An intervention there, {said}:" in text
    assert f"{said.capitalize()} show what happened" in text
    shapes = [number(group.summary.mean) for group in found["shape_only"]]
    assert "({}, {} and {} in the mean)".format(*shapes) in text
    means = [group.summary.mean for group in (stays, *found["adalfl"])]
    assert max(means) - min(means) <= 0.0003
    assert f"logistic regression, {said}: 0, 1e-6, 1e-5 and 1e-4 are within .0003" in text
    worse = {number(group.tests[1]) for group in found["scale_only"]}
    assert any(f"Under seed 1 that loss is worse ({value})" in text for value in worse)


def test_what_is_said_of_the_variance_between_seeds_follows():
    text = section("docs/results.md", "Where does the variance between seeds come from?")
    (groups,) = raw("question_variance").values()
    errors = np.array([[group.tests[seed] for seed in sorted(group.tests)] for group in groups])
    rows, columns = errors.shape
    by_row, by_column, mean_of_all = errors.mean(1), errors.mean(0), errors.mean()
    left = errors - by_row[:, None] - by_column + mean_of_all
    left = (left**2).sum() / ((rows - 1) * (columns - 1))
    between = [
        ((n * of.var(ddof=1) - left) / n) ** 0.5 for of, n in ((by_column, rows), (by_row, columns))
    ]
    told = [number(value) for value in (*between, left**0.5)]
    assert "deviation is {} between the columns, {} between the rows".format(*told) in text
    assert f"and\n{told[2]} is left" in text


def test_what_is_said_of_tables_4_and_5_follows():
    page = " ".join((ROOT / "docs/results.md").read_text().split())
    found = {m: number(of[0].summary.mean) for m, of in raw("tables_4_5_logistic").items()}
    assert (
        f"a quadratic has {found['table4_taylor_quadratic']}, a cubic "
        f"{found['table4_taylor_cubic']}, the network {found['adalfl_letter']}"
    ) in page
    assert f"not ({found['ml3_letter']} and {found['table5_relu_softplus']}, [Table 5]" in page


def test_what_is_said_of_the_labels_follows():
    text = section("docs/results.md", "What are the labels of the validation data worth?")
    (groups,) = raw("question_labels").values()
    means = {
        (rate_of(g), g.settings.values["tasks.mnist.valid_fraction"]): g.summary.mean
        for g in groups
    }
    differences = [signed(means[rate, 0.0002] - means[rate, 0.1]) for rate in (0.01, 0.03, 0.1)]
    assert f"differ by {differences[0]}, {differences[1]} and {differences[2]}" in text


def test_what_is_said_of_the_size_follows():
    text = section("docs/results.md", "How much do the size of the loss network and φ_0 matter?")
    (groups,) = raw("question_size").values()
    small, *others = sorted(groups, key=lambda g: g.settings.values["representations.nn.hidden"])
    told = [number(group.summary.mean) for group in others]
    assert "the means are {}, {} and {}".format(*told) in text
    baseline = {
        run.seed: run.test
        for group in raw("recipe_pairs")["baseline"]
        if group.pair == small.pair
        for run in group.runs
    }
    worse = [seed for seed, error in small.tests.items() if error > baseline[seed]]
    fallen = [run for run in small.runs if run.result["steps_by_task_loss"]]
    assert "Two of its five runs are worse than the untuned baseline" in text and len(worse) == 2
    (fallen,) = fallen
    assert "In a third one the learned loss" in text and fallen.seed not in worse
    assert f"for {fallen.result['steps_by_task_loss']} of the 10,000 steps" in text


def test_what_is_said_of_the_methods_on_logistic_regression_follows(kept):
    page = " ".join((ROOT / "docs/results.md").read_text().split())
    ours = {m: kept["MNIST + logistic", m] for m in ("baseline", "ml3", "meta_lr", "adalfl")}
    assert {len(seeds) for seeds in ours.values()} == {5}
    baseline, ml3, meta_lr, adalfl = (number(mean(seeds)) for seeds in ours.values())
    assert f"not held on logistic regression, 5 seeds ({adalfl} and {ml3}," in page
    assert f"held on logistic regression, 5 seeds ({meta_lr} and {baseline})" in page


def test_what_is_said_of_longer_trainings_follows(kept):
    text = " ".join((ROOT / "docs/protocol.md").read_text().split())
    (groups,) = raw("protocol_logistic_longer").values()
    chosen = choice.best(groups)
    found = {(g.settings.values["Runner.steps"], rate_of(g)): g.summary.mean for g in groups}
    assert (chosen.settings.values["Runner.steps"], rate_of(chosen)) == (13300, 0.03)
    assert f"rate .03 are chosen, with a test error of {number(found[13300, 0.03])}" in text
    assert f"39,500 steps at the same rate have {number(found[39500, 0.03])}" in text
    assert all(found[39500, rate] > found[39500, 0.03] for rate in (0.1, 0.3))
    ours = kept["MNIST + logistic", "adalfl"]
    assert f"steps, has {number(mean(ours))} ({len(ours)} seeds)" in text


def test_what_is_said_of_lenet5_beside_tuned_baselines_follows():
    text = " ".join(section("docs/protocol.md", "An example: LeNet-5 on MNIST").split())
    tried = raw("protocol_lenet5")
    chosen = {method: choice.best(of) for method, of in tried.items()}
    best = {method: number(group.summary.mean) for method, group in chosen.items()}
    ours = {rate_of(group): group for group in tried["adalfl"]}
    theirs = {rate_of(g): g.summary.mean for g in tried["baseline"]}
    assert f"the tuned baseline here**, {best['adalfl']} and {best['baseline']}" in text
    assert f"At the shipped rate, .01, the baseline has {number(theirs[0.01])}" in text
    gain = theirs[0.01] - chosen["adalfl"].summary.mean
    by_rate = (theirs[0.01] - chosen["baseline"].summary.mean) / gain
    assert "two fifths of what" in text and 0.35 < by_rate < 0.45
    assert min(theirs, key=theirs.get) == 0.1 and f".1, has {number(theirs[0.1])}" in text
    for errors in ({rate: g.summary.mean for rate, g in ours.items()}, theirs):
        small = [error for rate, error in errors.items() if rate <= 0.2]
        assert re.search(rf"between {number(min(small))} and {number(max(small))}", text)
    assert f"Brier score has {best['brier']} under seed 0" in text
    under = [number(chosen[method].tests[0]) for method in ("adalfl", "baseline")]
    assert "where AdaLFL has {} and the tuned baseline {}".format(*under) in text
    entropies = [f"{cross_entropy(chosen[m]):.3f}".lstrip("0") for m in ("adalfl", "baseline")]
    assert "cross-entropy is {}, the tuned baseline's {}".format(*entropies) in text
    high = [run for rate, group in ours.items() if rate >= 0.03 for run in group.runs]
    fallen = [run for run in high if run.result["steps_by_task_loss"]]
    assert (len(fallen), len(high)) == (6, 10) and "in six of ten runs" in text
    two = (chosen["adalfl"].tests.keys(), chosen["baseline"].tests.keys())
    assert [list(seeds) for seeds in two] == [[0, 1], [0, 1]]
    for page in ("README.md", "docs/results.md"):
        other = " ".join((ROOT / page).read_text().split())
        told = f"{best['adalfl']},? and .{{,40}}{best['baseline']}"
        assert re.search(told.replace(".0", r"\.0"), other)


def test_what_is_said_of_the_cheap_recipe_follows():
    text = " ".join((ROOT / "docs/performance.md").read_text().split())
    tried = raw("cheap_lenet5")
    size = "meta_optimizers.offline_unrolled.objective_batch_size"
    fast, cheap = sorted(tried["cheap"], key=lambda g: g.settings.values[size] is None)
    (baseline,) = tried["baseline"]
    seconds = [[run.result["seconds"] for run in group.runs] for group in (cheap, baseline)]
    ratios = [ours / theirs for ours, theirs in zip(*seconds, strict=True)]
    told = [f"{ratio:.2f}" for ratio in ratios]
    assert "takes {}, {} and {} times as long as the baseline".format(*told) in text
    assert f"(median {np.median(ratios):.2f}), and its test error is" in text
    assert f"is {number(cheap.summary.mean)}, that of AdaLFL" in text
    more = fast.summary.mean - cheap.summary.mean
    assert f"Their error, {number(fast.summary.mean)}, is {number(more)} higher" in text
    reproduced = " ".join((ROOT / "docs/reproduce.md").read_text().split())
    assert f"at {np.median(ratios):.2f} baseline trainings by the clock" in reproduced
    said = f"ours {number(cheap.summary.mean)} ± {number(cheap.summary.deviation)} on LeNet-5"
    assert said in (ROOT / "gin_configs/README.md").read_text()


def test_what_is_said_of_logistic_regression_under_a_third_seed_follows():
    _, text = (ROOT / "docs/protocol.md").read_text().split("**A third seed (2)**")
    text = " ".join(text.split("**With AdaLFL's time**")[0].split())
    tried = raw("protocol_logistic_seed2")
    found = {method: choice.best(of).summary.mean for method, of in tried.items()}
    names = ("adalfl", "brier", "cosine", "poly", "baseline")
    assert sorted(names, key=found.get) == list(names)
    ours, brier, *others = (number(found[name]) for name in names)
    assert f"AdaLFL has {ours}, the Brier score {brier}, the schedule {others[0]}, " in text
    assert f"PolyLoss {others[1]} and the tuned baseline {others[2]}" in text
    assert f"first two are {number(found['brier'] - found['adalfl'])} apart" in text
    rates = {rate_of(group): group.summary.mean for group in tried["adalfl"]}
    small = [error for rate, error in rates.items() if rate <= 0.1]
    assert f"between {number(min(small))} and {number(max(small))} at rates" in text
    assert f"they are {number(rates[0.2])} and {number(rates[0.3])}, above" in text
    assert min(rates[0.2], rates[0.3]) > max(found.values())
    page = " ".join((ROOT / "docs/results.md").read_text().split())
    assert f"a third {ours}, {brier} and {others[2]}" in page
    assert f"under a third {ours} and {others[2]};" in page
