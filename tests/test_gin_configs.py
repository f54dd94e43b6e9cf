"""Every shipped gin file builds, leaves nothing unread, and runs two steps, on tiny data."""

import json

import pytest

from metaloss.config import load
from metaloss.gin_files import CONFIG_DIR

TASKS = sorted(path.name for path in (CONFIG_DIR / "tasks").glob("*.gin"))
METHODS = sorted(path.name for path in (CONFIG_DIR / "methods").glob("*.gin"))
OTHERS = sorted(
    path.relative_to(CONFIG_DIR).as_posix()
    for path in CONFIG_DIR.rglob("*.gin")
    if path.parent.name not in ("tasks", "methods")
)
TINY = {
    "Runner.steps": 2,
    "backbones.mlp.hidden": (4,),
    "meta_optimizers.offline_unrolled.steps": 2,
    "offline/meta_optimizers.meta_lr.steps": 2,
    **{f"tasks.{name}.batch_size": 8 for name in ("california", "crime", "diabetes", "digits")},
    **{f"tasks.{name}.batch_size": 8 for name in ("mnist", "arrays", "table", "image_folder")},
}


@pytest.fixture
def run(train, tmp_path, few_examples):
    """Runs gin files with those of the tiny overrides that they read; -> the result."""

    def run(files):
        parsed = load(files)
        assert parsed.unread == ()
        read = {line.split(" = ")[0] for line in parsed.text.splitlines()}
        overrides = [f"--gin_param={k} = {v}" for k, v in TINY.items() if k in read]
        assert len(overrides) >= 2
        code, stderr = train(
            *(f"--gin_file={file}" for file in files), *overrides, "--strict",
            f"--data_dir={few_examples}", f"--output_dir={tmp_path / 'run'}",
        )  # fmt: skip
        assert code == 0, stderr
        return json.loads((tmp_path / "run" / "result.json").read_text())

    return run


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_with_every_method(run, task, method):
    result = run([f"tasks/{task}", f"methods/{method}"])
    assert result["status"] == "finished"
    assert f"{result['task']}_{result['backbone']}.gin" == task
    assert f"{result['method']}.gin" == method
    assert (result["steps"], result["init_steps"]) == (2, 0 if method == "baseline.gin" else 2)
    assert 0 <= result["test"] < 1000


@pytest.mark.parametrize("file", OTHERS)
def test_every_other_file_runs(run, file):
    assert run([file])["status"] == "finished"


OWN_DATA = sorted(f"own_data/{path.name}" for path in (CONFIG_DIR / "own_data").glob("*.gin"))


@pytest.mark.parametrize("file", [*(f"tasks/{task}" for task in TASKS), *OWN_DATA])
def test_a_task_file_says_how_to_run_it(file):
    text = (CONFIG_DIR / file).read_text()
    assert f"python tools/train.py --gin_file=gin_configs/{file}" in text
