"""Stacks: several learners' steps at once are the steps that each makes alone."""

from __future__ import annotations

import copy
import itertools
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaloss
from metaloss.backbones import BACKBONES
from metaloss.engines.exact import Exact
from metaloss.errors import InputError, UnsupportedModelError
from metaloss.machine import seeding
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.meta_optimizers.parts.by_gradient import FIRST
from metaloss.stack import Stack
from tests.helpers import thinned

SEEDS, STEPS, BATCH, CLASSES = 3, 20, 6, 4


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Residual(nn.Module):
    """A small ResNet: convolutions with BatchNorm, and one residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.block(x)).relu().mean((2, 3)))


class Tokens(nn.Module):
    """What forward mode has rules for: an embedding, attention, and a part without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        with torch.no_grad():
            scale = self.head.weight.square().sum()
        return self.head((scale * self.attend(x, x, x, need_weights=False)[0]).mean(1))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, CLASSES)), (5,)),
    "lenet5": (lambda: BACKBONES["lenet5"]((1, 16, 16), CLASSES), (1, 16, 16)),
    "resnet": (Residual, (1, 6, 6)),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    # Where a gradient is 0 but for rounding, Adam divides that rounding by ε.
    "adam": lambda p: torch.optim.Adam(p, 1e-2, eps=1e-3),
    "fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, initial_accumulator_value=0.1),
}


def learners(model="mlp", optimizer="sgd", loss="nn", adapt=lambda: None, **options):
    """One for each seed; `adapt` makes each one's adaptation."""
    made = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        built = MODELS[model][0]() if isinstance(model, str) else model()
        representation = None if loss is None else metaloss.REPRESENTATIONS[loss]()
        recipe = OPTIMIZERS.get(optimizer) or partial(metaloss.BASE_OPTIMIZERS[optimizer], lr=1e-2)
        made.append(
            metaloss.AdaLFL(
                built,
                recipe(built.parameters()),
                representation,
                **{"meta_lr": 1e-3, "steps": STEPS, "adaptation": adapt(), **options},
            )
        )
    return made


def batches(shape, steps=STEPS, seed=0):
    """Training and validation batches, [SEEDS, BATCH, ...], of so many steps."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield [
            (
                torch.randn(SEEDS, BATCH, *shape, generator=generator),
                torch.randint(CLASSES, (SEEDS, BATCH), generator=generator),
            )
            for _ in range(2)
        ]


def of(seed, batch):
    return tuple(part[seed] for part in batch)


def flat(tree):
    """The numbers of a state, in order; with the names of what is no number."""
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in [key, *flat(value)]]
    if isinstance(tree, list):
        return [leaf for value in tree for leaf in flat(value)]
    return [tree]


def assert_alike(one, other, places=1e-10):
    """Two learners have the same θ, buffers, φ and states, up to rounding."""

    def state(learner):
        problem = learner.problem
        parts = [problem.model.state_dict(), problem.optimizer.state_dict(), learner.state_dict()]
        return flat(parts)

    for x, y in zip(state(one), state(other), strict=True):
        if torch.is_tensor(x):
            torch.testing.assert_close(x, y, rtol=places, atol=places)
        else:
            assert x == y


def step_each(learners, shape, seed):
    """Two steps of each by itself."""
    for train, valid in batches(shape, 2, seed):
        for index, learner in enumerate(learners):
            learner.step(of(index, train), of(index, valid))


def step_all(alone, stack, shape, steps=STEPS):
    """So many steps of each; their last results."""
    for train, valid in batches(shape, steps):
        results = [
            learner.step(of(seed, train), of(seed, valid)) for seed, learner in enumerate(alone)
        ]
        stacked = stack.step(train, valid)
    for one, other in zip(results, stacked.members(), strict=True):
        for name, value in vars(one).items():
            if value is None:
                assert getattr(other, name) is None
            else:
                torch.testing.assert_close(value, getattr(other, name), rtol=1e-9, atol=1e-10)


# A loss of four meta-steps fails its trial, alone as in the stack: that is compared, too.
@pytest.mark.filterwarnings("ignore::metaloss.errors.HealthWarning")
@pytest.mark.parametrize(
    ("model", "method", "optimizer"),
    thinned(
        itertools.product(MODELS, ["baseline", "ml3", "adalfl"], ["sgd", "adam"]),
        keep=lambda model, method, _: method != "ml3" or model == "mlp",
    ),
)
def test_a_stack_makes_the_steps_that_each_makes_alone(model, method, optimizer):
    options = {"loss": None if method == "baseline" else "nn"}
    options["meta_lr"] = 1e-3 if method == "adalfl" else None
    alone, stacked = (learners(model, optimizer, **options) for _ in range(2))
    stack = Stack(stacked)
    shape = MODELS[model][1]
    if method == "ml3":
        initialize(alone, stack, shape)
    step_all(alone, stack, shape)
    for one, other in zip(alone, stacked, strict=True):
        assert_alike(one, other)


def initialize(alone, stack, shape):
    """Offline learning over two base steps a time; θ is drawn by each seed's own stream."""

    def redrawing(learner, stream):
        def redraw():
            with seeding.drawing_from(stream):
                for module in learner.problem.model.modules():
                    if hasattr(module, "reset_parameters"):
                        module.reset_parameters()

        return redraw

    torch.manual_seed(7)
    for seed, learner in enumerate(alone):
        train, valid = zip(*batches(shape, 8), strict=True)
        learner.initialize(
            [of(seed, batch) for batch in train],
            [of(seed, batch) for batch in valid],
            steps=4,
            inner_steps=2,
            fit_steps=5,
            trial_steps=3,
            redraw=redrawing(learner, seeding.stream(seed, "theta")),
        )
    train, valid = zip(*batches(shape, 8), strict=True)
    redraws = [
        redrawing(learner, seeding.stream(seed, "theta"))
        for seed, learner in enumerate(stack.learners)
    ]
    torch.manual_seed(7)
    stack.initialize(
        train, valid, steps=4, inner_steps=2, fit_steps=5, trial_steps=3, redraw=redraws
    )


@pytest.mark.parametrize("loss", ["taylor", "step_conditioned", "focal"])
def test_any_representation_and_a_schedule_of_meta_steps(loss):
    alone, stacked = (
        learners(loss=loss, adapt=lambda: OnlineOneStep(1e-3, every=3, start=2)) for _ in range(2)
    )
    step_all(alone, Stack(stacked), (5,))
    for one, other in zip(alone, stacked, strict=True):
        assert_alike(one, other)


#: Rprop's step does not feel its gradient.
EVERY = sorted({*metaloss.BASE_OPTIMIZERS} - {*OPTIMIZERS, "rprop"})


class Biased(metaloss.REPRESENTATIONS["nn"]):
    """Derived from a loss that takes whole stacks; this one does not."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((CLASSES,), 0.3))

    def forward(self, prediction, target):
        return super().forward(prediction + self.bias, target)


def test_a_loss_derived_from_one_that_takes_stacks(monkeypatch):
    known = {**metaloss.REPRESENTATIONS, "biased": Biased}
    monkeypatch.setattr(metaloss, "REPRESENTATIONS", known)
    alone, stacked = (learners(loss="biased") for _ in range(2))
    step_all(alone, Stack(stacked), (5,), 4)
    for one, other in zip(alone, stacked, strict=True):
        assert_alike(one, other)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *EVERY])
def test_a_stack_goes_on_from_where_its_learners_stand(optimizer):
    """Before it they step alone, and after it too, by the states that they were left."""
    alone, stacked = (learners(optimizer=optimizer) for _ in range(2))
    step_each(alone, (5,), seed=1)
    step_each(stacked, (5,), seed=1)
    step_all(alone, Stack(stacked), (5,), 3)
    after = learners(optimizer=optimizer)
    for learner, other in zip(after, stacked, strict=True):
        problem = learner.problem
        problem.model.load_state_dict(copy.deepcopy(other.problem.model.state_dict()))
        problem.optimizer.load_state_dict(copy.deepcopy(other.problem.optimizer.state_dict()))
        learner.load_state_dict(copy.deepcopy(other.state_dict()))
    step_each(alone, (5,), seed=2)
    step_each(after, (5,), seed=2)
    for one, other in zip(alone, after, strict=True):
        assert_alike(one, other)


def test_one_whose_numbers_are_not_finite_leaves_the_others_alone():
    alone, stacked = (learners() for _ in range(2))
    stack = Stack(stacked)
    step_all(alone, stack, (5,), 3)
    before = copy.deepcopy(stacked[1].state_dict())
    for train, valid in batches((5,), 4, seed=1):
        train[0][1] = torch.inf
        for seed in (0, 2):
            alone[seed].step(of(seed, train), of(seed, valid))
        result = stack.step(train, valid)
        assert result.skipped.tolist() == [False, True, False]
        assert result.learned_loss.isfinite().tolist() == [True, False, True]
    for seed in (0, 2):
        assert_alike(alone[seed], stacked[seed])
    assert all(p.isnan().any() for p in stacked[1].problem.theta)
    after = stacked[1].state_dict()
    for part in ("loss", "adaptation"):  # but for what counts steps
        for x, y in zip(flat(before[part]), flat(after[part]), strict=True):
            assert not torch.is_tensor(x) or x.equal(y)


@pytest.mark.parametrize("bound", [{"clip_norm": 1e-3}, {"trust_radius": 1e-3}])
def test_what_bounds_a_descent_is_each_ones_own(bound):
    def descent(groups):
        return metaloss.DESCENTS["adam"](groups, **bound)

    alone, stacked = (
        learners(adapt=lambda: OnlineOneStep(1e-2, descent=descent)) for _ in range(2)
    )
    step_all(alone, Stack(stacked), (5,), 5)
    for one, other in zip(alone, stacked, strict=True):
        assert_alike(one, other)


@pytest.mark.parametrize("kind", ["dropout", "tokens", "resnet"])
def test_the_exact_engine_on_a_stack_is_double_backward(kind):
    """With dropout, embeddings, attention and BatchNorm too."""
    torch.manual_seed(0)
    x = torch.randn(SEEDS, BATCH, 5)
    if kind == "tokens":
        x = torch.randint(5, (SEEDS, BATCH, 3))
    if kind == "resnet":
        x = torch.randn(SEEDS, BATCH, 1, 6, 6)
    y = torch.randint(CLASSES, (SEEDS, BATCH))
    model = {
        "dropout": lambda: nn.Sequential(nn.Linear(5, 9), nn.Dropout(), nn.Linear(9, CLASSES)),
        "tokens": Tokens,
        "resnet": Residual,
    }[kind]
    found = []
    for engine in ("exact", "unrolled"):
        stack = Stack(learners(model, adapt=lambda: OnlineOneStep(1e-3, engine=engine)))  # noqa: B023
        torch.manual_seed(1)
        result = stack.step((x, y), (x, y))
        assert not result.skipped.any()
        found.append([*result.gradient_norm, *stack.problem.phi, *stack.problem.theta])
    for exact, unrolled in zip(*found, strict=True):
        torch.testing.assert_close(exact, unrolled, rtol=1e-9, atol=1e-12)


def test_dropout_masks_differ_between_seeds():
    stack = Stack(learners(lambda: nn.Sequential(nn.Linear(5, CLASSES), nn.Dropout())))
    dropped = stack.problem.model(torch.ones(SEEDS, BATCH, 5)) == 0
    assert not dropped[0].equal(dropped[1])


def test_learners_share_the_memory_of_their_stack():
    """What is written into a learner's model or loss is there in the stack's, and back."""
    made = learners("resnet")
    stack = Stack(made)
    with torch.no_grad():
        for parameter in made[1].problem.model.parameters():
            parameter.fill_(7.0)
    assert all((p[1] == 7).all() and (p[0] != 7).any() for p in stack.problem.theta)
    state = made[0].problem.model.state_dict()
    ((train, valid),) = batches((1, 6, 6), 1)
    stack.step(train, valid)
    statistics = [name for name in state if "running" in name or "tracked" in name]
    own = dict(made[0].problem.model.named_buffers())
    stacked = dict(stack.problem.model.module.named_buffers())
    assert statistics
    for name in statistics:
        assert own[name].equal(stacked[name][0])
    assert own["stem.1.num_batches_tracked"] == 1


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(5, 5), nn.Linear(5, 5)
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.other(self.one(x).tanh())[:, :CLASSES]

    alone, stacked = (learners(Tied) for _ in range(2))
    step_all(alone, Stack(stacked), (5,), 4)
    for one, other in zip(alone, stacked, strict=True):
        assert_alike(one, other)
        assert other.problem.model.one.weight is other.problem.model.other.weight


def test_a_stack_saves_what_its_learners_save_and_goes_on_from_it():
    stack, other = Stack(learners()), Stack(learners())
    for train, valid in batches((5,), 3):
        stack.step(train, valid)
    for mine, theirs in zip(other.learners, stack.learners, strict=True):
        mine.problem.model.load_state_dict(theirs.problem.model.state_dict())
        mine.problem.optimizer.load_state_dict(theirs.problem.optimizer.state_dict())
    other.load_state_dict(copy.deepcopy(stack.state_dict()))
    for train, valid in batches((5,), 2, seed=1):
        stack.step(train, valid)
        other.step(train, valid)
    for mine, theirs in zip(other.learners, stack.learners, strict=True):
        assert_alike(mine, theirs, 0.0)


class Looping(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


class Counting(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes = self.passes + 1
        return super().forward(x)


def several_kinds():
    made = learners()
    made[2] = learners("lenet5")[2]
    return made


def widths():
    return [*learners()[:2], learners(lambda: nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 4)))[2]]


def different_optimizers():
    return [*learners()[:2], learners(optimizer="adam")[2]]


def different_steps():
    made = learners()
    for train, valid in batches((5,), 1):
        made[2].step(of(2, train), of(2, valid))
    return made


def holding_the_model():
    made = learners(loss=None, meta_lr=None)
    for learner in made:
        loss = metaloss.REPRESENTATIONS["nn"]()
        loss.model = learner.problem.model
        learner.problem.loss = loss
    return made


def with_rate():
    rate = metaloss.RATES["raw"]
    return learners(adapt=lambda: metaloss.META_OPTIMIZERS["meta_lr"](rate=rate()))


REFUSED = {
    "none": (list, "a stack is of at least one learner; there is none"),
    "models": (
        several_kinds,
        "model 2 is built otherwise than model 0 (0.weight): a stack is of equal ones",
    ),
    "widths": (
        widths,
        "model 2 is built otherwise than model 0 (0.weight): a stack is of equal ones",
    ),
    "other optimizers": (
        different_optimizers,
        "the base optimizers are not built alike: a stack is of equal ones",
    ),
    "steps": (different_steps, "the learners of a stack stand at different steps: 0, 0, 1"),
    "task losses": (
        lambda: [*learners()[:2], learners(task_loss=F.mse_loss)[2]],
        "learners 0 and 2 have another task loss: a stack is of equal ones",
    ),
    "one adaptation": (
        lambda: learners(adaptation=OnlineOneStep()),
        "learners of a stack have each an adaptation of its own, and these share one",
    ),
    "adapter": (
        lambda: learners(adapter=tuple),
        "a stack takes batches (inputs, labels) [S, batch, ...], no `adapter`",
    ),
    "transform": (
        lambda: learners(gradient_transform=metaloss.ClipNorm(1.0)),
        "a stack takes no gradient_transform: a norm would be that of all seeds together",
    ),
    "loss": (
        holding_the_model,
        "the learned loss holds the model, and a stack keeps the two apart",
    ),
    "padding": (
        lambda: learners(lambda: nn.Embedding(5, CLASSES, padding_idx=1)),
        "the model has Embedding(5, 4, padding_idx=1), and torch.func.vmap lets the padding rows "
        "of all members but one move: train these seeds one at a time",
    ),
    "rate": (
        with_rate,
        "a learned learning rate is one number of the optimizer, which a stack has once: train "
        "these seeds one at a time",
    ),
    "engine": (
        lambda: learners(adapt=lambda: OnlineOneStep(engine="logit_difference")),
        "engine 'logit_difference' mixes the numbers of a vector, which would be of all seeds "
        "together: train them one at a time",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_stacked_is_refused(case):
    build, message = REFUSED[case]
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Stack(build())


@pytest.mark.parametrize("engine", ["auto", "exact"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: Looping(5, CLASSES),
            "the model cannot be followed by torch.func.vmap (vmap: It looks like you're "
            "attempting to use a Tensor in some data-dependent control flow): train these seeds "
            "one at a time",
        ),
        (
            lambda: Counting(5, CLASSES),
            "passes is another tensor after a pass, which a stack would not see: change it in "
            "place",
        ),
    ],
)
def test_a_model_that_cannot_be_stacked_is_refused_at_its_first_step(model, message, engine):
    stack = Stack(learners(model, adapt=lambda: OnlineOneStep(engine=engine)))
    ((train, valid),) = batches((5,), 1)
    with pytest.raises(UnsupportedModelError) as refused:
        stack.step(train, valid)
    assert str(refused.value) == message


def test_a_loss_is_asked_of_a_learner():
    stack = Stack(learners())
    with pytest.raises(InputError, match=r"^a stack has a learned loss for each seed: ask its"):
        stack.learned_loss()
    assert stack.learners[1].learned_loss().representation is stack.learners[1].problem.loss


def test_micro_batches_make_a_step_together():
    alone, stacked = (learners() for _ in range(2))
    stack = Stack(stacked)
    parts = [train for train, _ in batches((5,), 3)]
    together = metaloss.MicroBatches(parts)
    stack.step(together, parts[0])
    for seed, learner in enumerate(alone):
        own = metaloss.MicroBatches(of(seed, part) for part in parts)
        learner.step(own, of(seed, parts[0]))
        assert_alike(learner, stacked[seed])


def test_the_step_waits_for_nothing_after_the_first_ones(monkeypatch):
    """Once the first certificates have been read no number is: a GPU is never waited for."""
    stack = Stack(learners(adapt=lambda: OnlineOneStep(engine=Exact())))
    drawn = list(batches((5,), FIRST + 5))
    for train, valid in drawn[: FIRST + 3]:  # the next one after the fourth is the eighth's
        stack.step(train, valid)
    more = drawn[FIRST + 3 :]

    def read(*_):
        raise AssertionError("a number was read")

    for name in ("item", "__bool__", "__float__", "__int__", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, read)
    for train, valid in more:
        stack.step(train, valid)
