"""The core without the other packages: an own loop, a run on arrays; what else asks, says so."""

import subprocess
import sys

from metaloss.errors import EXTRAS
from tests.helpers import ROOT

CODE = """
import sys
for package in {packages}:
    sys.modules[package] = None  # as if it were not installed
import numpy, torch, metaloss
from metaloss import __main__ as command

model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
learner = metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["nn"]())
learner.step((torch.randn(4, 3), torch.randint(2, (4,))))

x = numpy.random.default_rng(0).normal(size=(40, 3))
numpy.savez("own.npz", x_train=x, y_train=x[:, 0] > 0, x_test=x, y_test=x[:, 0] > 0)
bindings = [
    "Runner.task = @tasks.arrays()", "tasks.arrays.path = 'own.npz'", "Runner.steps = 2",
    "Runner.backbone = @backbones.mlp", "backbones.mlp.hidden = (4,)",
    "Runner.base_optimizer = @base_optimizers.sgd", "base_optimizers.sgd.lr = 0.1",
    "meta_optimizers.task_fit.steps = 1", "meta_optimizers.offline_unrolled.steps = 1",
    "meta_optimizers.offline_unrolled.scale_steps = 2",
]
words = [f"--gin_param={{binding}}" for binding in bindings]
run = ["--gin_file=methods/adalfl.gin", "--data_dir=.", "--device=cpu", "--output_dir=run"]
assert command.main(["train", *run, *words]) == 0
assert command.main(["evaluate", "run", "--data_dir=.", "--device=cpu"]) == 0
open("own.csv", "w").write("a,b\\n1,2\\n")
for words in (["report", "run"], ["init", "own.csv"], ["board", "run"]):
    assert command.main(words) == 2
"""


def test_the_core_needs_no_other_package_and_what_does_names_its_extra(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(packages=[*EXTRAS])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "finished, arrays + mlp, adalfl" in done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: this needs matplotlib, which is not installed: install metaloss[reports]",
        "error: this needs polars, which is not installed: install metaloss[tables]",
        "error: this needs tensorboard, which is not installed: install metaloss[tensorboard]",
    ]
    missing = "matplotlib, which is not installed: install metaloss[reports]"
    assert f"without figures (tools/figures.py run draws them): this needs {missing}" in done.stderr


def test_every_extra_is_one_that_can_be_installed():
    setup = (ROOT / "setup.py").read_text()
    for package, extra in EXTRAS.items():
        brought = {"PIL": "torchvision", "sklearn": "scikit-learn"}.get(package, package)
        (listed,) = (line for line in setup.splitlines() if line.startswith(f"{extra.upper()} = ["))
        assert f'"{brought}' in listed
