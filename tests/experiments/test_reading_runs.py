"""Runs are read from whatever is left of their folders."""

import json

import pytest

from metaloss.errors import ConfigError, RunFolderError
from metaloss.experiments import records, settings
from metaloss.experiments.groups import group
from metaloss.experiments.reports.tables import outcome
from metaloss.experiments.settings import NOT_SET
from tests.small_runs import write_run

BASELINE = ("tasks/mnist_lenet5.gin", "methods/baseline.gin")


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", seed=3, test=0.0125)


def the_problem(folder):
    """The run and the one line about it."""
    found, (line,) = records.read_run(folder)
    return found, line


def test_a_whole_run_is_read_without_a_word(run):
    found, problems = records.read_run(run)
    assert problems == []
    assert (found.task, found.backbone, found.settings.method) == (
        "mnist",
        "lenet5",
        "adalfl_letter",
    )
    assert (found.seed, found.status, found.test) == (3, "finished", 0.0125)
    assert found.machine == "CPU of here, 1 thread"
    assert found.curve("train") == {500: 0.13, 1000: 0.08}


def test_a_run_that_goes_on_says_how_far_it_is(tmp_path):
    found, line = the_problem(write_run(tmp_path / "run", seed=1, status="unfinished"))
    assert line == "unfinished: no result.json, at base step 1000 of 10000"
    assert (found.status, found.test, found.seed, found.metric) == (
        "unfinished", None, 1, "error_rate",
    )  # fmt: skip


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", status="unfinished")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "ste')
    found, problems = records.read_run(folder)
    assert len(found.rows) == 4
    assert problems[1] == "metrics.jsonl: 1 line is damaged and skipped (the first is line 5)"


@pytest.mark.parametrize(
    ("name", "content", "status", "line"),
    [
        ("result.json", '{"seed": 3, "sta', "damaged", "result.json cannot be read: "),
        ("result.json", "[1]", "damaged", "result.json holds no JSON object"),
        ("result.json", '{"seed": 3}', "damaged", "result.json lacks its status or test number"),
        ("meta.json", "", "finished", "meta.json cannot be read: "),
        ("metrics.jsonl", "", "finished", "metrics.jsonl is missing or empty: no learning curve"),
        (
            "metrics.jsonl",
            '{"phase": "train", "step": 1}\n7\nx\n',
            "finished",
            "metrics.jsonl: 2 lines are damaged",
        ),
        ("metrics.jsonl", b"\xff\xfe\n", "finished", "metrics.jsonl: 1 line is damaged"),
    ],
)
def test_a_damaged_file_costs_no_more_than_itself(run, name, content, status, line):
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found, said = the_problem(run)
    assert said.startswith(line)
    assert (found.status, found.seed) == (status, 3)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no config.gin: it cannot be told which run this is; left out"),
        ("Runner.task = @tasks.mn", "config.gin cannot be read; left out: config.gin does not set"),
        ("Runner.task = = 3", "config.gin cannot be read; left out: not a gin value or statement"),
        ("Runner.task = '\xff'", "config.gin cannot be read; left out: 'utf-8' codec"),
    ],
)
def test_without_its_config_a_run_is_left_out(run, content, line):
    path = run / "config.gin"
    path.unlink() if content is None else path.write_bytes(content.encode("latin1"))
    found, said = the_problem(run)
    assert found is None
    assert said.startswith(line)


def test_a_finished_run_without_a_finite_number_counts_as_diverged(run):
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "test": float("nan")}))
    found, line = the_problem(run)
    assert line == "finished, but its test number is nan: counted as diverged"
    assert (found.status, found.test) == ("diverged", None)


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    write_run(tmp_path / "a" / "b" / "seed0", seed=0)
    seed1 = write_run(tmp_path / "a" / "seed1", seed=1)
    (seed1 / "loss").mkdir()  # what a run holds is no run, and no empty folder to speak of
    (tmp_path / "a" / "c").mkdir()
    found = records.read([tmp_path / "a", tmp_path, seed1])
    assert [run.seed for run in found.runs] == [0, 1]
    assert found.problems[0] == f"{tmp_path}/a/c: an empty folder"


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="is no folder: give run folders"):
        records.read([tmp_path / "nowhere"])


def test_settings_of_an_earlier_version_take_todays_defaults(run):
    text = (run / "config.gin").read_text()
    whole = settings.read(text, "config.gin")
    earlier = "".join(line for line in text.splitlines(True) if ".nn.beta" not in line)
    found = settings.read(earlier, "config.gin")
    assert whole.assumed == ()
    assert found.assumed == ("representations.nn.beta",)
    assert found.key == whole.key


def test_settings_are_read_without_running_anything():
    """An import that would fail, and a component of a plugin that is not here."""
    text = (
        "import nowhere.at.all\nRunner.task = @tasks.mars()\nRunner.backbone = @backbones.mlp\n"
        "Runner.method = 'm'\ntasks.mars.rovers = [1, 2]\n"
    )
    found = settings.read(text, "config.gin")
    assert found.component("Runner.task") == "mars"
    assert found.values["tasks.mars.rovers"] == (1, 2)


def test_a_difference_names_what_only_one_side_has(tmp_path):
    both = [
        records.read_run(write_run(tmp_path / str(i), BASELINE, bindings))[0].settings
        for i, bindings in enumerate([(), ["Runner.steps = 500", "Runner.log_every = 7"]])
    ]
    assert both[1].difference(both[0]) == (("Runner.steps", 500),)
    adalfl = records.read_run(write_run(tmp_path / "adalfl"))[0].settings
    difference = dict(both[0].difference(adalfl))
    assert difference["representations.nn.beta"] is NOT_SET
    line = settings.describe(both[0].difference(adalfl))
    assert "Runner.method = 'baseline', " in line
    assert "representations.nn.beta not set" in line


def test_only_runs_of_one_configuration_are_averaged(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"full{seed}", BASELINE, ["Runner.log_every = 10"], seed, 0.01 + seed)
        write_run(tmp_path / f"short{seed}", BASELINE, ["Runner.steps = 5"], seed, 0.5)
    write_run(tmp_path / "watched", BASELINE, ["Runner.evaluate_every = 9"], 2, 2.01)
    write_run(tmp_path / "lost", BASELINE, (), 3, status="diverged")
    groups, lines = group(records.read([tmp_path]).runs)
    assert lines == []
    full, short = sorted(groups, key=lambda g: -len(g.runs))
    assert full.tests == {0: 0.01, 1: 1.01, 2: 2.01}
    assert (full.summary.n, full.summary.mean, full.summary.deviation) == pytest.approx(
        (3, 1.01, 1)
    )
    assert full.failures == {"diverged": 1}
    assert outcome(full) == "1.0100±1.0000 (3; 1 diverged)"
    assert short.tests == {0: 0.5, 1: 0.5}


def test_a_mean_says_which_of_its_runs_fell_back_on_the_task_loss(tmp_path):
    for seed in range(3):
        run = write_run(tmp_path / f"run{seed}", BASELINE, seed=seed, test=0.5)
        found = json.loads((run / "result.json").read_text())
        found["steps_by_task_loss"] = 40 * (seed > 0)
        (run / "result.json").write_text(json.dumps(found))
    ((full,), _) = group(records.read([tmp_path]).runs)
    assert outcome(full) == ".5000±.0000 (3; 2 in part by the task loss)"


def test_of_two_runs_of_a_seed_the_finished_then_the_newer_one_counts(tmp_path):
    write_run(tmp_path / "old", BASELINE, test=0.1, started="2026-01-01")
    new = write_run(tmp_path / "new", BASELINE, test=0.2, started="2026-02-01")
    write_run(tmp_path / "going_on", BASELINE, status="unfinished", started="2026-03-01")
    (found,), lines = group(records.read([tmp_path]).runs)
    assert found.tests == {0: 0.2}
    assert lines == [
        f"{tmp_path}/{name}: configuration and seed of {new} again; left out"
        for name in ("going_on", "old")
    ]


def test_a_config_error_names_the_file():
    with pytest.raises(ConfigError, match=r"here\.gin does not set Runner\.task"):
        settings.read("", "here.gin")
