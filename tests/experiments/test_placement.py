"""A configuration of the paper goes to its cell, another one to a line that says what differs."""

from dataclasses import replace

import pytest

from metaloss.experiments import records
from metaloss.experiments.groups import group
from metaloss.experiments.reports import paper, placement
from metaloss.experiments.settings import describe
from tests.small_runs import write_methods, write_run

#: Table 3 with its base model exchanged for one that is small.
PAPER = paper.load()
SMALL = replace(
    PAPER,
    tables=tuple(
        replace(table, values={"mnist_lenet5": table.values["cifar10_allcnn"]})
        if table.number == 3
        else table
        for table in PAPER.tables
    ),
)


def filled(root, known=SMALL):
    groups, _ = group(records.read([root]).runs)
    return placement.fill(known, groups)


def cells(tables):
    """Every cell that has runs: (table, pair, column, what differs)."""
    return {
        (one.table.number, line.pair.name, result.column.title, describe(line.difference))
        for one in tables
        for line in one.lines
        for result in line.results
        if result.group is not None
    }


def test_the_papers_numbers_are_those_of_its_tables():
    """Spot checks against the paper's text, one of each table."""
    rows = {table.number: table.values for table in PAPER.tables}
    assert list(rows) == [1, 3, 4, 5, 6, 7]
    assert rows[1]["mnist_lenet5"][3] == paper.Value(0.0091, 0.0004)
    assert rows[3]["cifar10_allcnn"][4] == paper.Value(0.0974, 0.0061)
    assert rows[4]["crime_mlp"][0] is None
    assert rows[5]["diabetes_mlp"][0] == paper.Value(0.0481, 0.0020)
    assert rows[6]["mnist_lenet5"][0] == paper.Value(0.0191, 0.0070)
    assert rows[7]["diabetes_mlp"] == (paper.Value(0.0468, 0.0016), paper.Value(0.0420, 0.0014))
    assert PAPER.hours["cifar10_allcnn"] == (1.41, 1.72, 5.39, 5.53)
    for table in PAPER.tables:
        assert all(len(row) == len(table.columns) for row in table.values.values())
        assert set(table.values) <= {pair.name for pair in PAPER.pairs}


def test_every_column_is_a_configuration_of_its_own():
    pair = next(pair for pair in PAPER.pairs if pair.name == "mnist_lenet5")
    for table in PAPER.tables:
        keys = [paper.settings_of(pair, column).key for column in table.columns]
        assert len(set(keys)) == len(keys), table.number


@pytest.mark.parametrize("table", SMALL.tables, ids=lambda table: f"table{table.number}")
def test_a_columns_own_runs_stand_in_it(table, tmp_path):
    """As the paper's ablations are run: task file, method file, the column's bindings."""
    name = "mnist_lenet5" if "mnist_lenet5" in table.values else "crime_mlp"
    pair = next(pair for pair in SMALL.pairs if pair.name == name)
    for i, column in enumerate(table.columns):
        word = [f"Runner.method = 'ablation_{i}'"] if column.bindings else []
        files = (pair.file, f"methods/{column.method}.gin")
        write_run(tmp_path / str(i), files, [*column.bindings, *word])
    found = cells(filled(tmp_path)[0])
    assert {(table.number, name, column.title, "") for column in table.columns} <= found
    assert all(not difference for *_, difference in found)


def test_runs_of_a_table_do_not_open_those_that_share_a_column(tmp_path):
    tables, rest = filled(write_methods(tmp_path, 1))
    assert [one.table.number for one in tables] == [1]
    assert rest == []
    assert len(tables[0].lines) == len(SMALL.pairs)


def test_other_settings_get_their_own_line_with_what_they_can_be_compared_with(tmp_path):
    write_methods(tmp_path / "full", 2)
    softplus = ["representations.nn.output = 'softplus'"]
    write_run(tmp_path / "softplus", bindings=softplus, test=0.5)
    write_methods(tmp_path / "short", 1, ["Runner.steps = 500"])
    ((table,), _) = filled(tmp_path)
    lines = {
        describe(line.difference): [len(r.group.runs) if r.group else 0 for r in line.results]
        for line in table.lines
        if line.pair.name == "mnist_lenet5"
    }
    assert lines == {
        "": [2, 2, 2, 2],
        "Runner.steps = 500": [1, 1, 1, 1],
        # The baseline and MetaLR have no loss network; there is no ML³ with this one.
        "representations.nn.output = 'softplus'": [2, 0, 2, 1],
    }
    assert all(r.paper is None for line in table.lines if line.difference for r in line.results)


def test_a_meta_lr_that_the_paper_has_not_tried_stays_in_table_1(tmp_path):
    write_run(tmp_path / "run", bindings=["meta_optimizers.online_one_step.meta_lr = 5e-5"])
    assert cells(filled(tmp_path)[0]) == {
        (1, "mnist_lenet5", "AdaLFL", "meta_optimizers.online_one_step.meta_lr = 5e-05")
    }


def test_another_combination_and_another_task_have_no_place(tmp_path):
    write_run(
        tmp_path / "mine", bindings=["Runner.method = 'mine'", "Runner.initialization = None"]
    )
    write_run(tmp_path / "digits", ("tasks/digits_mlp.gin", "methods/baseline.gin"))
    tables, rest = filled(tmp_path)
    assert tables == []
    assert [(one.pair, one.method) for one in rest] == [
        (("digits", "mlp"), "baseline"),
        (("mnist", "lenet5"), "mine"),
    ]


def test_the_focus_is_compared_with_each_other_method_once(tmp_path):
    write_methods(tmp_path / "full", 8)
    write_run(tmp_path / "other", bindings=["representations.nn.beta = 5.0"], test=0.5)
    ((table,), _) = filled(tmp_path)
    main, other = (line for line in table.lines if line.pair.name == "mnist_lenet5")
    found = [result.comparison for result in main.results]
    assert found[3] is None
    assert [comparison.family for comparison in found[:3]] == [3, 3, 3]
    assert all(comparison.difference < 0 for comparison in found[:3])
    assert found[0].wilcoxon == pytest.approx(3 * 2 / 2**8)
    assert [r.comparison.n if r.comparison else None for r in other.results] == [1, None, 1, None]
