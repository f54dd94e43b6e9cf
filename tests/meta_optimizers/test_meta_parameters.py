"""What is learned, and how far it may move: φ in part, the learning rate, bounds and schedules."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaloss import DESCENTS, ENGINES, META_OPTIMIZERS, RATES, REPRESENTATIONS, links
from metaloss.errors import ConfigError, InputError
from metaloss.meta_optimizers.descents.base import Group
from metaloss.problem.batches import Batch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem


def make_problem(loss: nn.Module | None = None, lr: float = 0.1) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 2 * lr}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    loss = REPRESENTATIONS["nn"](hidden=(8,)) if loss is None else loss
    return Problem(model, optimizer, loss, F.cross_entropy, links.probabilities)


def make_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, generator=generator), torch.randint(3, (16,), generator=generator)


def train(name: str, problem: Problem, steps: int, **arguments):
    """Steps of a meta-optimizer; -> what each of them gave."""
    optimizer = META_OPTIMIZERS[name](**arguments)
    optimizer.attach(problem)
    return [
        optimizer.step(lambda: make_batch(0), lambda i=i: make_batch(i + 1)) for i in range(steps)
    ]


def values(problem: Problem) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in problem.named_phi.items()}


@pytest.mark.parametrize("learn", [("log_factor",), ("loss.*",)])
def test_scale_only_and_shape_only(learn):
    problem = make_problem(REPRESENTATIONS["scale_shape"](of="nn", settings={"hidden": (8,)}))
    before, scale = values(problem), problem.loss.scale().item()
    train("online_one_step", problem, 5, meta_lr=1e-2, learn=learn)
    changed = {name for name, value in values(problem).items() if not value.equal(before[name])}
    assert changed == {name for name in before if (name == "log_factor") == ("log" in learn[0])}
    assert (problem.loss.scale().item() == scale) == ("log_factor" not in learn)
    # Whatever the shape, the slope's root mean square over the grid is the scale.
    grid = ((torch.arange(20.0) + 0.5) / 20).repeat(2)[:, None].requires_grad_()
    target = torch.tensor([0.0, 1.0]).repeat_interleave(20)[:, None]
    (slope,) = torch.autograd.grad(problem.loss(grid, target).sum(), grid)
    assert slope.square().mean().sqrt().item() == pytest.approx(problem.loss.scale().item(), 1e-5)


def test_the_scale_stays_within_its_limit():
    loss = REPRESENTATIONS["scale_shape"](of="cross_entropy", limit=2.0)
    start = loss.scale().item()
    for factor, bound in ((1e3, 2.0), (-1e3, 0.5)):
        with torch.no_grad():
            loss.log_factor.fill_(factor)
        assert loss.scale().item() == pytest.approx(bound * start, rel=1e-5)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(InputError, match=r"learn = 'scale' matches no parameter of the loss · kno"):
        MetaParameters(make_problem(), ("scale",))


def test_phi_and_the_learning_rate_are_learned_together():
    problem = make_problem()
    before = values(problem)
    train("online_one_step", problem, 3, meta_lr=1e-3, rate=RATES["exponential"](),
          rate_meta_lr=0.5)  # fmt: skip
    first, second = (group["lr"] for group in problem.optimizer.param_groups)
    assert first != 0.1 and second == pytest.approx(2 * first)
    assert abs(math.log(first / 0.1)) <= 3 * 0.5 * 1.01
    assert all(not value.equal(before[name]) for name, value in values(problem).items())


@pytest.mark.parametrize("engine", ["exact", "sweep", "unrolled"])
def test_the_slope_in_a_rate_that_a_schedule_multiplies_is_that_of_the_steps(engine):
    """Against differences of real steps, in float64; each group has a factor of its own."""
    train = [(x.double(), y) for x, y in map(make_batch, range(1 if engine == "exact" else 2))]
    valid = make_batch(7)[0].double(), make_batch(7)[1]

    def through(alpha: float):
        problem = make_problem(lr=alpha)
        problem.model.double()
        problem.loss.double()
        for group, factor in zip(problem.optimizer.param_groups, (0.3, 0.7), strict=True):
            group["scheduled"] = factor
        meta = MetaParameters(problem, (), RATES["raw"]())
        meta.write_rate()
        assert problem.optimizer.param_groups[1]["lr"] == pytest.approx(2 * alpha * 0.7)
        return ENGINES[engine]().hypergradient(problem, meta, train, lambda: valid)

    low, high = (float(through(0.1 + sign * 1e-5).task_loss) for sign in (-1, 1))
    assert float(through(0.1).alpha) == pytest.approx((high - low) / 2e-5, rel=1e-6)


def test_a_bounded_rate_stays_between_its_bounds():
    problem = make_problem()
    train("meta_lr", problem, 20, meta_lr=5.0, rate=RATES["bounded"](low=0.05, high=0.15))
    assert 0.05 <= problem.optimizer.param_groups[0]["lr"] <= 0.15


@pytest.mark.parametrize(
    ("rate", "lr", "message"),
    [
        (RATES["bounded"](low=1e-3, high=1e-2), 0.1, "0.1 is not between low = 0.001 and high"),
        (RATES["raw"](), 0.0, "a learning rate that starts at 0 has no ratio"),
    ],
)
def test_a_rate_that_cannot_start_is_refused(rate, lr, message):
    with pytest.raises(InputError, match=message):
        MetaParameters(make_problem(lr=lr), rate=rate)


def test_meta_steps_begin_and_end_where_they_are_told():
    results = train("online_one_step", make_problem(), 9, start=2, stop=7, every=2)
    assert [r.task_loss is not None for r in results] == [
        False, False, True, False, True, False, True, False, False
    ]  # fmt: skip


def descend(steps: int, gradient: float, **arguments) -> list[Tensor]:
    """Positions of one parameter [2] from (3, 4) under a constant gradient and η = 0.1."""
    parameter = torch.tensor([3.0, 4.0])
    descent = DESCENTS["adam"](groups=[Group({"p": parameter}, 0.1)], **arguments)
    positions = [parameter.clone()]
    for _ in range(steps):
        descent.descend([torch.full((2,), gradient)], torch.tensor(True))
        positions.append(parameter.clone())
    return positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_is_torch_s_bit_for_bit(dtype):
    """With a gradient that is missing once, a step that is skipped, and a state that is saved."""
    torch.manual_seed(0)
    ours = {name: torch.randn(3, 2, dtype=dtype) for name in ("a", "b")}
    theirs = [torch.nn.Parameter(p.clone()) for p in ours.values()]
    adam = torch.optim.Adam(theirs, 1e-2, betas=(0.8, 0.99), fused=True)
    descent = DESCENTS["adam"](groups=[Group(ours, 1e-2)], betas=(0.8, 0.99))
    for step in range(6):
        gradients = [torch.randn_like(p) for p in theirs]
        if step == 2:
            gradients[1] = None
        finite = torch.tensor(step != 3)
        descent.descend(gradients, finite)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        adam.found_inf = (~finite).float()
        adam.step()
        state = descent.state_dict()
        descent = DESCENTS["adam"](groups=[Group(ours, 1e-2)], betas=(0.8, 0.99))
        descent.load_state_dict(state)
    assert all(p.equal(q) for p, q in zip(ours.values(), theirs, strict=True))
    for own, other in zip(
        state["adam"]["state"].values(), adam.state_dict()["state"].values(), strict=True
    ):
        assert own.keys() == other.keys()
        assert all(own[key].equal(other[key]) for key in own)


@pytest.mark.parametrize(
    ("name", "arguments", "torchs"),
    [
        ("sgd", {"momentum": 0.8}, torch.optim.SGD),
        ("sgd", {"momentum": 0.0}, torch.optim.SGD),
        ("rmsprop", {"alpha": 0.9, "eps": 1e-3}, torch.optim.RMSprop),
    ],
)
def test_other_descents_are_torch_s_bit_for_bit(name, arguments, torchs):
    """With a gradient that is missing once, a step that is skipped, and a state that is saved."""
    torch.manual_seed(0)
    ours = {name: torch.randn(3, 2) for name in ("a", "b")}
    theirs = [torch.nn.Parameter(p.clone()) for p in ours.values()]
    other = torchs(theirs, 1e-2, **arguments, foreach=False)
    descent = DESCENTS[name](groups=[Group(ours, 1e-2)], **arguments)
    for step in range(6):
        gradients = [torch.randn_like(p) for p in theirs]
        if step == 2:
            gradients[1] = None
        finite = torch.tensor(step != 3)
        descent.descend(gradients if finite else [g * torch.nan for g in gradients], finite)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        if finite:
            other.step()
        state = descent.state_dict()
        descent = DESCENTS[name](groups=[Group(ours, 1e-2)], **arguments)
        descent.load_state_dict(state)
    assert all(p.equal(q) for p, q in zip(ours.values(), theirs, strict=True))


def test_adam_takes_meta_parameters_of_several_precisions():
    given = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float64)}
    descent = DESCENTS["adam"](groups=[Group(given, 0.1)])
    descent.descend([torch.ones(2), torch.ones(2)], torch.tensor(True))
    assert given["a"].tolist() == pytest.approx([0.9, 0.9])
    assert given["b"].tolist() == pytest.approx([0.9, 0.9])


def test_the_trust_region_is_a_ball_around_the_start():
    start, *later = descend(30, 1.0, trust_radius=0.1)
    distances = [(p - start).norm().item() for p in later]
    assert max(distances) == pytest.approx(0.5, rel=1e-5)
    assert distances[0] == pytest.approx(0.1 * math.sqrt(2), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "rates"),
    [
        ({"warm_up": 3}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"schedule": "linear", "schedule_steps": 4}, [1, 0.75, 0.5, 0.25, 0, 0]),
        ({"schedule": "cosine", "schedule_steps": 4, "warm_up": 2}, [1 / 3, 2 / 3, 1, 0.5, 0, 0]),
    ],
)
def test_schedules(arguments, rates):
    """Under a constant gradient Adam's step is η itself."""
    positions = descend(6, 1.0, **arguments)
    steps = [(a - b)[0].item() / 0.1 for a, b in zip(positions, positions[1:], strict=False)]
    assert steps == pytest.approx(rates, abs=1e-4)


def test_clipping_bounds_what_adam_sees():
    """After a step under clipping, Adam's average holds a gradient of the given norm."""
    parameter = torch.tensor([3.0, 4.0])
    descent = DESCENTS["adam"](groups=[Group({"p": parameter}, 0.1)], clip_norm=0.5)
    descent.descend([torch.tensor([30.0, 40.0])], torch.tensor(True))
    (state,) = descent.state_dict()["adam"]["state"].values()
    assert torch.allclose(state["exp_avg"] / 0.1, torch.tensor([0.3, 0.4]), rtol=1e-4)


def test_a_schedule_needs_its_end():
    with pytest.raises(
        ConfigError,
        match="schedule_steps = None: give the step at which it is 0",
    ):
        descend(1, 1.0, schedule="cosine")
