"""Numbers that are told in several places are those of docs/results.md."""

from __future__ import annotations

import re
from statistics import mean

import pytest

from metaloss.experiments import groups, records
from metaloss.experiments.reports import choice, paper
from metaloss.experiments.reports.tables import number, plus_minus
from metaloss.experiments.statistics import summarize, welch
from tests.helpers import ROOT

#: The rows of the first table, by the task file that they are of.
PAIRS = {
    "MNIST + LeNet-5": "mnist_lenet5",
    "MNIST + logistic": "mnist_logistic",
    "Diabetes + MLP": "diabetes_mlp",
    "Crime + MLP": "crime_mlp",
}
SIX_PAIRS = {
    "MNIST + LeNet-5": "mnist_lenet5",
    "MNIST + logistic": "mnist_logistic",
    "MNIST + MLP": "mnist_mlp",
    "Diabetes + MLP": "diabetes_mlp",
    "Crime + MLP": "crime_mlp",
    "California + MLP": "california_mlp",
}
METHODS = ("baseline", "ml3_letter", "meta_lr_letter", "adalfl_letter")
PAPER = paper.load()
TABLE_1 = next(table for table in PAPER.tables if table.number == 1)


def cells(line):
    return [cell.replace("`", "").strip(" *") for cell in line.strip().strip("|").split("|")]


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
    for seeds, written in results.values():
        finished = [value for value in seeds if value is not None]
        assert written == f"{sum(finished) / len(finished):.4f}".removeprefix("0")


@pytest.mark.parametrize("pair", PAIRS)
def test_the_readme_tells_them(results, pair):
    rows = [cells(line) for line in section("README.md", "Results").splitlines()]
    (row,) = (row for row in rows if row[0].removesuffix(" regression") == pair)
    assert row[1:] == [told(results[pair, method][0]) for method in METHODS]


def test_what_is_said_of_the_first_table_follows(results):
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    (baseline, _), (learned, _) = (results["MNIST + LeNet-5", m] for m in METHODS[::3])
    fewer = 100 * (1 - mean(learned) / mean(baseline))
    assert f"On MNIST + LeNet-5 it makes {fewer:.0f} % fewer errors" in text
    paper = TABLE_1.values["mnist_lenet5"][0]
    beside = welch(summarize(baseline), paper.mean, paper.deviation, 10)
    errors = beside.difference / beside.error
    assert f"is {errors:.1f} standard errors above the paper's" in text
    assert f"p = {beside.p:.2f}".replace("0.", ".") in text
    for pair, losers in {p: results[p, "adalfl_letter"][0] for p in PAIRS}.items():
        behind = None in losers or mean(losers) > mean(results[pair, "baseline"][0])
        assert behind == (pair != "MNIST + LeNet-5")  # "behind its baseline on three of four"
    ml3 = [
        f"{a - b:.4f}".replace("0.", ".")
        for a, b in zip(learned, results["MNIST + LeNet-5", "ml3_letter"][0], strict=True)
    ]
    assert f"three paired differences are {ml3[0]}, {ml3[1]} and {ml3[2]}" in text


def first_screen():
    lines = section("README.md", "What you gain, and what it costs").splitlines()
    return [cells(line) for line in lines]


def test_the_first_screen_tells_both_of_california(recipe):
    (row,) = (row for row in first_screen() if row[0] == "California + MLP")
    means = [told(recipe["California + MLP", method]) for method in ("baseline", "adalfl")]
    assert row[1:] == [*means, "–"]


@pytest.mark.parametrize("pair", PAIRS)
def test_the_first_screen_tells_baseline_recipe_and_letter(results, recipe, pair):
    rows = first_screen()
    (row,) = (row for row in rows if row[0].removesuffix(" regression") == pair)
    baseline, letter = (told(results[pair, method][0]) for method in ("baseline", "adalfl_letter"))
    assert row[1] == baseline
    assert row[2] == (told(recipe[pair, "adalfl"]) if (pair, "adalfl") in recipe else "–")
    assert row[3] == re.sub(r"diverged, (.*)", r"diverged in \1 runs", letter)


@pytest.fixture(scope="module")
def recipe():
    """Test errors by pair and method, by seed, of the runs in docs/results/recipe_pairs/."""
    names = {tuple(file.rsplit("_", 1)): pair for pair, file in SIX_PAIRS.items()}
    found = groups.group(records.read([ROOT / "docs/results/recipe_pairs"]).runs)[0]
    return {
        (names[g.settings.component("Runner.task"), g.settings.component("Runner.backbone")],
         g.method): [g.tests[seed] for seed in sorted(g.tests)]
        for g in found
    }  # fmt: skip


def six_pairs(recipe):
    """The lines of the table."""
    columns = [column.method.removesuffix("_letter") for column in TABLE_1.columns]
    for pair, file in SIX_PAIRS.items():
        for method in ("adalfl", "baseline"):
            if tests := recipe.get((pair, method)):
                paper = plus_minus(TABLE_1.values[file][columns.index(method)])
                texts = [" ".join(number(test) for test in tests), plus_minus(summarize(tests))]
                texts = [pair, f"`{method}`", *texts, paper.replace("±", " ± ")]
                yield f"| {' | '.join(texts)} |"


def test_the_six_pairs_are_as_the_files_of_their_runs_say(recipe):
    """Character by character."""
    text = section("docs/initialisation.md", "The six small pairs")
    table = text.split("<!-- the six pairs -->")[1].split("<!-- end")[0].strip()
    assert table.splitlines()[2:] == [*six_pairs(recipe)]


def test_what_the_first_screen_says_of_the_time_is_that_of_these_runs():
    runs = records.read([ROOT / "docs/results/recipe_pairs/mnist_lenet5"]).runs
    parts = [run.result["seconds_by_part"] for run in runs]
    shares = sorted(part["initialization"] / part["base"] for part in parts)
    (meta,) = {f"{part['meta'] / part['base']:.2f}".removeprefix("0") for part in parts}
    least, most = (f"{share:.2f}".removeprefix("0") for share in (shares[0], shares[-1]))
    for page in ("README.md", "docs/measurements.md"):
        text = " ".join((ROOT / page).read_text().split())
        assert f"initialisation took {least} to {most} times as long as the 10,000 base" in text
        assert re.search(rf"all (meta-steps|improvements together) {meta} times", text)


def test_every_table_says_whether_its_runs_are_kept():
    """Each folder and file of docs/results is named, and none that is not there."""
    text = section("docs/results.md", "Which numbers can be made again")
    named = set(re.findall(r"`results/([\w.]+)/?`", text))
    assert named == {path.name for path in (ROOT / "docs/results").iterdir()}


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
def test_the_header_of_a_task_file_tells_them(results, pair):
    header = (ROOT / "gin_configs" / "tasks" / f"{PAIRS[pair]}.gin").read_text()
    ours = re.search(r"# Ours.* \(docs/results\.md\): (.*), 3 seeds", header)[1]
    expected = [told(results[pair, method][0]) for method in METHODS]
    assert [
        re.sub(r"\((.*)\)", r", \1", text).replace(" ,", ",") for text in ours.split(" / ")
    ] == [*expected]


# --- the example of docs/protocol.md, from the files of its runs ---


def raw(folder):
    found = groups.group(records.read([ROOT / "docs" / "results" / folder]).runs)[0]
    return {
        method: [g for g in found if g.method == method] for method in {g.method for g in found}
    }


def figures(group):
    """Test error and test cross-entropy of a configuration, as the page writes them."""
    cross_entropy = mean(run.result["test_metrics"]["loss"] for run in group.runs)
    return plus_minus(summarize([*group.tests.values()])), f"{cross_entropy:.3f}".removeprefix("0")


@pytest.fixture(scope="module")
def example():
    """The rows of the page's table, by their first cell."""
    lines = section("docs/protocol.md", "An example: digits").splitlines()
    return {row[0]: row[1:] for row in map(cells, lines) if len(row) == 6}


@pytest.mark.parametrize(
    ("row", "method"),
    [("baseline, tuned", "baseline"), ("label smoothing .1, tuned", "label_smoothing")],
)
def test_the_tuned_rows_are_what_was_chosen(example, row, method):
    tried = raw("protocol_digits")[method]
    chosen = choice.best(tried)
    rate = number(chosen.settings.values["base_optimizers.sgd.lr"]).rstrip("0")
    select = plus_minus(summarize([run.result["select"] for run in chosen.runs]))
    assert example[row] == [str(len(tried)), rate, select, *figures(chosen)]
    assert all(len(group.tests) == 3 for group in tried)


def test_the_rows_of_the_quickstart_and_of_the_letter_are_those_of_their_files():
    text = section("docs/results.md", "Digits + MLP 100-100 (`digits_mlp`, not in the paper)")
    runs = {
        run.path.relative_to(ROOT / "docs/results").as_posix(): figures_of_one(run)
        for folder in ("quickstart", "digits_letter")
        for run in records.read([ROOT / "docs/results" / folder]).runs
    }
    rows = [row[1:] for row in map(cells, text.splitlines()) if len(row) == 3 and row[0]]
    assert rows[1:] == [
        runs["quickstart/baseline"],
        runs["quickstart/baseline_tuned"],
        runs["quickstart/adalfl"],
        runs["digits_letter/steps500/seed0"],
    ]
    error, cross_entropy = runs["digits_letter/steps2500/seed0"]
    assert f"it errs on {error}, with a cross-entropy of {cross_entropy}" in text
    three = records.read([ROOT / "docs/results/digits_letter/steps500"]).runs
    letter = mean(run.result["test_metrics"]["loss"] for run in three)
    (group,) = groups.group(three)[0]
    page = section("docs/protocol.md", "An example: digits")
    letter = f"{letter:.3f}".removeprefix("0")
    assert f"({letter}; 500 meta-steps, three seeds)" in page
    assert f"test error is {number(summarize([*group.tests.values()]).mean)}" in page


def figures_of_one(run):
    """Its test error and test cross-entropy, as pages write them."""
    return [number(run.test), f"{run.result['test_metrics']['loss']:.3f}".removeprefix("0")]


def test_the_rows_that_are_not_tuned_are_those_of_the_shipped_files(example):
    (shipped,) = (
        group for group in raw("protocol_digits")["baseline"]
        if group.settings.values["base_optimizers.sgd.lr"] == 0.01
    )  # fmt: skip
    error, cross_entropy = figures(shipped)
    row = example["baseline, shipped rate"]
    assert (row[1], row[3], row[4]) == (".01", error.partition("±")[0], cross_entropy)
    (adalfl,) = raw("quickstart_digits")["adalfl"]
    assert example["AdaLFL, shipped (quickstart.gin)"][3:] == [*figures(adalfl)]


def test_what_is_said_of_the_example_follows_from_its_rows(example):
    text = section("docs/protocol.md", "An example: digits")
    text += "".join((ROOT / page).read_text() for page in ("README.md", "docs/own_loop.md"))
    error = {
        name: float(row[3].partition("±")[0]) for name, row in example.items() if row[3][0] == "."
    }
    cross_entropy = {name: float(row[4]) for name, row in example.items() if row[4][0] == "."}
    first, tuned = error["baseline, shipped rate"], error["baseline, tuned"]
    learned = error["AdaLFL, shipped (quickstart.gin)"]
    assert text.count(f"{100 * (first - tuned) / (first - learned):.0f} % of AdaLFL's gain") == 3
    times = cross_entropy["AdaLFL, shipped (quickstart.gin)"] / cross_entropy["baseline, tuned"]
    assert f"is {times:.1f} times" in text
    assert error["label smoothing .1, tuned"] < learned


# --- logistic regression in docs/protocol.md, from the files of its runs ---

#: The methods of its table, and what the page calls them.
LOGISTIC = {
    "baseline": "baseline, tuned",
    "cosine": "warm-up and cosine, tuned",
    "brier": "Brier score, tuned",
    "label_smoothing": "label smoothing .1, tuned",
}


def logistic_rows():
    """The lines of the table."""
    found = raw("protocol_logistic")
    lines = []
    for method, name in LOGISTIC.items():
        chosen = choice.best(found[method])
        rates = sorted(g.settings.values["base_optimizers.sgd.lr"] for g in found[method])
        said = [f"{rate:g}".removeprefix("0") for rate in rates]
        rate = chosen.settings.values["base_optimizers.sgd.lr"]
        select = summarize([run.result["select"] for run in chosen.runs])
        ece = mean(run.result["test_metrics"]["ece"] for run in chosen.runs)
        texts = [name, " ".join(said), f"{rate:g}".removeprefix("0"), plus_minus(select)]
        texts += [*figures(chosen), f"{ece:.3f}".removeprefix("0")]
        lines.append(f"| {' | '.join(texts)} |")
    return lines


def test_the_logistic_rows_are_what_was_chosen():
    text = section("docs/protocol.md", "An example: logistic regression on MNIST")
    assert "\n".join(logistic_rows()) in text
    seeds = {seed for of in raw("protocol_logistic").values() for g in of for seed in g.tests}
    assert seeds == {0}  # the page says so


def test_what_is_said_of_logistic_regression_follows(recipe):
    text = section("docs/protocol.md", "An example: logistic regression on MNIST")
    found = {
        method: choice.best(tried).tests[0] for method, tried in raw("protocol_logistic").items()
    }
    tuned, learned = found["baseline"], recipe["MNIST + logistic", "adalfl"][0]
    for name, other in (("Brier", found["brier"]), ("schedule", found["cosine"])):
        assert re.search(rf"{name}[^.]*\s{number(tuned - other)}", text), name
    assert f"{number(learned)} under the same seed" in text
    assert f"That is {number(tuned - learned)} below the tuned baseline" in text
    assert f"and {number(learned - found['brier'])} above the Brier score" in text
    rates = {
        g.settings.values["base_optimizers.sgd.lr"]: f"{g.tests[0]:.3f}".removeprefix("0")
        for g in raw("protocol_logistic")["label_smoothing"]
    }
    assert f"at .2 and .3 the model hardly trains ({rates[0.2]} and {rates[0.3]})" in text
    baseline = {
        g.settings.values["base_optimizers.sgd.lr"]: g.tests[0]
        for g in raw("protocol_logistic")["baseline"]
    }
    assert all(float(error) > round(baseline[rate], 3) for rate, error in rates.items())
    page = (ROOT / "docs/results.md").read_text()
    for value in (found["brier"], tuned, learned):
        assert number(value) in page.split("On logistic regression, one seed")[1][:400]


# --- the loss that stays, in docs/results.md, from the files of its runs ---

#: What is learned online, by the method's name.
ONLINE = {
    "ml3": "nothing",
    "adalfl": "the loss",
    "scale_only": "its scale alone",
    "shape_only": "its shape alone",
}


def test_the_rows_of_the_loss_that_stays_are_those_of_its_runs():
    found, lines = raw("question_online"), []
    for method, name in ONLINE.items():
        by_rate = {
            g.settings.values.get("meta_optimizers.online_one_step.meta_lr", 0): g
            for g in found[method]
        }
        for rate in sorted(by_rate):
            runs = sorted(by_rate[rate].runs, key=lambda run: run.result["seed"])
            assert [run.result["seed"] for run in runs] == [0, 1]
            texts = [" ".join(each) for each in zip(*map(figures_of_one, runs), strict=True)]
            lines.append(f"| {name} | {rate:g} | {' | '.join(texts)} |")
    page = (ROOT / "docs/results.md").read_text()
    told = page.split("<!-- the loss that stays -->")[1].split("<!-- end of")[0]
    assert told.strip().splitlines()[2:] == lines
