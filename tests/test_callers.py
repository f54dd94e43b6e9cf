"""Callers' mistakes: one clear line each, where torch or Python says something raw, or nothing."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import metaloss
from metaloss.errors import InputError
from metaloss.meta_optimizers.online_one_step import OnlineOneStep

X = torch.linspace(-1, 1, 32).view(8, 4)
Y = torch.arange(8) % 3


def make(model=None, loss=None, adaptation=None, **arguments):
    model = model or nn.Linear(4, 3)
    loss = loss or metaloss.REPRESENTATIONS["nn"](hidden=(4,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return metaloss.AdaLFL(model, optimizer, loss, adaptation=adaptation, **arguments)


def within_inference_mode(function):
    with torch.inference_mode():
        return function()


class WritesInputs(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

    def forward(self, x):
        return super().forward(x.mul_(2))


class Gives(nn.Linear):
    """A layer whose outputs go through a function."""

    def __init__(self, function):
        super().__init__(4, 3)
        self.function = function

    def forward(self, x):
        return self.function(super().forward(x))


BUILT = {
    "on_unhealthy = 'tasl_loss': give one of": {"on_unhealthy": "tasl_loss"},
    "tabulate = 'allways': give one of auto, always, never; did you mean": {"tabulate": "allways"},
    "autocast = 'bf16': give a dtype": {"autocast": "bf16"},
    "adapter = 'pairs': give a function": {"adapter": "pairs"},
    "link is a function, and this is the text 'values'": {"link": "values"},
    "outputs is a function, and this is the text 'logits'": {"outputs": "logits"},
    "gradient_transform is a function, and this is the text 'clip'": {"gradient_transform": "clip"},
    "adaptation is a meta-optimizer, and this is <class": {"adaptation": OnlineOneStep},
    r"task_loss takes \(outputs, labels\), and the function gaussian_nll_loss does not": {
        "task_loss": F.gaussian_nll_loss
    },
    r"takes \(prediction, target\), and Linear does not": {"loss": nn.Linear(3, 1)},
    "the model is on the device meta": {"model": nn.Linear(4, 3, device="meta")},
    "the learned loss is on meta and the model on cpu": {
        "loss": metaloss.REPRESENTATIONS["nn"]().to("meta")
    },
    "gradients underflow in float16": {"model": nn.Linear(4, 3).half()},
    r"'weight' was made under torch.inference_mode\(\)": {
        "model": within_inference_mode(lambda: nn.Linear(4, 3))
    },
}


@pytest.mark.parametrize("message", BUILT)
def test_what_a_learner_is_not_made_of(message):
    with pytest.raises(InputError, match=message):
        make(**BUILT[message])


BCE = F.binary_cross_entropy_with_logits
STEPPED = {
    "labels are torch.int32, and cross_entropy takes class indices": (Y.int(), {}),
    "labels are torch.bool, and cross_entropy takes class indices": (Y > 0, {}),
    r"labels \[8\] are numbers, and cross_entropy takes class indices": (Y.float(), {}),
    "labels are torch.bool, and binary_cross_entropy_with_logits takes numbers": (
        torch.zeros(8, 3).bool(), {"task_loss": BCE},
    ),
    r"task_loss gives one number, a tensor, and this one gives a Tensor \[8\]": (
        Y, {"task_loss": nn.CrossEntropyLoss(reduction="none")},
    ),
    "task_loss gives one number, a tensor, and this one gives a NoneType": (
        Y, {"task_loss": lambda outputs, labels: None},
    ),
    "the task loss does not depend on the model's parameters": (
        Y, {"task_loss": lambda outputs, labels: F.cross_entropy(outputs, labels).detach()},
    ),
    "the model's outputs do not depend on a trained parameter": (
        Y, {"model": Gives(lambda outputs: outputs.detach())},
    ),
    "the model's outputs are torch.int64, which have no gradient": (
        Y, {"model": Gives(lambda outputs: outputs.argmax(-1, keepdim=True))},
    ),
    r"a link gives \(prediction, target\), or .*, and this one gives a tuple of 1": (
        Y, {"link": lambda outputs, labels: (outputs,)},
    ),
    "this one writes into those that it gets": (
        Y, {"gradient_transform": lambda gradients: [g.mul_(2) for g in gradients]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", STEPPED)
def test_what_no_step_is_made_of(message):
    labels, arguments = STEPPED[message]
    learner = make(**arguments)
    with pytest.raises(InputError, match=message):
        learner.step((X, labels))


def test_batches_that_are_at_an_end_of_no_class_or_of_inference_mode():
    with pytest.raises(InputError, match="the function that gives the batches is at its end"):
        make().step(iter([]).__next__)
    with pytest.raises(InputError, match="there is a label 3, and the model has 3 outputs"):
        make().step((X, Y), (X, Y + 1))
    with pytest.raises(InputError, match="has one output, and the softmax of one is 1 whatever it"):
        make(nn.Linear(X.shape[1], 1)).step((X, torch.zeros_like(Y)))
    with pytest.raises(InputError, match="inputs of this batch were made under torch.inference"):
        make().step((within_inference_mode(lambda: X * 1), Y))


def test_inputs_that_a_model_writes_into_are_refused_and_left_as_they_were():
    inputs = X.clone()
    with pytest.raises(InputError, match=r"writes into its inputs .* as by x.mul_"):
        make(WritesInputs()).step((inputs, Y))
    assert inputs.equal(X)


def test_an_adaptation_is_of_one_learner():
    adaptation = OnlineOneStep()
    first, second = make(adaptation=adaptation), make(adaptation=adaptation)
    second.step((X, Y))
    with pytest.raises(InputError, match="adaptation was given to another learner since"):
        first.step((X, Y))


def test_hooks_on_the_steps_of_all_optimizers_are_refused():
    handle = register_optimizer_step_pre_hook(lambda *arguments: None)
    try:
        with pytest.raises(InputError, match="step hooks"):
            make()
    finally:
        handle.remove()


@pytest.mark.parametrize("how", ["default", "dense", "tabulated", "chunked", "exported"])
def test_where_no_row_counts_nothing_moves_as_with_torch(monkeypatch, how):
    nothing = torch.full((8,), -100)
    if how == "exported":
        outputs = torch.randn(8, 3, requires_grad=True)
        loss = metaloss.LearnedLoss(metaloss.REPRESENTATIONS["nn"](hidden=(4,)))(outputs, nothing)
        (slope,) = torch.autograd.grad(loss, outputs)
        assert loss.isnan()
        assert not slope.any()
        return
    arguments = {"dense": {"link": metaloss.links.Dense()}, "tabulated": {"tabulate": "always"}}
    if how == "chunked":
        monkeypatch.setattr("metaloss.problem.problem.MOST_AT_ONCE", 1)
    learner = make(meta_lr=1e-2, **arguments.get(how, {}))
    before = copy.deepcopy(learner.problem.model)
    result = learner.step((X, nothing), (X, Y))
    assert result.skipped
    assert all(map(torch.equal, before.parameters(), learner.problem.model.parameters()))
    assert not learner.step((X, Y)).skipped


def test_learners_in_threads_do_not_meet():
    """Torch counts the levels of forward mode for all threads together."""

    def train(learner):
        for _ in range(10):
            learner.step((X, Y))
        done.append(learner)

    torch.manual_seed(0)
    learners = [copy.deepcopy(learner) for learner in [make(meta_lr=1e-2)] * 3]
    done: list[metaloss.AdaLFL] = []
    threads = [threading.Thread(target=train, args=(learner,)) for learner in learners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 3
    first, *others = (learner.problem for learner in learners)
    for other in others:
        assert all(map(torch.equal, first.phi, other.phi))
        assert all(map(torch.equal, first.theta, other.theta))
