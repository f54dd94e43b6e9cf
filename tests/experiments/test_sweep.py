"""Sweeps: idempotent cells, failures that stop nobody, several sweepers, launchers, time left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from metaloss import config
from metaloss.errors import ConfigError, InputError
from metaloss.experiments.launchers.base import LAUNCHERS, Job, Launcher
from metaloss.experiments.launchers.local import Local
from metaloss.experiments.launchers.parts.process import LoggedProcess
from metaloss.experiments.sweeps import cells, commands
from metaloss.experiments.sweeps.standing import Standing, last_lines, seconds_left, standing
from metaloss.machine import lock
from metaloss.runs import checkpoint
from metaloss.runs.folder import RunFolder
from tests.helpers import ROOT, tool

SPEC = """
Sweep.tasks = ['tasks/digits_mlp.gin']
Sweep.methods = ['methods/baseline.gin', ['methods/adalfl_letter.gin', 'ablations/cheap.gin']]
Sweep.seeds = 2
Sweep.bindings = [
    'Runner.steps = 4', 'Runner.figures = 0', 'meta_optimizers.offline_unrolled.steps = 2',
    'meta_optimizers.offline_unrolled.scale_steps = 2',
]
Sweep.parameters = {'base_optimizers.sgd.lr': [0.1, 0.01]}
"""

#: In the place of tools/train.py: a run in milliseconds, which does as the file "orders" has it.
FAKE = """
import json, sys, time
from pathlib import Path
flags = dict(word.lstrip('-').split('=', 1) for word in sys.argv[1:] if '=' in word)
seeds = [word.split('=')[1] for word in sys.argv[1:] if word.startswith('--seed=')]
folders = [Path(flags['output_dir'])]
if len(seeds) > 1:
    folders = [folders[0] / f'seed{seed}' for seed in seeds]
with Path(__file__).with_name('started').open('a') as started:
    started.write('+'.join(folder.name for folder in folders) + '\\n')
orders = json.loads(Path(__file__).with_name('orders').read_text()).get(seeds[-1], {})
time.sleep(orders.get('sleep', 0))
print('what went wrong' if 'code' in orders else 'fine')
for folder in folders:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.gin').write_text('')
    if 'code' not in orders:
        result = {'status': 'finished', 'metric': 'error_rate', 'test': 0.25, 'seconds': 2.0}
        (folder / 'result.json').write_text(json.dumps(result))
sys.exit(orders.get('code', 0))
"""


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.gin"
    path.write_text(SPEC)
    return path


@pytest.fixture
def fake(tmp_path):
    """A site whose runs are fake; `fake.orders` says what they do, `fake.started()` which began."""
    (tmp_path / "fake.py").write_text(FAKE)

    class Site(commands.Site):
        def orders(self, **orders):
            given = {name.removeprefix("seed"): order for name, order in orders.items()}
            (tmp_path / "orders").write_text(json.dumps(given))

        def started(self):
            file = tmp_path / "started"
            return sorted(file.read_text().split()) if file.exists() else []

    site = Site(tmp_path / "runs", tmp_path / "fake.py")
    site.orders()
    return site


def grid(seeds, **more):
    methods = more.pop("methods", ["methods/baseline.gin"])
    return cells.cells(cells.Sweep(["tasks/digits_mlp.gin"], methods, seeds, **more))


def run(site, seeds, launcher=None, **more):
    lines = []
    well = commands.run(grid(seeds), launcher or Local(parallel=2), site, lines.append, **more)
    return well, lines


# --- what a spec means ---


def test_a_spec_is_the_product_of_its_lists(spec):
    launcher, found = cells.load([spec])
    assert isinstance(launcher, Local)
    assert [cell.seed for cell in found] == [0] * 4 + [1] * 4
    assert len({cell.group for cell in found}) == 4
    first, *_, last = found[:4]
    assert first.arguments() == [
        "--gin_file=tasks/digits_mlp.gin",
        "--gin_file=methods/baseline.gin",
        "--gin_param=Runner.steps = 4",
        "--gin_param=Runner.figures = 0",
        "--gin_param=base_optimizers.sgd.lr = 0.1",
    ]  # a binding that the baseline does not read is not given to it
    assert "--gin_param=meta_optimizers.offline_unrolled.steps = 2" in last.arguments()
    assert (last.steps, last.init_steps, first.init_steps) == (4, 2, 0)


def test_the_folder_is_named_by_the_whole_configuration():
    group = grid(1)[0].group
    text = config.load(["tasks/digits_mlp.gin", "methods/baseline.gin"]).text
    assert re.fullmatch(r"digits_mlp/baseline-[0-9a-f]{8}", group)
    assert grid(1, bindings=["Runner.log_every = 7"])[0].group != group
    same = [line for line in text.splitlines() if line.startswith("Runner.log_every")]
    assert grid(1, bindings=same)[0].group == group


def test_equal_runs_of_several_specs_are_one(spec, tmp_path):
    other = tmp_path / "other.gin"
    other.write_text(f"include '{spec}'\nSweep.seeds = [1, 2]\n")
    found = cells.load([spec, other])[1]
    assert [cell.seed for cell in found] == [0] * 4 + [1] * 4 + [2] * 4


def test_a_method_that_does_not_have_a_parameter_is_run_once():
    found = grid(
        1,
        methods=["methods/baseline.gin", "methods/adalfl_letter.gin"],
        parameters={"meta_optimizers.online_one_step.meta_lr": [1e-4, 1e-5]},
    )
    assert [cell.group.partition("-")[0] for cell in found] == [
        "digits_mlp/baseline",
        "digits_mlp/adalfl_letter_meta_lr=0.0001",
        "digits_mlp/adalfl_letter_meta_lr=1e",
    ]


@pytest.fixture
def two_losses(tmp_path):
    """A spec, and beside it the files that it names: one method with two losses."""
    for name in ("focal", "poly"):
        text = f"include 'methods/ml3.gin'\nRunner.representation = @representations.{name}()\n"
        (tmp_path / f"{name}.gin").write_text(text)
    (tmp_path / "own.gin").write_text(
        "Sweep.tasks = ['tasks/digits_mlp.gin']\nSweep.seeds = 1\n"
        "Sweep.methods = ['methods/baseline.gin', 'focal.gin', 'poly.gin']\n"
    )
    return tmp_path / "own.gin"


def test_files_stand_beside_the_spec_and_variants_are_called_by_what_differs(two_losses):
    found = cells.load([two_losses])[1]
    names = [cell.group.rpartition("-")[0] for cell in found]
    assert names == ["digits_mlp/baseline", "digits_mlp/focal", "digits_mlp/poly"]
    assert found[1].files == ("tasks/digits_mlp.gin", str(two_losses.parent / "focal.gin"))
    larger = ["Sweep.parameters = {'Runner.steps': [5, 6]}"]
    names = [cell.group.rpartition("-")[0] for cell in cells.load([two_losses], larger)[1]]
    assert names[0] == "digits_mlp/baseline_steps=5"
    assert names[2:4] == ["digits_mlp/ml3_focal_steps=5", "digits_mlp/ml3_focal_steps=6"]


def test_folders_of_another_name_are_found_by_their_hash(two_losses, tmp_path):
    found = cells.load([two_losses])[1]
    before = tmp_path / "digits_mlp" / f"ml3-{found[1].hash}"  # as earlier versions called it
    before.mkdir(parents=True)
    there = cells.where_they_are(found, tmp_path)
    assert there[1].group == f"digits_mlp/{before.name}"
    assert (there[0], there[2]) == (found[0], found[2])
    (tmp_path / found[1].group).mkdir()
    assert cells.where_they_are(found, tmp_path)[1].group == found[1].group


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Sweep.bindings = ['meta_optimizers.meta_lr.every = 3']",
         "no run of the sweep reads 'meta_optimizers.meta_lr.every = 3'"),
        ("Sweep.seeds = 0", "Sweep.seeds = 0: give an integer of at least 1 or "
         "a list, each item an integer of at least 0 · in --gin_param "
         "'Sweep.seeds = 0'"),
        ("Sweep.parameters = {'Runner.steps': 3}",
         "Sweep.parameters = {'Runner.steps': 3}: give a list of values for "
         "'Runner.steps' · in --gin_param "
         "\"Sweep.parameters = {'Runner.steps': 3}\""),
        ("Sweep.method = []", "Sweep has no parameter 'method'; did you mean 'methods'?; it takes: "
         "tasks, methods, seeds, bindings, parameters, launcher, seeds_at_once · in --gin_param "
         "'Sweep.method = []'"),
        ("Sweep.tasks = ['tasks/digit_mlp.gin']",
         "no gin file 'tasks/digit_mlp.gin'; did you mean 'tasks/digits_mlp.gin'?"),
        ("Sweep.launcher = @launchers.loca()", "no 'loca' in launchers; did you mean 'local'? · "
         "known: local, ray, slurm · in --gin_param 'Sweep.launcher = @launchers.loca()'"),
    ],
)  # fmt: skip
def test_a_spec_that_cannot_be_used(spec, line, message):
    with pytest.raises(ConfigError) as error:
        cells.load([spec], [line])
    assert str(error.value) == message


def test_a_file_of_another_kind_says_who_takes_it(spec):
    with pytest.raises(ConfigError, match=r"a Search is what tools/sweep\.py search takes"):
        cells.load(["search/digits.gin"])
    with pytest.raises(ConfigError, match=r"no Sweep: a Runner is what tools/train\.py .* takes"):
        cells.load(["tasks/digits_mlp.gin"])
    with pytest.raises(ConfigError, match=r"no Runner: a Sweep is what tools/sweep\.py .* takes"):
        config.load([spec])


def test_only_and_limit():
    found = grid(12)
    assert [c.seed for c in cells.choose(found, ["*/seed1"], None)] == [1]
    assert [c.seed for c in cells.choose(found, ["*/seed1*"], 2)] == [1, 10]
    with pytest.raises(ConfigError, match=r"--only 'x' matches no run; groups: digits_mlp/base"):
        cells.choose(found, ["x"], None)


def test_the_papers_tables():
    counts = {name: len(cells.load([f"paper/{name}.gin"])[1]) for name in (
        "table1", "table2", "table3", "table4", "table5", "table6", "table7", "cpu",
    )}  # fmt: skip
    assert counts == {"table1": 480, "table2": 480, "table3": 60, "table4": 360, "table5": 240,
                      "table6": 60, "table7": 40, "cpu": 72}  # fmt: skip
    together = cells.load(["paper/table1.gin", "paper/table6.gin", "paper/table7.gin"])[1]
    assert len(together) == 480 + 50 + 20  # the columns that are AdaLFL itself are Table 1's


# --- carrying it out ---


def test_a_second_run_starts_nothing(fake):
    assert run(fake, 3)[0]
    assert fake.started() == ["seed0", "seed1", "seed2"]
    well, lines = run(fake, 3)
    assert (well, lines) == (True, ["nothing to start: 3 runs: 3 finished"])
    assert run(fake, 4)[0]  # the gap alone
    assert fake.started() == ["seed0", "seed1", "seed2", "seed3"]


def test_a_failed_run_stops_no_other_and_waits_for_retry(fake):
    fake.orders(seed1={"code": 2})
    well, lines = run(fake, 3)
    assert not well
    assert sum("finished" in line for line in lines) == 2
    name = grid(2)[1].name
    told = f"failed      {name}: what went wrong (exit code 2)\n    {sys.executable} "
    assert any(told in line for line in lines)
    shown = commands.status(grid(3), Local(parallel=2), fake)
    assert told in shown
    assert shown.splitlines()[-1] == "3 runs: 2 finished, 1 failed"
    fake.orders()
    assert run(fake, 3) == (True, ["nothing to start: 3 runs: 2 finished, 1 failed"])
    assert run(fake, 3, retry=True)[0]
    assert fake.started().count("seed1") == 2
    assert commands.status(grid(3), Local(), fake).splitlines()[-1] == "3 runs: 3 finished"


def test_several_seeds_of_a_configuration_are_one_process(fake):
    several = grid(5, seeds_at_once=2)
    fake.orders(seed3={"code": 2})
    lines = []
    assert not commands.run(several, Local(parallel=1), fake, lines.append)
    assert fake.started() == ["seed0+seed1", "seed2+seed3", "seed4"]
    assert [line.split(" ", 3)[0] for line in lines] == [f"[{i}/5," for i in range(1, 6)]
    for cell in several[2:4]:  # the log of one process tells of both
        found = standing(cell, fake.root)
        assert (found.state, found.detail) == ("failed", "what went wrong (exit code 2)")
    fake.orders()
    assert commands.run(several, Local(parallel=1), fake, lines.append, retry=True)
    assert fake.started() == ["seed0+seed1", "seed2+seed3", "seed2+seed3", "seed4"]
    shown = commands.plan(several, Local(parallel=1), fake)
    assert "--seed=0 --seed=1 --output_dir=" in shown


def test_what_takes_one_seed_at_a_time_goes_on_to():
    names = ("baseline", "ml3", "meta_lr", "adalfl")
    made = grid(1, seeds_at_once=10, methods=[f"methods/{name}.gin" for name in names])
    assert [cell.at_once for cell in made] == [10, 10, 1, 10]


def test_only_runs_of_one_step_are_one_process(fake, monkeypatch):
    steps = {"seed0": 4, "seed1": 8, "seed2": 4, "seed3": 0}
    monkeypatch.setattr(
        checkpoint, "positions", lambda folder: [(0, steps[folder.path.name]), (0, 0)]
    )
    parts = fake.together(grid(4, seeds_at_once=4))
    assert [[cell.seed for cell in part] for part in parts] == [[0, 2], [1], [3]]


@pytest.mark.parametrize("code", [130, 143])
def test_a_run_that_was_stopped_goes_on_at_the_next(fake, code):
    fake.orders(seed0={"code": code})
    assert not run(fake, 1)[0]
    assert standing(grid(1)[0], fake.root).state == "interrupted"
    fake.orders()
    assert run(fake, 1)[0]


def test_two_sweepers_never_run_the_same_cell(fake):
    fake.orders(**{f"seed{i}": {"sleep": 0.2} for i in range(8)})
    sweepers = [
        threading.Thread(target=lambda: commands.run(grid(8), Locking(), fake, lambda line: None))
        for _ in range(2)
    ]
    for sweeper in sweepers:
        sweeper.start()
    for sweeper in sweepers:
        sweeper.join()
    assert fake.started() == [f"seed{i}" for i in range(8)]


class Locking(Launcher):
    """One job at a time, each under its folder's lock, as tools/train.py has it."""

    threads = parallel = 1

    def launch(self, jobs):
        for job in jobs:
            folder = RunFolder(Path(job.log).parent)
            folder.path.mkdir(parents=True, exist_ok=True)
            try:
                with lock.holding(folder.lock):
                    if not folder.result.exists():
                        yield job, LoggedProcess(job.command, job.log).wait()
            except lock.HeldError:
                yield job, 2


def test_what_others_run_is_running_and_is_left_alone(fake):
    cell = grid(1)[0]
    folder = RunFolder(fake.root / cell.name)
    folder.path.mkdir(parents=True)
    row = {"phase": "train", "step": 250, "seconds": 10.0}
    folder.metrics.write_text(json.dumps(row) + "\n")
    with lock.holding(folder.lock):
        found = standing(cell, fake.root)
        assert found.state == "running"
        assert found.expected == pytest.approx(40.0)
        assert f"step 250/1000, process {os.getpid()} on " in found.detail
        assert run(fake, 1) == (True, ["nothing to start: 1 runs: 1 running"])
    assert standing(cell, fake.root).state == "waiting"
    assert fake.started() == []


@pytest.mark.full  # processes that sleep
@pytest.mark.parametrize(
    ("arguments", "visible", "expected"),
    [
        ({"gpus": 2}, None, ["0", "1"]),
        ({"gpus": [3, "GPU-ab"], "parallel": 4}, None, ["3", "GPU-ab"]),
        ({"gpus": 2, "parallel": 3}, "5,7,9", ["5", "7"]),
        ({"parallel": 2}, "5,7", ["5,7"]),
    ],
)
def test_local_runs_are_dealt_out_to_gpus(arguments, visible, expected, tmp_path, monkeypatch):
    """Each sees one, which is none of a run that goes on while another is free."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    code = (
        "import os, time; print(time.time()); time.sleep(0.3);"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], time.time())"
    )
    launcher = LAUNCHERS["local"](**arguments)
    job = partial(Job, command=(sys.executable, "-c", code))
    jobs = [job(str(i), log=str(tmp_path / f"{i}.txt")) for i in range(3 * launcher.parallel)]
    assert sorted(code for _, code in launcher.launch(jobs)) == [0] * len(jobs)
    runs = []
    for one in jobs:
        line, begun, ended = Path(one.log).read_text().splitlines()[:3]
        gpu, end = ended.split()
        assert (f" CUDA_VISIBLE_DEVICES={gpu} " in line) == ("gpus" in arguments)
        runs.append((gpu, float(begun), float(end)))
    assert sorted({gpu for gpu, *_ in runs}) == expected
    most = -(-launcher.parallel // len(expected))
    for gpu, begun, _ in runs:  # each begins beside fewer than the others can hold
        assert sum(g == gpu and b <= begun < e for g, b, e in runs) <= most


def test_gpus_that_are_not_there(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert LAUNCHERS["local"](gpus=1).parallel == 1
    line = "launchers.local.gpus = 2: give at most 1: CUDA_VISIBLE_DEVICES is '5'"
    with pytest.raises(ConfigError, match=re.escape(line)):
        LAUNCHERS["local"](gpus=2)
    with pytest.raises(ConfigError, match="a list that names each GPU once"):
        LAUNCHERS["local"](gpus=[1, 1])


def test_sigterm_reaches_the_run(tmp_path):
    code = (
        "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(143));"
        "print('ready', flush=True); time.sleep(60)"
    )
    path = tmp_path / "log.txt"
    process = LoggedProcess([sys.executable, "-c", code], str(path))
    wait_for(lambda: "ready" in last_lines(path))
    assert process.stop() == 143
    assert last_lines(path)[-1] == "exit code 143"
    process._process.wait()  # it has been waited for behind Popen's back


@pytest.mark.full
def test_a_preempted_slurm_job_saves_itself_and_goes_on(tmp_path):
    """By submitit's local executor: its warning is a real signal, and it starts the job again."""
    import submitit

    from metaloss.experiments.launchers.parts.process import Requeued

    code = (
        "import pathlib, signal, sys, time; p = pathlib.Path(sys.argv[1]);"
        "signal.signal(15, lambda *a: (p.write_text('saved'), sys.exit(143)));"
        "print('ready', flush=True);"
        "p.exists() or time.sleep(60)"
    )
    log = tmp_path / "log.txt"
    words = (sys.executable, "-c", code, str(tmp_path / "state"))
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=60)
    job = executor.submit(Requeued(words, str(log)))
    wait_for(lambda: "ready" in last_lines(log) or job.done())
    controller = job._process.pid
    tasks = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(tasks[0]), signal.SIGUSR2)  # as Slurm does before it takes a node away
    assert job.result() == 0
    ends = [line for line in log.read_text().splitlines() if line.startswith("exit code")]
    assert ends == ["exit code 143", "exit code 0"]


def test_launchers_say_what_they_lack(monkeypatch, tmp_path):
    from metaloss.experiments.launchers.ray import Ray
    from metaloss.experiments.launchers.slurm import Slurm

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"launchers.slurm needs submitit: install metaloss\[sl"):
        list(Slurm().launch(iter(())))
    with pytest.raises(InputError, match=r"launchers.ray needs Ray: install metaloss\[ray\]"):
        list(Ray().launch(iter(())))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"launchers.slurm: "):
        list(Slurm().launch(iter([Job("a", ("true",), "log.txt")])))


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_result_without_a_number_is_one(fake):
    (cell,) = grid(1)
    folder = RunFolder(fake.root / cell.name)
    folder.path.mkdir(parents=True)
    folder.result.write_text(json.dumps({"status": "diverged", "metric": "mse", "test": None}))
    assert standing(cell, fake.root) == Standing(cell, "diverged", 0.0, 0.0)
    folder.result.write_text("{")  # cut short: nothing is known of it
    assert standing(cell, fake.root).state == "waiting"


# --- time left ---


def test_time_left():
    one, two = grid(2)
    other = grid(1, bindings=["Runner.steps = 9"])[0]
    found = [
        Standing(one, "finished", 10.0, 10.0),
        Standing(two, "waiting"),  # as long as its sister: 10
        Standing(other, "running", 5.0, 40.0),  # 35 more
    ]
    assert seconds_left(found, parallel=1) == pytest.approx(45.0)
    assert seconds_left(found, parallel=3) == pytest.approx(15.0)
    assert seconds_left([Standing(one, "waiting")], parallel=1) is None
    unknown = Standing(grid(1, bindings=["Runner.steps = 8"])[0], "waiting")
    assert seconds_left([found[0], unknown], parallel=1) == pytest.approx(10.0)


# --- the tool ---


@pytest.mark.full  # processes that each import torch and train
def test_a_real_sweep(spec, tmp_path, capsys, monkeypatch):
    main = tool("sweep").main
    spec.write_text(SPEC.replace("[0.1, 0.01]", "[0.1]"))
    rest = [str(spec), f"--output_dir={tmp_path / 'runs'}", "--only=*/baseline-*/seed0"]
    assert main(["plan", *rest]) == 0
    plan = capsys.readouterr().out
    assert "tools/train.py --gin_file=tasks/digits_mlp.gin" in plan
    *_, counted, expected, whole = plan.splitlines()
    assert counted == "1 runs: 1 waiting"
    assert re.match(r"digits_mlp/baseline-\w+: 1 x expected: ", expected)
    assert re.match(r"1 runs that wait: about \d+ s one after another, ", whole)
    assert main(["report", *rest]) == 2
    assert "no run of this sweep is in" in capsys.readouterr().err
    assert main(["run", *rest]) == 0
    capsys.readouterr()
    assert main(["status", *rest]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 runs: 1 finished"
    for folder in (tmp_path / "runs").glob("*/*/*"):
        assert json.loads((folder / "meta.json").read_text())["threads"] == 1
    assert main(["report", *rest]) == 0
    assert "1 run of 1 configuration: 1 finished" in capsys.readouterr().out
    assert main(["status", "nothing.gin"]) == 2
    assert capsys.readouterr().err.startswith("error: no gin file 'nothing.gin'")
    assert main(["status", *rest, "--launcher=slum"]) == 2
    assert "no 'slum' in launchers; did you mean 'slurm'?" in capsys.readouterr().err


@pytest.mark.full
def test_a_real_sweep_of_several_seeds_at_once(spec, tmp_path):
    main = tool("sweep").main
    rest = [str(spec), f"--output_dir={tmp_path / 'runs'}", "--only=*/baseline_*"]
    assert main(["run", *rest, "--limit=4", "--gin_param=Sweep.seeds_at_once = 2"]) == 0
    metas = list((tmp_path / "runs").glob("*/*/*/meta.json"))
    assert len(metas) == 4
    for path in metas:
        assert json.loads(path.read_text())["seeds_at_once"] == [0, 1]


@pytest.mark.full
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_a_sweep_that_is_stopped_lets_its_runs_save_themselves(spec, tmp_path, number, code):
    spec.write_text(SPEC.replace("steps = 4", "steps = 1000000"))
    words = ["run", str(spec), f"--output_dir={tmp_path / 'runs'}", "--only=*/baseline_*/seed0"]
    sweeper = subprocess.Popen(
        [sys.executable, ROOT / "tools/sweep.py", *words],
        start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    folders = []
    while len(folders) < 2:
        time.sleep(0.1)
        folders = list((tmp_path / "runs").glob("*/*/*/metrics.jsonl"))
        assert sweeper.poll() is None
    time.sleep(0.5)
    if number == signal.SIGINT:
        os.killpg(sweeper.pid, number)  # as a terminal does
    else:
        sweeper.send_signal(number)
    _, stderr = sweeper.communicate(timeout=180)
    assert sweeper.returncode == code
    assert stderr.splitlines()[-1].startswith("stopped: what had begun is saved")
    for folder in (path.parent for path in folders):
        assert (folder / "checkpoint.pt").is_file()
        assert last_lines(folder / "log.txt")[-1] == f"exit code {code}"


def test_a_run_that_begins_as_the_signal_comes_is_stopped_too(tmp_path, monkeypatch):
    """The handler passes the signal on to the runs that it sees; this one is not among them yet."""

    class Beginning(LoggedProcess):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)  # in a thread: meanwhile the main one handles the signal

    monkeypatch.setattr("metaloss.experiments.launchers.local.LoggedProcess", Beginning)
    sleep = (sys.executable, "-c", "import time; time.sleep(60)")
    launched = Local(parallel=1).launch([Job("one", sleep, str(tmp_path / "log.txt"))])
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(launched)
    assert time.monotonic() - started < 40


@pytest.mark.full  # processes that import torch and train
def test_the_status_of_a_sweep_with_a_failed_run_is_1_and_says_why(tmp_path, capsys):
    """A run that has no data fails by itself, and a plan cannot say what it would cost."""
    spec = tmp_path / "spec.gin"
    spec.write_text(
        "Sweep.tasks = ['own_data/table.gin']\nSweep.methods = ['methods/baseline.gin']\n"
        "Sweep.seeds = 1\n"
    )
    main = tool("sweep").main
    rest = [str(spec), f"--output_dir={tmp_path / 'runs'}", f"--data_dir={tmp_path}"]
    assert main(["plan", *rest]) == 0
    why = f"no file {tmp_path}/houses.csv: set tasks.table.path, absolute or inside --data_dir"
    assert capsys.readouterr().out.splitlines()[-1].endswith(f": not known: {why}")
    assert main(["run", *rest]) == 1
    capsys.readouterr()
    assert main(["status", *rest]) == 1
    failed, command, counted = capsys.readouterr().out.splitlines()
    assert failed.endswith(f"seed0: {why} (exit code 2)")
    assert command.startswith(f"    {sys.executable} ")
    assert counted == "1 runs: 1 failed"
