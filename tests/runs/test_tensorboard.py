"""TensorBoard's event files, read back; and the command that shows several runs."""

from __future__ import annotations

import io
import json
import shutil
import statistics

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from metaloss.experiments import records
from metaloss.experiments.reports import board
from metaloss.machine import sealed
from metaloss.runs.callbacks.parts.numbers import GROUPS, bindings, scalars
from metaloss.runs.metrics import read_metrics
from metaloss.runs.run import Run
from tests.helpers import Killed, differences, drawn, tool, train

KEEP_ALL = {"scalars": 0, "images": 0, "tensors": 0, "histograms": 0}


def read(folder):
    return EventAccumulator(str(folder), size_guidance=KEEP_ALL).Reload()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with drawn():
        assert train(folder, extra=("Runner.figures = 3",)) == 0
    return folder


@pytest.fixture(
    params=[
        pytest.param(2, marks=pytest.mark.full),
        pytest.param(11, marks=pytest.mark.full),
        16,
        pytest.param(22, marks=pytest.mark.full),
    ],
    ids="killed after {} steps of both phases".format,
)
def resumed(request, tmp_path, monkeypatch):
    """A run that was killed and resumed; its first checkpoint is at 4 steps of a phase."""
    extra = ("Runner.figures = 3",)
    after_step = Run._record

    def die(self, phase, step, *rest):
        after_step(self, phase, step, *rest)
        if self.state.init_steps + self.state.steps == request.param:
            self.callbacks.close()  # what a writer's thread would have written by then
            raise Killed

    monkeypatch.setattr(Run, "_record", die)
    with pytest.raises(Killed):
        train(tmp_path / "run", extra=extra)
    monkeypatch.undo()
    train(tmp_path / "run", extra=extra, resume=True)
    return tmp_path / "run"


def expected_scalars(folder, phase):
    """What metrics.jsonl says: numbers by tag and step."""
    found = {}
    for row in read_metrics(folder / "metrics.jsonl"):
        if row["phase"] == phase:
            for tag, value in scalars(row).items():
                found.setdefault(tag, {})[row["step"]] = value
    return found


def assert_a_view_of_the_metrics(folder):
    for phase, events in (
        ("train", read(folder)),
        ("initialization", read(folder / "initialization")),
    ):
        expected = expected_scalars(folder, phase)
        tags = set(events.Tags()["scalars"]) - {"time/steps_per_second"}
        assert tags == set(expected)
        for tag in tags:
            seen = [(event.step, event.value) for event in events.Scalars(tag)]
            steps = [step for step, _ in seen]
            assert steps == sorted(set(steps)), tag  # each once
            assert dict(seen) == pytest.approx(expected[tag], rel=1e-6), tag


def test_every_number_is_there_once(run):
    assert_a_view_of_the_metrics(run)
    tags = read(run).Tags()["scalars"]
    groups = {"train", "valid", "test", "meta", "loss", "health", "time"}
    assert {tag.split("/")[0] for tag in tags} == groups
    indices = {f"loss/{name}" for name, group in GROUPS.items() if group == "loss"}
    assert indices <= set(tags) and "meta/effective_base_lr" in tags
    assert [event.step for event in read(run).Scalars("loss/scale")] == [0, 5, 10, 14]


@pytest.mark.pictures
def test_every_number_is_there_once_after_a_resume(resumed):
    assert_a_view_of_the_metrics(resumed)
    assert_everything_is_there_once(read(resumed))


def test_everything_else_is_there_once(run):
    assert_everything_is_there_once(read(run))


def assert_everything_is_there_once(events):
    tags = events.Tags()
    assert [image.step for image in events.Images("loss/curves")] == [5, 9, 14]
    for image in events.Images("loss/curves"):
        assert Image.open(io.BytesIO(image.encoded_image_string)).size == (
            image.width,
            image.height,
        )
    (animation,) = events.Images("loss/animation")
    gif = Image.open(io.BytesIO(animation.encoded_image_string))
    assert (gif.format, gif.size) == ("GIF", (animation.width, animation.height))
    assert gif.n_frames > 3 and animation.step == 14
    for tag in ("loss/phi", "loss/per_example"):
        assert [histogram.step for histogram in events.Histograms(tag)] == [5, 9, 14]
    assert events.Histograms("loss/phi")[0].histogram_value.num == 1720
    assert {"config/text_summary", "loss/warnings/text_summary"} <= set(tags["tensors"])
    assert len(events.Tensors("config/text_summary")) == 1
    assert len(events.Tensors("custom_scalars__config__")) == 1


def test_the_layout_names_tags_that_are_there(run):
    (event,) = read(run).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    tags = {f"{tag}$" for tag in read(run).Tags()["scalars"]}
    named = {tag for chart in category.chart for tag in chart.multiline.tag}
    probed = {f"health/{name}$" for name in ("cosine", "ratio", "task_loss", "constant_loss")}
    # A run as short as this is not probed, and one without a split "select" evaluates on none.
    assert named - probed - {"select/error_rate$"} <= tags
    assert {"valid/error_rate$", "loss/scale$", "meta/effective_base_lr$"} <= named


def test_hparams_are_of_the_run_itself(run):
    """No run of its own and no second scalar, as SummaryWriter.add_hparams would make."""
    assert sorted(path.parent for path in run.rglob("events*")) == [run, run / "initialization"]
    content = read(run).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    started = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert started.hparams["base_optimizers.sgd.lr"].number_value == 0.01
    assert started.hparams["Runner.method"].string_value == "adalfl"
    assert started.hparams["base_optimizers.sgd.nesterov"].bool_value is False
    content = read(run).summary_metadata["_hparams_/experiment"].plugin_data.content
    (metric,) = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert metric.name.tag == "test/error_rate"


def test_bindings_are_plain():
    text = "# a comment\nA.b = 1e-3\nA.c = @d()\nA.e = (1, 2)\nA.f = 'x = y'\nA.g = None\n\n"
    assert bindings(text) == {
        "A.b": 1e-3, "A.c": "@d()", "A.e": "(1, 2)", "A.f": "x = y", "A.g": "None",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["baseline", "meta_lr"])
def test_a_run_without_a_learned_loss_has_its_learning_rate(method, tmp_path):
    extra = (
        (
            "meta_optimizers.offline_unrolled.steps = 3",
            "meta_optimizers.offline_unrolled.scale_steps = 2",
        )
        if method == "meta_lr"
        else ()
    )
    assert train(tmp_path / "run", method, extra) == 0
    events = read(tmp_path / "run")
    rates = [event.value for event in events.Scalars("meta/effective_base_lr")]
    assert len(rates) == 4 and (len(set(rates)) > 1) == (method == "meta_lr")
    assert events.Tags()["images"] == []


@pytest.mark.full
@pytest.mark.pictures
def test_looking_at_a_run_does_not_change_it(run, tmp_path):
    """θ, φ, optimizers and streams are the same whether a loss is inspected often or never."""
    extra = ("Runner.evaluate_every = 1", "Runner.figures = 14", "Runner.samples = 14")
    train(tmp_path / "run", extra=extra)
    one, other = (sealed.load(path / "checkpoint.pt")["state"] for path in (run, tmp_path / "run"))
    for part in ("model", "learner", "streams", "global"):
        assert differences(one[part], other[part]) == []


def test_phi_is_sampled_early_and_at_equal_distances(run):
    from metaloss import load_loss

    # 14 steps in 4 parts, and powers of 4
    assert load_loss(run).trajectory.steps.tolist() == [0, 1, 4, 7, 10, 14]


def test_the_loss_can_be_used_before_the_run_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "finish", lambda self: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        train(tmp_path / "run")
    from metaloss import load_loss

    load_loss(tmp_path / "run")
    assert load_loss(tmp_path / "run").trajectory.steps.tolist()[-1] == 14
    assert records.read_whole(tmp_path / "run").status == "unfinished"


# --- several runs ---


@pytest.fixture
def seeds(run, tmp_path):
    """The folder of three runs: two seeds of one method, whose numbers differ, and a single one."""
    for seed, shift in ((0, 0.0), (1, 0.2)):
        copy = tmp_path / "runs" / f"seed{seed}"
        shutil.copytree(run, copy)
        rows = read_metrics(copy / "metrics.jsonl")
        for row in rows:
            if "error_rate" in row:
                row["error_rate"] = row["step"] / 100 + shift
        if seed == 1:
            rows = [{**row, "loss": None} if row["step"] == 10 else row for row in rows]
        (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in ("meta.json", "result.json"):
            content = json.loads((copy / name).read_text())
            (copy / name).write_text(json.dumps({**content, "seed": seed}))
    single = tmp_path / "runs" / "other"
    shutil.copytree(run, single)
    for name in ("meta.json", "result.json"):
        content = json.loads((single / name).read_text())
        (single / name).write_text(json.dumps({**content, "method": "other"}))
    config = (single / "config.gin").read_text()
    assert "Runner.method = 'adalfl'" in config
    (single / "config.gin").write_text(config.replace("'adalfl'", "'other'"))
    return tmp_path / "runs"


@pytest.fixture
def show(capsys):
    def command(*arguments):
        code = tool("board").main([str(argument) for argument in arguments])
        return code, capsys.readouterr()

    return command


def test_a_group_of_seeds_is_its_mean_with_a_margin(seeds, show, tmp_path):
    out = tmp_path / "board"
    for _ in range(2):  # the second time over the first
        code, said = show(seeds, f"--output_dir={out}", "--write_only")
        assert code == 0
        assert said.out == "_summary/digits_mlp/adalfl: mean of 2 seeds\n"
    assert (out / "digits_mlp/adalfl/seed1").resolve() == seeds / "seed1"
    assert (out / "digits_mlp/other/seed0").resolve() == seeds / "other"
    (written,) = (out / "_summary").rglob("events*")
    events = read(written.parent)
    spread = statistics.stdev([0.0, 0.2])
    for suffix, offset in (("", 0.0), ("_lower", -spread), ("_upper", spread)):
        seen = [(event.step, event.value) for event in events.Scalars(f"valid/error_rate{suffix}")]
        expected = [(step, step / 100 + 0.1 + offset) for step in (5, 10, 14)]
        assert seen == [(step, pytest.approx(value)) for step, value in expected]
    # null in one of the seeds: no mean
    assert [event.step for event in events.Scalars("valid/loss")] == [5, 14]
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: chart.margin.series[0] for chart in layout.category[0].chart}
    assert charts["valid/error_rate"].lower == "valid/error_rate_lower"


def test_a_damaged_run_is_left_out_of_the_board(seeds, show, tmp_path):
    (seeds / "seed0" / "metrics.jsonl").write_bytes(b"\xff\n")
    (seeds / "other" / "result.json").unlink()
    out = tmp_path / "board"
    code, said = show(seeds, f"--output_dir={out}", "--write_only")
    assert code == 0
    assert said.err == f"warning: left out: {seeds}/seed0/metrics.jsonl is damaged in line 1\n"
    assert said.out == f"{seeds}/other: unfinished, step 14\n"
    assert not (out / "digits_mlp/adalfl/seed0").exists()
    for method in ("seed1", "other"):
        shutil.rmtree(seeds / method)
    code, said = show(seeds, f"--output_dir={out}", "--write_only")
    assert code == 2 and said.err.endswith("error: there is no run to show\n")
    code, said = show(tmp_path / "nowhere", f"--output_dir={out}", "--write_only")
    assert code == 2 and "holds no run" in said.err


def test_a_board_takes_nothing_away(seeds, show, tmp_path):
    kept = tmp_path / "board" / "digits_mlp" / "adalfl" / "seed0" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    code, said = show(seeds, f"--output_dir={tmp_path / 'board'}", "--write_only")
    assert code == 2 and "cannot be made a log directory" in said.err
    assert kept.exists()


def test_equal_seeds_are_counted_once(run):
    record = records.read_whole(run)
    assert board.groups([record, record]) == {}
