"""Lower precision for the backbone, full precision for what is learned; memory formats."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metaloss
from metaloss.problem.batches import Batch
from metaloss.runs.precision import cosine, process_left_as_it_was

BF16 = ("--gin_param=Runner.precision = 'bf16'",)


class Watched(metaloss.REPRESENTATIONS["nn"]):
    """Remembers the types of what it is given."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        loss = super().forward(prediction, target)
        self.seen = {prediction.dtype, target.dtype, loss.dtype}
        return loss


def make_learner(**arguments) -> metaloss.AdaLFL:
    torch.manual_seed(0)
    model = metaloss.BACKBONES["lenet5"]((1, 28, 28), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    return metaloss.AdaLFL(model, optimizer, Watched(), F.cross_entropy, **arguments)


def make_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(32, 1, 28, 28, generator=generator),
        torch.randint(10, (32,), generator=generator),
    )


def phi(learner: metaloss.AdaLFL) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learner.problem.phi])


def test_bf16_meta_gradients_point_the_same_way():
    learner = make_learner(autocast=torch.bfloat16)
    before = [p.detach().clone() for p in learner.problem.theta]
    found = cosine(learner.problem, make_batch(1), make_batch(2))
    assert 0.99 < found < 1.0
    assert all(p.equal(b) for p, b in zip(learner.problem.theta, before, strict=True))


def test_float32_meta_gradients_are_equal():
    assert cosine(make_learner().problem, make_batch(1), make_batch(2)) == pytest.approx(1.0)


@pytest.mark.parametrize("engine", ["exact", "unrolled", "logit_difference"])
def test_an_active_autocast_holds_for_the_model_alone(engine):
    from metaloss.meta_optimizers.online_one_step import OnlineOneStep

    learners = [
        make_learner(
            adaptation=OnlineOneStep(1e-3, engine=engine), autocast=torch.bfloat16 if own else None
        )
        for own in (True, False)
    ]
    seen: list[torch.dtype] = []
    for learner in learners:
        layer = learner.problem.model[0]
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    learners[0].step(make_batch(1), make_batch(2))
    with torch.autocast("cpu", torch.bfloat16):
        learners[1].step(make_batch(1), make_batch(2))
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.bfloat16}
    assert all(learner.problem.loss.seen == {torch.float32} for learner in learners)
    assert phi(learners[0]).equal(phi(learners[1]))
    pairs = zip(learners[0].problem.theta, learners[1].problem.theta, strict=True)
    assert all(a.equal(b) for a, b in pairs)


def test_a_run_in_bf16_says_what_it_does_to_the_meta_gradient(train, tmp_path):
    code, stderr = train(
        "--gin_file=quickstart.gin", "--gin_param=Runner.steps = 4", "--strict",
        "--gin_param=meta_optimizers.offline_unrolled.steps = 2", *BF16,
        f"--output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (found,) = [row["precision_cosine"] for row in rows if "precision_cosine" in row]
    assert 0.9 < found < 1.0


def test_channels_last_is_the_same_run_but_for_rounding(train, tmp_path, few_examples):
    for layout in ("contiguous", "channels_last"):
        code, stderr = train(
            "--gin_file=tasks/mnist_lenet5.gin", "--gin_file=methods/adalfl_letter.gin", "--strict",
            "--gin_param=Runner.steps = 3", f"--gin_param=Runner.memory_format = '{layout}'",
            "--gin_param=meta_optimizers.offline_unrolled.steps = 2",
            "--gin_param=tasks.mnist.batch_size = 8", "--gin_param=Runner.log_every = 1",
            f"--data_dir={few_examples}", f"--output_dir={tmp_path / layout}",
        )  # fmt: skip
        assert code == 0, stderr
    losses = [
        [json.loads(line).get("learned_loss") for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.glob("*/metrics.jsonl"))
    ]
    numbers = [[value for value in each if value is not None] for each in losses]
    assert len(numbers[0]) == 5 and numbers[0] == pytest.approx(numbers[1], rel=1e-4)


def test_an_unknown_precision_is_refused(train):
    code, stderr = train("--gin_file=quickstart.gin", "--gin_param=Runner.precision = 'fp16'")
    assert code == 2
    assert "Runner.precision = 'fp16'" in stderr and "'bf16'" in stderr


def test_a_run_leaves_the_random_generators_where_they_stood():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[2]

    before = states()
    with process_left_as_it_was():
        torch.rand(1), random.random(), np.random.rand()
        assert before != states()
    assert before == states()
