"""Every optimizer's step in all its options: against torch's own, by finite differences."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint

import metaloss
from metaloss import BASE_OPTIMIZERS, REPRESENTATIONS, links, testing
from metaloss.base_optimizers.base import Hyperparameters, State, Update, certify, reset
from metaloss.base_optimizers.parts.taken_step import TakenStep, take_step
from metaloss.config import plugins
from metaloss.errors import MissingGradientError, UncertifiedOptimizerError, UnsupportedModelError
from metaloss.problem.problem import Problem
from tests.helpers import ROOT, make_batches, make_problem, meta_gradient, relative
from tests.small_models import MODELS

plugins.load_file(ROOT / "plugins" / "adabelief.py")

#: The options of each class, by the values that are tried, all with all. ε is large: with its
#: default a fresh step is nearly the sign of the gradient, which no finite difference can follow.
SHARED = {"weight_decay": (0.0, 0.1), "maximize": (False, True)}
DECOUPLED = {"decoupled_weight_decay": (False, True)}
OPTIONS = {
    "sgd": {"lr": (0.1,), "momentum": (0.0, 0.9), "dampening": (0.0, 0.5), **SHARED},
    "adam": {"eps": (0.1,), "amsgrad": (False, True), **SHARED},
    "adamw": {"eps": (0.1,), "amsgrad": (False, True), **SHARED},
    "rmsprop": {"eps": (0.1,), "momentum": (0.0, 0.9), "centered": (False, True), **SHARED},
    "adagrad": {"eps": (0.1,), "lr_decay": (0.0, 0.2), "initial_accumulator_value": (0.0, 0.5),
                **SHARED},
    "adadelta": {"eps": (0.1,), "lr": (1.0, 0.2), **SHARED},
    "adamax": {"eps": (0.1,), "betas": ((0.9, 0.999), (0.5, 0.6)), **SHARED},
    "nadam": {"eps": (0.1,), **SHARED, **DECOUPLED},
    "radam": {"eps": (0.1,), "betas": ((0.9, 0.999), (0.5, 0.9)), **SHARED, **DECOUPLED},
    "asgd": {"lambd": (0.1,), "t0": (1e6, 2.0), **SHARED},
    "rprop": {"etas": ((0.5, 1.2), (0.3, 2.0)), "step_sizes": ((1e-6, 50.0), (5e-3, 0.012)),
              "maximize": (False, True)},
    "adabelief": {"eps": (1e-2,)},
}  # fmt: skip
CLASSES = {
    "sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop,
    "adagrad": optim.Adagrad, "adadelta": optim.Adadelta, "adamax": optim.Adamax,
    "nadam": optim.NAdam, "radam": optim.RAdam, "asgd": optim.ASGD, "rprop": optim.Rprop,
}  # fmt: skip


def combinations(name: str) -> list[dict]:
    options = OPTIONS[name]
    return [
        dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())
    ]


def everything(name: str) -> dict:
    """One combination with every option that acts, at its last value."""
    return combinations(name)[-1]


def test_every_class_of_torch_is_certified_or_refused_with_a_reason():
    theirs = {c for c in vars(optim).values() if isinstance(c, type) and c is not optim.Optimizer}
    certified = set(metaloss.base_optimizers.base.certified_optimizers())
    assert theirs - certified == {optim.Adafactor, optim.Muon, optim.LBFGS, optim.SparseAdam}


@pytest.mark.parametrize("name", OPTIONS)
def test_all_combinations_of_options(name):
    for options in combinations(name):
        testing.check_base_optimizer(BASE_OPTIMIZERS[name], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIONS)
def test_derivatives_are_finite_where_squares_of_gradients_vanish(name, dtype):
    """At 0, and where g² is no number of the precision any more; first and later steps."""
    theta = nn.Parameter(torch.tensor([1.0, -1.0, 0.0, 0.5, 2.0], dtype=dtype))
    optimizer = BASE_OPTIMIZERS[name]([theta], **({"lr": 0.1} if name == "sgd" else {}))
    v = torch.ones_like(theta)
    for _ in range(3):
        theta.grad = torch.tensor([0.0, 1e-36, -1e-30, 1e-22, 1e-19], dtype=dtype)
        step = take_step(optimizer, [theta], "values")
        bars = step.pullback([theta.grad], [v], [{}], [1.0])
        found = [*step.cotangent([v]), *step.direction([1.0]), *bars[0], *bars[1], bars[3]]
        assert all(value is None or value.isfinite().all() for value in [theta, *found])


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}])
def test_nesterov(options):
    testing.check_base_optimizer(
        BASE_OPTIMIZERS["sgd"], lr=0.1, momentum=0.9, nesterov=True, **options
    )


FUSED = ("sgd", "adam", "adamw", "adagrad")


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        *itertools.product(CLASSES, ("foreach", "single", "tensor")),
        *itertools.product(FUSED, ("fused",)),
    ],
)
def test_switches_of_the_implementation_make_no_difference(name, switch):
    lr = {"lr": 0.01, **everything(name)}["lr"]
    arguments = {
        "foreach": {"foreach": True},
        "single": {"foreach": False},
        "fused": {"fused": True},
        "tensor": {"lr": torch.tensor(lr, dtype=torch.float64), "foreach": False},
    }[switch]
    testing.check_base_optimizer(CLASSES[name], **{"lr": lr, **everything(name), **arguments})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda p: optim.Adafactor(p),
            r"torch.optim.*Adafactor \(its step is not elementwise: it d",
        ),
        (lambda p: optim.Muon(p), r"Muon \(its step is not elementwise: it orthogonalises"),
        (lambda p: optim.LBFGS(p), r"LBFGS \(its step evaluates the loss again"),
        (lambda p: optim.SparseAdam(p), r"SparseAdam \(it takes sparse gradients only"),
        (lambda p: optim.Adam(p, differentiable=True), "built with differentiable=True.*leave it"),
        (lambda p: optim.SGD([*p, nn.Parameter(torch.ones(2) * 1j)], lr=0.1), "complex parameter"),
    ],
)
def test_what_cannot_be_followed_is_refused(build, message):
    model = nn.Linear(3, 2, bias=False)
    with pytest.raises(UncertifiedOptimizerError, match=message) as error:
        Problem(model, build(list(model.parameters())), None, F.cross_entropy, links.by_labels)
    assert "\n" not in str(error.value)


def halving(optimizer):
    """Puts a step that halves its gradients in the place of its own."""
    original = optimizer.step

    def step(closure=None):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad.mul_(0.5)
        return original(closure)

    optimizer.step = step


def scheduled(optimizer):
    lr_scheduler.StepLR(optimizer, 1)
    lr_scheduler.StepLR(optimizer, 2)


@pytest.mark.parametrize("before", [lambda optimizer: None, scheduled])
def test_a_step_that_was_replaced_on_the_object_is_refused_also_later(before):
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    learner = metaloss.AdaLFL(model, optimizer, REPRESENTATIONS["nn"](hidden=(4,)))
    batch = torch.randn(4, 3), torch.randint(2, (4,))
    learner.step(batch)
    before(optimizer)
    halving(optimizer)
    with pytest.raises(UncertifiedOptimizerError, match=r"step was replaced .*halving.<locals>.st"):
        learner.step(batch)


def bound(optimizer):  # as accelerate leaves it behind a step that a GradScaler makes
    optimizer.step = optimizer.step


@pytest.mark.parametrize("before", [scheduled, bound])
@pytest.mark.parametrize("after", [scheduled, bound])
def test_what_schedulers_and_accelerate_put_there_is_the_step_itself(before, after):
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), 0.1)
    before(optimizer)
    after(optimizer)
    Problem(model, optimizer, None, F.cross_entropy, links.by_labels)


def test_a_sparse_gradient_is_refused():
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2))
    problem = Problem(
        model, optim.SGD(model.parameters(), lr=0.1), None, F.cross_entropy, links.by_labels
    )
    with pytest.raises(UnsupportedModelError, match=r"shape \(5, 3\) has a sparse gradient"):
        problem.base_step((torch.randint(5, (4, 2)), torch.randint(2, (4,))))


def test_steps_that_do_not_feel_the_gradient_say_so():
    """Rprop takes signs alone; and neither its learning rate nor ASGD's acts at a later step."""
    batch = (torch.randn(8, 4), torch.randint(3, (8,)))
    model = nn.Linear(4, 3)
    learner = metaloss.AdaLFL(model, optim.Rprop(model.parameters()), REPRESENTATIONS["nn"]())
    with pytest.raises(MissingGradientError, match="the base step does not depend on them"):
        learner.step(batch)
    for optimizer in (optim.Rprop(model.parameters()), optim.ASGD(model.parameters())):
        meta_lr = metaloss.META_OPTIMIZERS["meta_lr"]()
        learner = metaloss.AdaLFL(model, optimizer, None, adaptation=meta_lr)
        assert learner.step(batch).gradient_norm > 0
        with pytest.raises(MissingGradientError, match=r"\(lr\)"):
            learner.step(batch)


def test_reset_is_a_newly_built_optimizer():
    model = nn.Linear(4, 3)
    for name in OPTIONS:
        optimizer, fresh = (
            BASE_OPTIMIZERS[name](model.parameters(), **everything(name)) for _ in range(2)
        )
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
        reset(optimizer)
        assert str(optimizer.state_dict()) == str(fresh.state_dict()), name


def test_offline_initialisation_with_state_that_is_made_at_first():
    """torch's Adagrad makes its state when it is built, and some versions only then."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = optim.Adagrad(model.parameters(), initial_accumulator_value=0.5)
    learner = metaloss.AdaLFL(model, optimizer, REPRESENTATIONS["nn"](hidden=(4,)))
    batch = (torch.randn(8, 4), torch.randint(3, (8,)))
    learner.initialize([batch], [batch], steps=3, inner_steps=2)
    assert all((state["sum"] == 0.5).all() for state in optimizer.state.values())
    learner.step(batch)


# Learning-rate schedulers: they stay the user's, and what they change is followed.

SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.1),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "warm_up_then_decay": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "warm_restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}
SCHEDULED = {
    "nesterov": lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9, nesterov=True),
    "adam": lambda p, lr: optim.Adam(p, lr=lr, eps=0.1),
    "rmsprop": lambda p, lr: optim.RMSprop(p, lr=lr, eps=0.1, momentum=0.9),
    "nadam": lambda p, lr: optim.NAdam(p, lr=lr, eps=0.1, foreach=False),
    "asgd": lambda p, lr: optim.ASGD(p, lr=lr, lambd=0.1),
}
MOMENTUM_CYCLES = [("one_cycle", "asgd"), ("cyclic", "asgd")]  # ASGD has no momentum


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize(
    ("scheduler", "optimizer"),
    [pair for pair in itertools.product(SCHEDULERS, SCHEDULED) if pair not in MOMENTUM_CYCLES],
)
def test_schedulers(scheduler, optimizer, tensor_lr, float64):
    """At each of 6 scheduled steps, the cotangent after the scheduler's step is the old step's."""
    theta, v, h = nn.Parameter(torch.randn(4)), torch.randn(4), 1e-6
    own = SCHEDULED[optimizer]([theta], torch.tensor(0.1) if tensor_lr else 0.1)
    schedule = SCHEDULERS[scheduler](own)
    seen = set()
    for _ in range(6):
        grad = torch.randn(4)
        (group,) = own.param_groups
        seen.add((float(group["lr"]), group.get("momentum"), group.get("betas")))
        reached = []
        for shift in (sign * h * unit for unit in torch.eye(4) for sign in (1, -1)):
            twin = nn.Parameter(theta.detach().clone())
            other = SCHEDULED[optimizer]([twin], 0.1)
            other.load_state_dict(copy.deepcopy(own.state_dict()))
            twin.grad = grad + shift
            other.step()
            reached.append(twin.detach() @ v)
        theta.grad = grad.clone()
        taken = take_step(own, [theta], "nothing")
        schedule.step()
        (u,) = taken.cotangent([v])
        ahead, behind = torch.stack(reached).reshape(4, 2).unbind(1)
        torch.testing.assert_close(u, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-9)
    assert len(seen) > 1


@pytest.mark.parametrize("optimizer", ["nadam", "rmsprop", "adagrad", "asgd"])
@pytest.mark.parametrize("scheduler", ["step", "cosine"])
def test_with_phi_frozen_theta_equals_plain_training_bit_for_bit(optimizer, scheduler):
    models, losses = [], REPRESENTATIONS["nn"](hidden=(4,))
    for ours in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        own = CLASSES[optimizer](model.parameters(), lr=0.01)
        schedule = SCHEDULERS[scheduler](own)
        learner = metaloss.AdaLFL(
            model, own, losses, adaptation=metaloss.META_OPTIMIZERS["online_one_step"](1e-300)
        )
        for _ in range(10):
            x, y = torch.randn(8, 4), torch.randint(3, (8,))
            if ours:
                learner.step((x, y))
            else:
                own.zero_grad()
                losses(*links.probabilities(model(x), y)).mean().backward()
                own.step()
            schedule.step()
        models.append(model.state_dict())
    for name, value in models[0].items():
        assert value.equal(models[1][name]), name


# Through several steps: the way back to g, to the state before and to the learning rate.

RATIOS = [1.0, 0.3]


class Walk:
    """K real steps along g = Aθ + b of two parameters, in two groups with lr = ratio · α."""

    def __init__(self, name: str, steps: int, warm: int) -> None:
        self.name, self.steps, self.warm = name, steps, warm
        generator = torch.Generator().manual_seed(3)
        self.start = [torch.randn(4, generator=generator) for _ in RATIOS]
        self.matrix = torch.randn(4, 4, generator=generator)
        self.offsets = torch.randn(warm + steps, 4, generator=generator)
        self.options = everything(name)
        self.base_lr = self.options.pop("lr", 0.05)

    def taken(self, alpha: float, shift: float = 0.0) -> tuple[list[Tensor], list[TakenStep], list]:
        """θ after it, the steps made and their gradients; b + shift in the steps that count."""
        theta = [nn.Parameter(value.clone()) for value in self.start]
        groups = [
            {"params": [p], "lr": r * self.base_lr} for p, r in zip(theta, RATIOS, strict=True)
        ]
        optimizer = BASE_OPTIMIZERS[self.name](groups, lr=1.0, **self.options)
        steps, grads = [], []
        for k, offset in enumerate(self.offsets):
            counts = k >= self.warm
            for p in theta:
                p.grad = (self.matrix @ p + offset + (shift if counts else 0.0)).detach()
            if counts:
                for group, ratio in zip(optimizer.param_groups, RATIOS, strict=True):
                    group["lr"] = ratio * alpha
                grads.append([p.grad for p in theta])
            steps.append(take_step(optimizer, theta, "values"))
        return [p.detach() for p in theta], steps[self.warm :], grads


@pytest.mark.parametrize("warm", [0, 4])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_way_back_through_several_steps(name, steps, warm, float64):
    """d⟨v, θ_K⟩/dα and /db: the sweep, and autograd, against real steps on both sides."""
    walk = Walk(name, steps, warm)
    v, h, alpha = [torch.randn(4) for _ in RATIOS], 1e-6, walk.base_lr

    def reached(alpha: float, shift: float = 0.0) -> float:
        theta, _, _ = walk.taken(alpha, shift)
        return float(sum(x @ y for x, y in zip(theta, v, strict=True)))

    by_alpha = (reached(alpha * (1 + h)) - reached(alpha * (1 - h))) / (2 * h * alpha)
    by_shift = (reached(alpha, h) - reached(alpha, -h)) / (2 * h)

    _, made, grads = walk.taken(alpha)
    theta_bar, state_bar, alpha_bar, shift_bar = list(v), [{} for _ in v], 0.0, 0.0
    for step, grad in zip(reversed(made), reversed(grads), strict=True):
        theta_bar, grad_bar, state_bar, share = step.pullback(grad, theta_bar, state_bar, RATIOS)
        alpha_bar += 0.0 if share is None else float(share)
        for i, bar in enumerate(grad_bar):
            if bar is not None:
                shift_bar += float(bar.sum())
                through = walk.matrix.T @ bar
                theta_bar[i] = through if theta_bar[i] is None else theta_bar[i] + through

    leaf, shift = torch.tensor(alpha, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    theta, state = made[0].theta_before, made[0].state_before
    for step, offset in zip(made, walk.offsets[warm:], strict=True):
        grad = [walk.matrix @ p + offset + shift for p in theta]
        theta, state = step.differentiable(theta, grad, state, leaf, RATIOS)
    end = sum(x @ y for x, y in zip(theta, v, strict=True))
    pair = torch.autograd.grad(end, [leaf, shift], allow_unused=True) if end.requires_grad else ()
    unrolled = [0.0 if bar is None else float(bar) for bar in pair] or [0.0, 0.0]

    assert [alpha_bar, shift_bar] == pytest.approx(unrolled, rel=1e-9, abs=1e-12)
    assert alpha_bar == pytest.approx(by_alpha, rel=1e-5, abs=1e-7)
    assert shift_bar == pytest.approx(by_shift, rel=1e-5, abs=1e-7)
    if name not in ("rprop", "asgd"):
        assert alpha_bar != 0 != shift_bar


@pytest.mark.parametrize("name", OPTIONS)
def test_the_direction_is_the_learning_rate_of_one_step(name, float64):
    walk = Walk(name, 1, 4)
    v = [torch.randn(4) for _ in RATIOS]
    _, (step,), (grad,) = walk.taken(walk.base_lr)
    *_, alpha_bar = step.pullback(grad, v, [{}, {}], RATIOS)
    direction = step.direction(RATIOS)
    along = sum(float(d @ x) for d, x in zip(direction, v, strict=True) if d is not None)
    assert along == pytest.approx(0.0 if alpha_bar is None else float(alpha_bar), rel=1e-9)


def test_the_learning_rate_needs_the_values_of_the_state():
    theta = nn.Parameter(torch.randn(3))
    theta.grad = torch.randn(3)
    step = take_step(optim.SGD([theta], lr=0.1, momentum=0.9), [theta], "derivative")
    with pytest.raises(ValueError, match="keep='values'"):
        step.pullback([theta.grad], [torch.randn(3)], [{}], [1.0])


@pytest.mark.parametrize("name", OPTIONS)
def test_a_scalar_parameter_in_single_precision(name):
    """A float64 learning rate must not make θ' of a scalar parameter float64."""
    theta = nn.Parameter(torch.tensor(0.5))
    theta.grad = torch.tensor(0.2)
    step = take_step(BASE_OPTIMIZERS[name]([theta], **everything(name)), [theta], "values")
    v = torch.tensor(1.0)
    theta_bar, _, _, alpha_bar = step.pullback([theta.grad], [v], [{}], [1.0])
    (direction,) = step.direction([1.0])
    assert theta_bar[0].dtype == direction.dtype == torch.float32
    assert float(alpha_bar) == pytest.approx(float(direction), rel=1e-5)
    (after,), _ = step.differentiable(
        step.theta_before, [theta.grad], step.state_before, torch.tensor(0.1, dtype=torch.float64)
    )
    assert after.dtype == torch.float32


# Through a model, among its parameters biases before BatchNorm, whose gradient is zero.

ENGINES_ON = {
    name: (lambda p, name=name: BASE_OPTIMIZERS[name](p, **{"lr": 1e-3}))
    for name in OPTIONS
    if name not in ("sgd", "adam", "adamw", "rprop")
}


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("model", ["resnet", "tanh_mlp"])
@pytest.mark.parametrize("name", ENGINES_ON)
def test_exact_equals_double_backward(name, model, inner_steps, float64):
    for warm in (0, 2):
        exact, reference = (
            meta_gradient(
                make_problem(MODELS[model], ENGINES_ON[name], REPRESENTATIONS["nn"]),
                make_batches(warm + inner_steps + 1, 6, 1, 16, 16),
                warm,
                engine,
            )
            for engine in ("exact", "unrolled")
        )
        assert exact.isfinite().all() and exact.norm() > 0
        assert relative(exact, reference) <= 1e-10


# An optimizer of one's own.


def test_an_author_writes_the_step_alone(float64):
    """A sign descent whose sign is smooth; a state that is no tensor; a count kept by the class."""

    class Smooth(optim.Optimizer):
        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    state["calls"] = state.get("calls", 0) + 1
                    p.sub_((p.grad * state["calls"]).atan(), alpha=group["lr"])

    @certify(Smooth)
    class SmoothUpdate(Update):
        def step(
            self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
        ) -> tuple[Tensor, State]:
            calls = state.get("calls", 0) + 1
            return theta - hyper["lr"] * (grad * calls).atan(), {"calls": calls}

    testing.check_base_optimizer(Smooth)
    testing.check_base_optimizer(Smooth, lr=0.7)


def test_a_wrong_step_is_found():
    class Faster(optim.SGD):
        pass

    @certify(Faster)
    class FasterUpdate(Update):
        def step(self, theta, grad, state, hyper):
            return theta - 2 * hyper["lr"] * grad, {}

    with pytest.raises(testing.ContractError, match="U is not the real step"):
        testing.check_base_optimizer(Faster, lr=0.1)


# Reentrant activation checkpoints.


class Reentrant(nn.Module):
    """Its checkpoint is its first block, or a later one."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.stem = nn.Identity() if first else nn.Linear(4, 4)
        self.block, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.stem(x), use_reentrant=True))


@pytest.mark.parametrize("first", [True, False])
def test_reentrant_checkpoints_are_refused(first):
    """In the first block torch only warns, and leaves the block without gradients."""
    model = Reentrant(first)
    learner = metaloss.AdaLFL(model, optim.SGD(model.parameters(), lr=0.1), REPRESENTATIONS["nn"]())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedModelError, match="use_reentrant=False") as error:
        learner.step((torch.randn(8, 4), torch.randint(3, (8,))))
    assert "\n" not in str(error.value)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
