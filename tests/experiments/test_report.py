"""The report over many runs, in each format, as tools/report.py gives it."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest

from metaloss.experiments import records
from metaloss.experiments.reports import formats, other_tables, tables, target
from metaloss.experiments.reports.paper import Value
from metaloss.experiments.reports.report import contents
from metaloss.experiments.statistics import summarize
from metaloss.runs.folder import RunFolder
from tests.small_runs import write_methods, write_run

DIGITS = [("tasks/digits_mlp.gin", f"methods/{name}.gin") for name in ("baseline", "ml3_relu")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs for Tables 1, 2 and 6, some of them lost, and runs of another task."""
    folder = tmp_path_factory.mktemp("runs")
    write_methods(folder, 7)
    shutil.rmtree(folder / "mnist_lenet5" / "meta_lr_letter" / "seed6")
    lost = ("tasks/mnist_lenet5.gin", "methods/meta_lr_letter.gin")
    write_run(folder / "lost", lost, seed=6, status="diverged")
    write_run(folder / "short", bindings=["Runner.steps = 500"], test=0.02)
    large = ["meta_optimizers.online_one_step.meta_lr = 1e-1", "Runner.method = 'large'"]
    write_run(folder / "large", bindings=large, test=0.03)
    write_run(folder / "going_on", large_files(), seed=0, status="unfinished")
    for i, files in enumerate(DIGITS):
        for seed in range(3):
            write_run(folder / f"digits{i}{seed}", files, seed=seed, test=0.1 + 0.05 * i)
    (folder / "nothing").mkdir()
    return folder


def large_files():
    return ("tasks/mnist_mlp.gin", "methods/adalfl_letter.gin")


@pytest.fixture
def report(command):
    return partial(command, "report")


def rows_of(markdown, title):
    """The cells of a Markdown table, by its title."""
    text = markdown.split(f"### {title}\n")[1].split("\n### ")[0].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0091, ".0091"), (0.13574, ".1357"), (1.5, "1.5000"), (-0.0123, "-.0123"), (0.0, ".0000"),
        (0.00005, ".0001"), (3.21e-5, "3.2e-05"), (5930.0, "5930.0000"), (59300.0, "5.9e+04"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_in_the_paper(value, text):
    assert tables.number(value) == text


def test_means_are_written_with_their_deviation_if_they_have_one():
    assert tables.plus_minus(Value(0.0091, 0.0004)) == ".0091±.0004"
    assert tables.plus_minus(summarize([0.01, 0.02])) == ".0150±.0071"
    assert tables.plus_minus(summarize([0.01])) == ".0100"


def test_markdown_shows_ours_beside_the_papers_and_counts_what_was_lost(report, root):
    code, text, warnings = report(root)
    assert code == 0
    assert f"warning: {root}/nothing: an empty folder" in warnings
    table = rows_of(text, "Table 1. Methods")
    assert all(len(row) == 7 for row in table)
    assert table[0] == ["Task", "Model", "", "Baseline", "ML³", "MetaLR", "AdaLFL"]
    start = next(i for i, row in enumerate(table) if row[:2] == ["MNIST", "LeNet-5"])
    assert [row[2] for row in table[start : start + 3]] == ["ours", "paper", "ours (a)"]
    ours, paper, short = (row[3:] for row in table[start : start + 3])
    assert paper == ["*.0125±.0007*", "*.0094±.0005*", "*.0097±.0013*", "*.0091±.0004*"]
    assert ours[2].endswith("(6; 1 diverged)")
    assert re.fullmatch(r"\*\*\.01\d\d±\.000\d \(7\)\*\*", ours[3])
    assert short == ["not run", "not run", "not run", ".0200 (1)"]
    assert "(a) Runner.steps = 500" in text
    mlp = next(row for row in table if row[:2] == ["MNIST", "MLP"])
    assert mlp[2:] == ["ours", "not run", "not run", "not run", "1 unfinished"]
    assert ["Crime", "MLP", "paper (ours not run)"] in [row[:3] for row in table]
    assert "No run belongs to Tables 3, 4, 5, 7." in text
    assert f"{root}/going_on: unfinished: no result.json, at base step 1000 of 10000" in text


def test_a_table_of_the_paper_takes_ablations_by_their_config(report, root):
    table = rows_of(report(root)[1], "Table 6. Meta-learning rate")
    assert table[2][3] == ".0300 (1)"
    assert re.fullmatch(r"\*\*\.01\d\d±\.000\d \(7\)\*\*", table[2][7])
    assert table[3][3:] == [
        "*.0191±.0070*", "*.0159±.0017*", "*.0104±.0011*",
        "*.0094±.0007*", "*.0091±.0004*", "*.0088±.0004*",
    ]  # fmt: skip


def test_paired_tests_say_what_few_seeds_cannot(report, root):
    _, text, _ = report(root)
    main = [row for row in rows_of(text, "Table 1, paired by seed") if "(a)" not in row[2]][2:]
    assert [row[2] for row in main] == ["AdaLFL - Baseline", "AdaLFL - ML³", "AdaLFL - MetaLR"]
    assert [row[3] for row in main] == ["7", "7", "7"]
    # 2 / 2⁷ = .0156, of three that 3 · .0156 = .047.
    assert [row[7] for row in main] == [".047", ".047", ".047"]
    assert [row[5] == "–" for row in main] == [False, False, True]
    diverged = "1 diverged: the worst ranks, and no interval"
    assert [row[8] for row in main] == ["", "", diverged]
    others = rows_of(text, "Runs by task and method, paired by seed")
    assert others[2][2:] == [
        "ml3_relu - baseline", "3", "+.0500", "[+.0500, +.0500]", "–", "–",
        "n = 3: no test can be significant",
    ]  # fmt: skip


def test_our_means_stand_beside_the_papers_with_their_standard_error(report, root):
    """The shipped configuration alone: MetaLR and AdaLFL of LeNet-5, of 6 and of 7 seeds."""
    table = rows_of(report(root)[1], "Table 1, beside the paper")
    assert [row[2:4] for row in table[2:]] == [
        ["Baseline", "7"], ["ML³", "7"], ["MetaLR", "6"], ["AdaLFL", "7"],
    ]  # fmt: skip
    low, high = (float(end) for end in table[5][6].strip("[]").split(", "))
    assert low < float(table[5][4]) < high


def test_a_mean_of_survivors_is_never_bold(report, tmp_path):
    """ML³ is lower over two of its three runs; the baseline has all of its own."""
    for seed in range(3):
        for name, test in (("baseline", 0.02), ("ml3_letter", 0.01)):
            status = "diverged" if (name, seed) == ("ml3_letter", 2) else "finished"
            files = ("tasks/mnist_lenet5.gin", f"methods/{name}.gin")
            write_run(tmp_path / f"{name}{seed}", files, seed=seed, test=test, status=status)
    table = rows_of(report(tmp_path)[1], "Table 1. Methods")
    (row,) = (row for row in table if row[2] == "ours")
    assert row[3:5] == ["**.0200±.0000 (3)**", ".0100±.0000 (2; 1 diverged)"]


def test_the_chance_of_the_test_examples_stands_beside_that_of_the_seeds(report, tmp_path):
    """On 4 examples one is wrong less: -1/4, of standard error √(3/4 · 1/4 / 3) = 1/4."""
    for seed in range(3):
        for files, wrong in zip(DIGITS, ([1, 1, 0, 0], [1, 0, 0, 0]), strict=True):
            run = write_run(
                tmp_path / f"{files[1][8:-4]}{seed}", files, seed=seed, test=sum(wrong) / 4
            )
            RunFolder(run).keep_errors(np.array(wrong, dtype=np.float32), np.arange(4))
    compared = rows_of(report(tmp_path)[1], "Runs by task and method, paired by seed")
    assert compared[2][2:7] == ["ml3_relu - baseline", "3", "-.2500", "[-.2500, -.2500]", ".2500"]


def test_run_times_stand_beside_the_papers_as_hours_and_ratios(report, root):
    table = rows_of(report(root)[1], "Table 2. Run times and memory")
    start = next(i for i, row in enumerate(table) if row[:2] == ["MNIST", "LeNet-5"])
    assert table[start][2:5] == ["ours (a)", ".01 h (1.0×)", ".01 h (1.0×)"]
    assert table[start + 1][2:4] == ["memory", "1.00 GiB"]
    assert table[start + 2][6] == "*.67 h (6.7×)*"


def test_other_runs_are_grouped_by_what_differs(report, tmp_path):
    for i, hidden in enumerate(("(4,)", "(8,)")):
        write_run(tmp_path / str(i), DIGITS[0], [f"backbones.mlp.hidden = {hidden}"], test=0.1 + i)
    write_run(tmp_path / "2", DIGITS[1], ["backbones.mlp.hidden = (8,)"], test=0.5)
    _, text, _ = report(tmp_path)
    table = rows_of(text, "Runs by task and method")
    assert [row[2] for row in table[2:]] == [
        "baseline_hidden=4 (a)",
        "baseline_hidden=8 (b)",
        "ml3_relu (b)",
    ]
    assert [row[4] for row in table[2:]] == [".1000 (1)", "1.1000 (1)", ".5000 (1)"]
    assert "* (a) backbones.mlp.hidden = (4,)\n* (b) backbones.mlp.hidden = (8,)" in text
    assert "Table 1" not in text


def test_each_seed_stands_beside_the_papers_number(report, root):
    table = rows_of(report(root)[1], "Runs by task and method")
    assert table[0][5:] == [*(f"seed {seed}" for seed in range(7)), "paper", "seconds", "GiB"]
    of_meta_lr = next(row for row in table if row[2].startswith("meta_lr_letter"))
    assert of_meta_lr[11:13] == ["diverged", "*.0097±.0013*"]
    found = [float(text) for text in of_meta_lr[5:11]]
    assert of_meta_lr[4].startswith(tables.plus_minus(summarize(found))[:5])
    digits = next(row for row in table if row[0] == "digits")
    assert digits[4:9] == [".1000±.0000 (3)", ".1000", ".1000", ".1000", "–"]
    assert digits[12] == "–"  # the paper has no digits


def test_a_run_outside_the_papers_tables_is_compared_with_a_baseline_within(report, tmp_path):
    for name, test in (("baseline", 0.02), ("adalfl", 0.01)):
        files = ("tasks/mnist_lenet5.gin", f"methods/{name}.gin")
        write_run(tmp_path / name, files, test=test)
    table = rows_of(report(tmp_path)[1], "Runs by task and method, paired by seed")
    assert table[2][2:5] == ["adalfl - baseline", "1", "-.0100"]


def test_variants_stand_in_the_order_of_their_values(report, tmp_path):
    for lr in ("0.1", "10", "0.03"):
        write_run(tmp_path / lr, DIGITS[0], [f"base_optimizers.sgd.lr = {lr}"])
    table = rows_of(report(tmp_path)[1], "Runs by task and method")
    found = [re.sub(r".*lr=([\d.]*) .*", r"\1", row[2]) for row in table[2:]]
    assert found == ["0.03", "0.1", "10"]
    for i, hidden in enumerate(("(10, 10)", "(4,)", "(100,)")):
        write_run(tmp_path / f"sizes/{i}", DIGITS[0], [f"backbones.mlp.hidden = {hidden}"])
    table = rows_of(report(tmp_path / "sizes")[1], "Runs by task and method")
    assert [row[2].split("=")[1][:-4] for row in table[2:]] == ["4", "10.10", "100"]


def test_what_was_chosen_has_all_that_was_tried_and_what_was_not_tuned(report, tmp_path):
    """On select .03 is the best, on test data .1; ML³ has one configuration and no select."""
    for lr, select, test in (("0.01", 0.3, 0.3), ("0.03", 0.1, 0.2), ("0.1", 0.2, 0.1)):
        bindings = ["Runner.select_fraction = 0.5", f"base_optimizers.sgd.lr = {lr}"]
        run = write_run(tmp_path / lr, DIGITS[0], bindings, test=test)
        result = json.loads((run / "result.json").read_text())
        said = {"select": select, "test_metrics": {"loss": 10 * test, "ece": test / 10}}
        (run / "result.json").write_text(json.dumps({**result, **said}))
    write_run(tmp_path / "other", DIGITS[1], test=0.4)
    table = rows_of(report(tmp_path)[1], "What was chosen, and what it cost")
    assert [row[2:] for row in table[2:]] == [
        ["baseline", "3", "3", "0.03", "base_optimizers.sgd.lr = 0.03",
         ".1000 (1)", ".2000 (1)", "2.0000", ".0200"],
        ["ml3_relu", "1", "1", "0.01", "–", "–", ".4000 (1)", "–", "–"],
    ]  # fmt: skip
    assert "What was chosen" not in report(tmp_path / "other")[1]


def test_outer_splits_are_not_chosen_from(report, tmp_path):
    """On each of them another rate is chosen; one at which all runs diverge was tried too."""
    for split, (best, select) in enumerate(((0.01, 0.2), (0.1, 0.4))):
        for lr in (0.01, 0.1, 1.0):
            bindings = [f"tasks.diabetes.split = {split}", f"base_optimizers.sgd.lr = {lr}"]
            status = "diverged" if lr == 1.0 else "finished"
            run = write_run(
                tmp_path / f"{split}{lr}",
                ("tasks/diabetes_mlp.gin", "methods/baseline.gin"),
                [*bindings, "Runner.select_fraction = 0.5"],
                test=select / 2 if lr == best else 0.9,
                status=status,
            )
            result = json.loads((run / "result.json").read_text())
            said = select if lr == best else 0.8 if status == "finished" else None
            (run / "result.json").write_text(json.dumps({**result, "select": said}))
    table = rows_of(report(tmp_path)[1], "What was chosen, and what it cost")
    name = "base_optimizers.sgd.lr"
    assert [[*row[:1], *row[2:5], *row[6:]] for row in table[2:]] == [
        ["diabetes, split = 0", "baseline", "3", "3", f"{name} = 0.01", ".2000 (1)", ".1000 (1)"],
        ["diabetes, split = 1", "baseline", "3", "3", f"{name} = 0.1", ".4000 (1)", ".2000 (1)"],
        ["diabetes, mean of 2", "baseline", "6", "6", "of each its own",
         ".3000±.1414 (2 of them)", ".1500±.0707 (2 of them)"],
    ]  # fmt: skip


def test_what_is_kept_of_runs_makes_the_same_tables(report, tmp_path):
    """Of those that have ended; a kept run is no damaged one, and one line says what it lacks."""
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    write_methods(runs, 2)
    write_run(runs / "lost", seed=7, status="diverged")
    write_run(runs / "going_on", seed=8, status="unfinished")
    code, text, said = report(runs, "--keep", kept)
    assert code == 0 and f"config.gin and result.json of 9 runs are in {kept}" in said
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"config.gin", "result.json"} and len(files) == 18
    shutil.rmtree(runs / "going_on")
    before, (code, after, warnings) = report(runs)[1], report(kept)
    assert (code, warnings) == (0, "")
    assert "* (a) machine not kept" in after
    assert {run.progress for run in records.read([kept]).runs} == {"not kept"}
    for title in ("Table 1. Methods", "Runs by task and method"):
        assert rows_of(after, title) == rows_of(before, title)
    assert after.count("alone are kept") == 1 and "Folders to look at" not in after


def test_two_runs_are_not_kept_in_one_place(report, tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name / "seed0")
    code, _, error = report(tmp_path / "a", tmp_path / "b", "--keep", tmp_path / "kept")
    assert code == 2 and error.splitlines()[-1].endswith("give a folder above both")


def test_csv_holds_the_raw_numbers(report, root, tmp_path):
    file = tmp_path / "report.csv"
    assert report(root, "--output", file)[0] == 0
    found = list(csv.DictReader(io.StringIO(file.read_text())))
    (adalfl,) = (
        row for row in found
        if (row["table"], row["column"], row["backbone"], row["differs"])
        == ("1", "AdaLFL", "lenet5", "")
    )  # fmt: skip
    assert (adalfl["n"], adalfl["seeds"], adalfl["paper_mean"]) == ("7", "0 1 2 3 4 5 6", "0.0091")
    assert np.mean([float(test) for test in adalfl["tests"].split()]) == float(adalfl["mean"])
    (baseline,) = (row for row in found if row["table"] == "1" and row["column"] == "Baseline")
    assert (baseline["compared_with"], baseline["pairs"]) == ("AdaLFL", "7")
    assert float(baseline["difference"]) == pytest.approx(
        float(adalfl["mean"]) - float(baseline["mean"])
    )
    assert {row["task"] for row in found if not row["table"]} == {"digits"}


def test_latex_is_balanced_and_escaped(report, root, tmp_path):
    file = tmp_path / "report.tex"
    assert report(root, "--output", file)[0] == 0
    text = file.read_text()
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)
    assert not re.search(r"(?<!\\)[_#]", re.sub(r"\\includegraphics.*", "", text))
    assert text.isascii()
    assert not set(text) & set("'|<") - set(r"\ifdim\width>")
    for path in re.findall(r"\\includegraphics.*{(.*)}", text):
        assert (tmp_path / path).read_bytes().startswith(b"%PDF")
    for block in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", text, re.DOTALL):
        rows = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") for line in rows} == {len(block[0]) - 1}


def test_the_scores_are_named_by_letters_that_latex_has():
    assert all(name.translate(formats.LATEX).isascii() for name in other_tables.SCORES.values())


def test_markdown_in_a_file_has_its_figures_beside_it(report, root, tmp_path):
    assert report(root, "--output", tmp_path / "report.md")[0] == 0
    links = re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "report.md").read_text())
    assert "report_figures/table1-train.png" in links
    assert all((tmp_path / link).is_file() for link in links)


def test_html_needs_nothing_but_itself(report, root, tmp_path):
    file = tmp_path / "report.html"
    assert report(root, "--output", file)[0] == 0
    text = file.read_text()
    assert text.count("<svg") >= 5
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<\?xml|<!ENTITY", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text)) <= set(ids)
    assert "(6; 1 diverged)" in text


@pytest.mark.full  # a browser starts
def test_html_opens_in_a_browser(report, root, tmp_path, browser):
    file = tmp_path / "report.html"
    report(root, "--output", file)
    browser.get_log("browser")  # what another test's page has said
    browser.get(file.as_uri())
    assert browser.get_log("browser") == []  # the page's policy refused nothing
    assert len(browser.find_elements("css selector", "table")) == file.read_text().count("<table>")
    drawn = browser.find_elements("css selector", "svg")
    assert len(drawn) == file.read_text().count("<svg")
    assert all(min(svg.size.values()) > 100 for svg in drawn)
    assert "training error rate" in drawn[0].text
    for link in browser.find_elements("css selector", "nav a"):
        link.click()
        heading = browser.find_element("css selector", ":target h2")
        assert heading.text == link.text
    width = "return document.documentElement.scrollWidth <= window.innerWidth"
    assert browser.execute_script(width)


def test_formats_without_a_file_go_to_the_terminal(report, root):
    assert report(root, "--format=csv")[1].startswith("table,task,")
    assert report(root, "--format=latex")[1].startswith("% \\usepackage")
    assert report(root, "--format=html")[1].startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere is no folder: give run folders, or folders of them"),
        (["{empty}"], "no usable run in what was given"),
        (["{root}", "--output={empty}/x.pdf"], "let its name end in .md or .tex or .csv or .html"),
        (["{root}", "--format=md", "--output={empty}/x.html"], "let its name end in .md"),
        (["{root}", "--output={empty}/no/x.md"], "there is no folder {empty}/no"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(report, root, tmp_path, arguments, line):
    code, out, err = report(*(a.format(root=root, empty=tmp_path) for a in arguments))
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith(line.format(empty=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_scores_are_a_table_of_what_all_runs_of_a_group_say(tmp_path):
    for seed, ece in enumerate((0.02, 0.04)):
        run = write_run(tmp_path / f"seed{seed}", seed=seed)
        result = json.loads((run / "result.json").read_text())
        said = {"test_metrics": {"loss": 0.1, "error_rate": 0.01, "ece": ece}}
        (run / "result.json").write_text(json.dumps({**result, **said}))
    table = other_tables.scores(contents(records.read([tmp_path])).groups, "Scores")
    assert table.head[3:] == ("test", "task loss", "calibration error")
    assert [cell.text for cell in table.rows[0][3:]] == [".0100±.0000 (2)", ".1000", ".0300"]
    older = write_run(tmp_path / "older" / "seed9", seed=9)
    assert other_tables.scores(contents(records.read([older])).groups, "Scores") is None


def evaluated(split, *errors, before=0.0):
    """Rows of evaluations every 100 steps of 10 seconds, after an initialisation."""
    return [
        {"phase": "train", "step": 100 * i, "split": split, "error_rate": error,
         "seconds": before + 10.0 * i}
        for i, error in enumerate(errors, 1)
    ]  # fmt: skip


def test_time_to_target_is_until_a_run_is_as_good_as_the_best_baselines_end(tmp_path):
    """The target is (.2 + .3) / 2; the slower baseline ends at .4 and sets none."""
    baseline, learned = DIGITS
    slow = ["base_optimizers.sgd.lr = 1e-3"]
    for name, files, bindings, seed, rows in (
        ("b0", baseline, (), 0, evaluated("valid", 0.9, 0.25, 0.2)),
        ("b1", baseline, (), 1, evaluated("valid", 0.9, 0.8, 0.3)),
        ("slow", baseline, slow, 0, evaluated("valid", 0.9, 0.8, 0.4)),
        ("l0", learned, (), 0, evaluated("valid", 0.25, 0.9, 0.1, before=50.0)),
        ("l1", learned, (), 1, evaluated("valid", 0.9, 0.1, 0.1, before=70.0)),
    ):
        write_run(tmp_path / name, files, bindings, seed, rows=rows)
    diverged = evaluated("valid", 0.9)
    write_run(tmp_path / "l2", learned, seed=2, status="diverged", rows=diverged)
    found = target.table(contents(records.read([tmp_path])).groups)
    cells = {row[2].text.split(" (")[0]: [cell.text for cell in row[3:]] for row in found.rows}
    assert cells == {
        "baseline_lr=0.01": ["valid .2500", "1 of 2", "200", "20"],
        "baseline_lr=0.001": ["valid .2500", "0 of 1", "–", "–"],
        "ml3_relu": ["valid .2500", "2 of 3", "150", "75"],
    }


def test_the_target_is_on_data_that_nobody_trains_on_where_the_baseline_has_them(tmp_path):
    baseline, learned = DIGITS
    both = [*evaluated("valid", 0.1, 0.1), *evaluated("select", 0.4, 0.2)]
    write_run(tmp_path / "b", baseline, rows=both)
    groups = contents(records.read([tmp_path])).groups
    assert target.of_pair(groups).split == "select"
    assert target.table(groups) is None  # nothing to compare
    write_run(
        tmp_path / "l", learned, rows=[*evaluated("valid", 0.0), *evaluated("select", 0.3, 0.2)]
    )
    found = target.table(contents(records.read([tmp_path])).groups)
    assert [[cell.text for cell in row[3:]] for row in found.rows] == [
        ["select .2000", "1 of 1", "200", "20"]
    ] * 2
