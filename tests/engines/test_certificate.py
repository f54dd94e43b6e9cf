"""Certificates: a planted error is found in every engine that has them, and sound steps pass."""

from __future__ import annotations

import copy
import functools
import random
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaloss
from metaloss.engines import exact, logit_difference
from metaloss.engines.parts import traced_step
from metaloss.errors import UncertifiedError, UnsupportedModelError
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.problem import slopes
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.tables import Tables
from metaloss.testing.certification.model import check_model
from tests.helpers import make_batches, make_problem
from tests.zoo import Stream, rows

#: A relative error of the derivative of the outputs that is to be found, by precision.
PLANTED = {torch.float64: 1e-3, torch.float32: 1e-2}


def small(dtype=torch.float64):
    problem = make_problem(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda: metaloss.REPRESENTATIONS["nn"](hidden=(8,)).to(dtype),
    )
    batches = [(x.to(dtype), y) for x, y in make_batches(2, 16, 6)]
    return problem, batches


def certificate(engine, dtype=torch.float64, steps=1, **arguments):
    problem, (train, valid) = small(dtype)
    built = metaloss.ENGINES[engine](**arguments)
    meta = MetaParameters(problem)
    return built.hypergradient(problem, meta, [train] * steps, lambda: valid, True).certificate


def scaled(function, by):
    def planted(*arguments):
        outputs, tangent = function(*arguments)
        return outputs, by * tangent

    return planted


@pytest.mark.parametrize("dtype", PLANTED)
@pytest.mark.parametrize("engine", ["exact", "sweep", "unrolled", "logit_difference"])
def test_a_sound_step_is_certified(engine, dtype):
    assert certificate(engine, dtype, 2 if engine == "sweep" else 1).holds


@pytest.mark.parametrize("dtype", PLANTED)
def test_a_planted_error_is_found_in_the_exact_engine(monkeypatch, dtype):
    by = 1 + PLANTED[dtype]
    monkeypatch.setattr(exact, "forward_mode_pass", scaled(exact.forward_mode_pass, by))
    assert not certificate("exact", dtype).holds


@pytest.mark.parametrize("slope", ["tabulated", "chunked"])
@pytest.mark.parametrize("dtype", PLANTED)
def test_a_planted_error_is_found_however_the_slope_is_had(monkeypatch, dtype, slope):
    """Read from a table, or some rows at a time: a sound step holds, another does not."""
    problem, (train, valid) = small(dtype)
    if slope == "tabulated":
        problem.tables = Tables(problem.loss, "always")
    else:
        monkeypatch.setattr("metaloss.problem.problem.MOST_AT_ONCE", 1)
    kinds = []

    def noted(*arguments, **more):
        kinds.append(type(whole(*arguments, **more)))
        return whole(*arguments, **more)

    whole = problem.slope
    monkeypatch.setattr(problem, "slope", noted)
    arguments = (problem, MetaParameters(problem), [train], lambda: valid, True)
    assert metaloss.ENGINES["exact"]().hypergradient(*arguments).certificate.holds
    expected = slopes.TabulatedSlope if slope == "tabulated" else slopes.ChunkedSlope
    assert set(kinds) == {expected}
    by = 1 + PLANTED[dtype]
    monkeypatch.setattr(exact, "forward_mode_pass", scaled(exact.forward_mode_pass, by))
    assert not metaloss.ENGINES["exact"]().hypergradient(*arguments).certificate.holds


@pytest.mark.parametrize("dtype", PLANTED)
def test_a_planted_error_is_found_in_the_difference_of_outputs(monkeypatch, dtype):
    def planted(*arguments, **more):
        outputs, tangent = difference(*arguments, **more)
        return outputs, (1 + PLANTED[dtype]) * tangent

    difference = logit_difference.central_difference
    monkeypatch.setattr(logit_difference, "central_difference", planted)
    assert not certificate("logit_difference", dtype).holds


@pytest.mark.parametrize("dtype", PLANTED)
def test_a_planted_error_is_found_in_the_compiled_engine(monkeypatch, dtype):
    assert certificate("compiled", dtype, compiler="none").holds
    duals = traced_step._duals

    def planted(theta, directions):
        size = 1 + PLANTED[dtype]
        return duals(theta, [None if d is None else d * size for d in directions])

    monkeypatch.setattr(traced_step, "_duals", planted)
    assert not certificate("compiled", dtype, compiler="none").holds


class CutInPart(torch.autograd.Function):
    """The identity, of whose backward pass a share cannot be differentiated."""

    @staticmethod
    def forward(ctx, x, share):
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return slope - ctx.share * slope + ctx.share * slope.detach(), None


class Planted(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        return CutInPart.apply(x, self.share)


@pytest.mark.filterwarnings("ignore:the model has hooks on activations")  # of several steps
@pytest.mark.parametrize("dtype", PLANTED)
@pytest.mark.parametrize("engine", ["sweep", "unrolled"])
def test_a_planted_error_is_found_in_double_backward(engine, dtype):
    def holds(share):
        problem, (train, valid) = small(dtype)
        problem.model.append(Planted(share))
        steps = [train] * (2 if engine == "sweep" else 1)
        found = metaloss.ENGINES[engine]().hypergradient(
            problem, MetaParameters(problem), steps, lambda: valid, True
        )
        return bool(found.certificate.holds)

    assert holds(0.0)
    assert not holds(PLANTED[dtype])


def rowwise(slope):
    return slope.norm(dim=1, keepdim=True)


#: What hooks make of a slope. The derivative of the first ones is not what autograd has for it,
#: though h(2 s) = 2 h(s) and autograd's derivative along s is h(s).
WRONG = {
    "its direction detached": lambda s: s.norm() * (s / s.norm()).detach(),
    "each row's direction detached": lambda s: rowwise(s) * (s / rowwise(s)).detach(),
    "by a gate of its detached direction": lambda s: (
        s * torch.sigmoid(3 * s / s.abs().max()).detach()
    ),
    "its length detached": lambda s: s / s.detach().norm(),
    "its mean detached": lambda s: s - s.mean(0).detach(),
}
SOUND = {
    "halved": lambda s: s * 0.5,
    "centred": lambda s: s - s.mean(0),
    "flipped": lambda s: s.flip(0),
    "clipped": lambda s: s * torch.clamp(1e-3 / s.norm(), max=1.0),
    "clipped by rows": lambda s: s * torch.clamp(1e-3 / rowwise(s), max=1.0),
    "clipped by value": lambda s: s.clamp(-1e-3, 1e-3),
    "of length 1": lambda s: s / s.norm(),
    "its positive part": lambda s: s * (s > 0),
    "its largest half": lambda s: s * (s.abs() > s.abs().median()).detach(),
    "its size by a detached sign": lambda s: s.abs() * s.sign().detach(),
    "its cube": lambda s: s**3,
}


class Hooked(nn.Module):
    def __init__(self, hook) -> None:
        super().__init__()
        self.hook = hook

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(self.hook)
        return x


class ByFunction(torch.autograd.Function):
    """A hook as a function of one's own, which is the identity forwards."""

    @staticmethod
    def forward(ctx, x, hook):
        ctx.hook = hook
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return ctx.hook(slope), None


class InFunction(Hooked):
    def forward(self, x):
        return ByFunction.apply(x, self.hook)


def double_backward_holds(hook, engine, dtype, how=Hooked):
    problem, (train, valid) = small(dtype)
    problem.model.insert(1, how(hook))
    found = metaloss.ENGINES[engine]().hypergradient(
        problem, MetaParameters(problem), [train], lambda: valid, True
    )
    return bool(found.certificate.holds)


@pytest.mark.parametrize("how", [Hooked, InFunction])
@pytest.mark.parametrize("dtype", PLANTED)
@pytest.mark.parametrize("engine", ["sweep", "unrolled"])
@pytest.mark.parametrize("hook", WRONG)
def test_a_part_that_a_backward_pass_detaches_is_found(hook, engine, dtype, how):
    assert not double_backward_holds(WRONG[hook], engine, dtype, how)


@pytest.mark.parametrize("dtype", [*PLANTED, torch.bfloat16])
@pytest.mark.parametrize("engine", ["sweep", "unrolled"])
@pytest.mark.parametrize("hook", SOUND)
def test_a_backward_pass_that_autograd_knows_is_certified(hook, engine, dtype):
    assert double_backward_holds(SOUND[hook], engine, dtype)


@pytest.mark.parametrize("engine", ["exact", "unrolled", "logit_difference", "auto"])
@pytest.mark.parametrize("hook", sorted({*WRONG, *SOUND} - {"its positive part"}))
def test_a_hooked_model_is_right_or_refused(hook, engine):
    """By finite differences of a plain loop's steps, but where these meet a kink."""

    def make():
        layers = nn.Linear(6, 8), Hooked({**WRONG, **SOUND}[hook]), nn.Tanh(), nn.Linear(8, 3)
        return nn.Sequential(*layers), rows()

    assert check_model(make, engine).holds


class Saving(torch.autograd.Function):
    """A function of whose backward pass a derivative, or what else it saved, is a factor."""

    @staticmethod
    def forward(ctx, x, function, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return function(x)

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return ctx.factor(x) * slope, None, None


class OwnFunction(nn.Module):
    def __init__(self, function, factor) -> None:
        super().__init__()
        self.arguments = function, factor

    def forward(self, x):
        return Saving.apply(x, *self.arguments)


class MultipliesByActivation(nn.Module):
    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda slope: slope * x.detach())
        return x


WRONG_AT_SEVERAL = {
    "a derivative that it saved": lambda: OwnFunction(
        lambda x: x**3, lambda x: 3 * x.detach() ** 2
    ),
    "an activation by a hook": MultipliesByActivation,
    "halved by a hook": lambda: Hooked(SOUND["halved"]),  # so is what comes by a second time
    "reversed": lambda: OwnFunction(lambda x: x.view_as(x), lambda x: -torch.ones_like(x)),
}
SOUND_AT_SEVERAL = {
    "a derivative": lambda: OwnFunction(lambda x: x**3, lambda x: 3 * x**2),
    "a mask": lambda: OwnFunction(torch.relu, lambda x: (x > 0).to(x)),
    "looked at by a hook": lambda: Hooked(lambda slope: None),
}


def several_hold(make, engine, dtype, steps=3, problem=None):
    made, (train, valid) = small(dtype)
    problem = problem or made
    problem.model.insert(1, make())
    found = metaloss.ENGINES[engine]().hypergradient(
        problem, MetaParameters(problem), [train] * steps, lambda: valid, True
    )
    return bool(found.certificate.holds)


of_several = pytest.mark.parametrize("engine", ["exact", "sweep", "unrolled"])


@of_several
@pytest.mark.parametrize("kind", WRONG_AT_SEVERAL)
def test_curvature_that_a_backward_pass_leaves_out_is_found_where_it_matters(kind, engine):
    """In one step it does not: how g moves with θ is asked of several alone."""
    assert not several_hold(WRONG_AT_SEVERAL[kind], engine, torch.float64)
    if engine == "unrolled":
        assert several_hold(WRONG_AT_SEVERAL[kind], engine, torch.float64, steps=1)


@pytest.mark.parametrize("dtype", [*PLANTED, torch.bfloat16])
@of_several
@pytest.mark.parametrize("kind", SOUND_AT_SEVERAL)
def test_curvature_that_autograd_knows_is_certified(kind, engine, dtype):
    if dtype is torch.float64:
        assert several_hold(SOUND_AT_SEVERAL[kind], engine, dtype)
        return
    with pytest.warns(UserWarning, match="which several steps need, is asked in float64 alone"):
        assert several_hold(SOUND_AT_SEVERAL[kind], engine, dtype)


@of_several
@pytest.mark.parametrize("kind", WRONG_AT_SEVERAL)
def test_curvature_that_is_left_out_is_told_of_where_it_is_not_asked(kind, engine):
    problem, _ = small(torch.float32)
    with pytest.warns(UserWarning, match="is asked in float64 alone") as told:
        several_hold(WRONG_AT_SEVERAL[kind], engine, torch.float32, problem=problem)
        several_hold(lambda: nn.Identity(), engine, torch.float32, problem=problem)
    assert len(told) == 1
    several_hold(lambda: nn.Identity(), engine, torch.float32)  # of a plain model nothing
    if engine != "exact":  # of one step it asks for a forward derivative
        several_hold(WRONG_AT_SEVERAL[kind], engine, torch.float32, steps=1)


def length(grads):
    return torch.stack([grad.norm() for grad in grads]).norm()


class Momentum:
    """A transform that keeps something, where it is found."""

    def __init__(self) -> None:
        self.mean, self.calls = 0.0, 0

    def __call__(self, grads):
        self.calls += 1
        before = self.mean
        self.mean = 0.9 * before + 0.1 * float(length(grads).detach())
        return [g / (1 + before) for g in grads]


WRONG_TRANSFORMS = {
    "its length detached": lambda gs: [g / length(gs).detach() for g in gs],
    "each direction detached": lambda gs: [g.norm() * (g / g.norm()).detach() for g in gs],
}
SOUND_TRANSFORMS = {
    "halved": lambda gs: [g * 0.5 for g in gs],
    "of length 1": lambda gs: [g / length(gs) for g in gs],
    "clipped by each": lambda gs: [g * torch.clamp(1e-3 / g.norm(), max=1.0) for g in gs],
    "signs": lambda gs: [g + 0.1 * g.sign() for g in gs],
    "noise": lambda gs: [g / length(gs) + torch.randn_like(g) for g in gs],
    "drops": lambda gs: [F.dropout(g) for g in gs],
    "clip_norm": metaloss.ClipNorm(1e-3),
    "clip_value": metaloss.ClipValue(1e-3),
}


def transformed_holds(transform, engine, dtype):
    problem, (train, valid) = small(dtype)
    problem.gradient_transform = transform
    steps = [train] * (2 if engine == "sweep" else 1)
    found = metaloss.ENGINES[engine]().hypergradient(
        problem, MetaParameters(problem), steps, lambda: valid, True
    )
    return bool(found.certificate.holds)


certifying = pytest.mark.parametrize("engine", ["exact", "sweep", "unrolled", "logit_difference"])


@pytest.mark.parametrize("dtype", PLANTED)
@certifying
@pytest.mark.parametrize("transform", WRONG_TRANSFORMS)
def test_a_transform_that_detaches_a_part_is_found(transform, engine, dtype):
    assert not transformed_holds(WRONG_TRANSFORMS[transform], engine, dtype)


@pytest.mark.parametrize("dtype", PLANTED)
@certifying
@pytest.mark.parametrize("transform", SOUND_TRANSFORMS)
def test_a_transform_that_autograd_knows_is_certified(transform, engine, dtype):
    assert transformed_holds(SOUND_TRANSFORMS[transform], engine, dtype)


@certifying
def test_to_ask_a_transform_leaves_it_as_it_was(engine):
    transform = Momentum()
    problem, (train, valid) = small()
    problem = metaloss.AdaLFL(
        problem.model, problem.optimizer, problem.loss, gradient_transform=transform
    ).problem
    arguments = problem, MetaParameters(problem), [train], lambda: valid, True
    found = metaloss.ENGINES[engine]().hypergradient(*arguments)
    assert transform.calls == 1
    assert found.certificate.holds


#: Said of every model of which no pass can be made again; these tests are about more.
unrepeatable = pytest.mark.filterwarnings("ignore:two passes of the model over one batch")


@unrepeatable
def test_two_quotients_with_nothing_in_common_certify_nothing(float64):
    batch = rows(), torch.arange(8) % 3
    model = Stream()
    problem = make_problem(
        lambda: model, lambda p: torch.optim.SGD(p, lr=0.1), metaloss.REPRESENTATIONS["nn"]
    )
    engine = metaloss.ENGINES["logit_difference"]()
    found = engine.hypergradient(problem, MetaParameters(problem), [batch], lambda: batch, True)
    assert not found.certificate.holds


class Coarse(nn.Sequential):
    """It computes in float32 inside, and its parameters are in float64."""

    def forward(self, x):
        first, last = self
        return last(first(x).float().tanh().double())


def test_a_quotient_that_multiplies_the_rounding_of_float32_certifies_nothing(float64):
    """It is off by hundredths, where the exact engine is right to 1e-6."""
    batch, other = ((rows(), torch.randint(3, (8,))) for _ in range(2))
    torch.manual_seed(0)
    model = Coarse(nn.Linear(rows().shape[1], 8), nn.Linear(8, 3))
    problem = make_problem(
        lambda: model, lambda p: torch.optim.SGD(p, lr=0.1), metaloss.REPRESENTATIONS["nn"]
    )
    found = [
        metaloss.ENGINES[name]().hypergradient(
            problem, MetaParameters(problem), [batch], lambda: other, True
        )
        for name in ("exact", "logit_difference")
    ]
    assert found[0].certificate.holds
    assert not found[1].certificate.holds


def learner_of(model, engine, **arguments):
    adaptation = OnlineOneStep(engine=engine, **arguments)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(8,)).double()
    return metaloss.AdaLFL(model, optimizer, loss, F.cross_entropy, adaptation=adaptation), loss


@unrepeatable
def test_sweep_finds_that_the_step_it_runs_again_is_another(float64):
    batch = rows(), torch.arange(8) % 3
    model = Stream()
    problem = make_problem(
        lambda: model, lambda p: torch.optim.SGD(p, lr=0.1), metaloss.REPRESENTATIONS["nn"]
    )
    found = metaloss.ENGINES["sweep"]().hypergradient(
        problem, MetaParameters(problem), [batch, batch], lambda: batch, True
    )
    assert not found.certificate.holds


@unrepeatable
def test_what_cannot_be_replayed_is_said_and_moves_nothing(float64):
    batch = rows(), torch.arange(8) % 3
    learner, loss = learner_of(Stream(), "exact")
    before = [p.clone() for p in loss.parameters()]
    with pytest.raises(UncertifiedError, match="give other outputs: it draws random numbers"):
        learner.step(batch, batch)
    assert all(map(torch.equal, before, loss.parameters()))


@unrepeatable
def test_auto_takes_another_engine_and_says_why(float64):
    batch = rows(), torch.arange(8) % 3
    learner, _ = learner_of(Stream(), "auto")
    with pytest.warns(UserWarning, match="by engine 'unrolled': 'exact' does not work .its cert"):
        result = learner.step(batch, batch)
    assert not result.skipped


@unrepeatable
def test_one_can_ask_for_a_warning_alone(float64):
    batch = rows(), torch.arange(8) % 3
    learner, loss = learner_of(Stream(), "exact", uncertified="warn", meta_lr=1e-2)
    before = [p.clone() for p in loss.parameters()]
    with pytest.warns(UserWarning, match="engine 'exact': its certificate does not hold"):
        assert not learner.step(batch, batch).skipped
    assert not all(map(torch.equal, before, loss.parameters()))


class Turned(nn.Module):
    """Sound at first; from a step on it draws what nothing can turn back."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.layer, self.after, self.passes = nn.Linear(6, 3), after, 0
        draws = random.Random(1)
        self.masks = (draws.random() + 0.5 for _ in range(1000))

    def forward(self, x):
        self.passes += 1
        return self.layer(x) * (next(self.masks) if self.passes > self.after else 1.0)


@unrepeatable
def test_the_guard_goes_on_looking_and_auto_changes_its_engine_on_the_way(float64):
    batch = rows(), torch.arange(8) % 3
    learner, _ = learner_of(Turned(after=6), "auto", certify_every=2)
    with pytest.warns(UserWarning, match="is taken by engine 'unrolled'"):
        results = [learner.step(batch, batch) for _ in range(12)]
    assert any(result.skipped for result in results)
    assert not results[-1].skipped
    assert metaloss.ENGINES.name_of(learner.adaptation.engine.chosen) == "unrolled"


def test_certificates_come_at_first_and_then_every_so_many_and_can_be_left_out(float64):
    problem, (batch, valid) = small()
    for every, expected in ((4, [0, 1, 2, 4, 8]), (0, [])):
        adaptation = OnlineOneStep(certify_every=every)
        learner = metaloss.AdaLFL(
            problem.model, problem.optimizer, problem.loss, adaptation=adaptation
        )
        made = [learner.step(batch, valid).adjoint_residual for _ in range(10)]
        assert [i for i, residual in enumerate(made) if residual is not None] == expected


def test_a_learned_loss_that_is_not_finite_is_a_skipped_step(float64):
    problem, (batch, valid) = small()
    learner = metaloss.AdaLFL(problem.model, problem.optimizer, problem.loss)
    learner.step(batch, valid)
    broken = torch.full_like(batch[0], float("nan")), batch[1]
    assert learner.step(broken, valid).skipped


class LateTeacher(nn.Module):
    """Its teacher, made in its first pass or there before, follows from some pass on."""

    def __init__(self, late: int) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.late, self.passes = late, 0
        self.teacher: list[nn.Module] = []

    def forward(self, x):
        self.passes += 1
        if not self.teacher:
            self.teacher = [nn.Linear(6, 8).requires_grad_(False)]
        if self.passes > self.late:
            with torch.no_grad():
                self.teacher[0].weight.lerp_(self.layer.weight, 0.5)
        return self.head(torch.tanh(self.layer(x)) + self.teacher[0](x))


def test_a_teacher_that_the_first_pass_makes_is_followed(float64):
    batch = rows(), torch.arange(8) % 3
    model = LateTeacher(late=0)
    plain = copy.deepcopy(model)
    learner, loss = learner_of(model, "exact", meta_lr=1e-300)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(3):
        learner.step(batch, batch)
    torch.manual_seed(0)
    for _ in range(3):
        optimizer.zero_grad()
        loss(*metaloss.links.probabilities(plain(batch[0]), batch[1])).mean().backward()
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    assert torch.equal(model.teacher[0].weight, plain.teacher[0].weight)


LATE = 6  #: of the base passes; certificates come at 0, 1, 2, 4, 8 and 50


class SetsInLate(nn.Module):
    """A layer that is not trained, written into at every fifth pass from a late one on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.target = nn.Linear(6, 8).requires_grad_(False)
        self.passes = 0

    def due(self):
        self.passes += 1
        return self.passes >= LATE and (self.passes - LATE) % 5 == 0

    def pairs(self):
        return zip(self.target.parameters(), self.layer.parameters(), strict=True)

    def forward(self, x):
        if self.due():
            with torch.no_grad():
                self.write()
        return self.head(torch.tanh(self.layer(x)) + self.target(x)) * self.factor()

    def factor(self):
        return 1.0


class Loaded(SetsInLate):
    def write(self):
        self.target.load_state_dict(self.layer.state_dict())


class InPlace(SetsInLate):
    def write(self):
        for target, layer in self.pairs():
            target.lerp_(layer, 0.5)


class ThroughData(SetsInLate):
    def write(self):
        for target, layer in self.pairs():
            target.data.copy_(0.5 * target.data + 0.5 * layer.data)


class DataSet(SetsInLate):
    def write(self):
        for target, layer in self.pairs():
            target.data = 0.5 * target.data + 0.5 * layer.data


class DataReadBefore(SetsInLate):
    def factor(self):
        return float(self.target.weight.data.norm())

    def write(self):
        self.target.weight.data.mul_(1.5)


class InAList(InPlace):
    target = property(lambda self: self.hidden[0])

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [self._modules.pop("target")]


class InADict(SetsInLate):
    def __init__(self) -> None:
        super().__init__()
        self.kept = {"deep": {"factor": 1.0}}

    def write(self):
        self.kept["deep"]["factor"] *= 1.5

    def factor(self):
        return self.kept["deep"]["factor"]


class InAnArray(SetsInLate):
    def __init__(self) -> None:
        super().__init__()
        self.kept = np.ones(3)

    def write(self):
        self.kept *= 1.5

    def factor(self):
        return torch.from_numpy(self.kept.copy())


class DrawsByNumpy(SetsInLate):
    drawn = 1.0

    def write(self):
        self.drawn = np.random.rand()

    def factor(self):
        return self.drawn


class DrawsByPython(DrawsByNumpy):
    def write(self):
        self.drawn = random.random()


@torch.library.custom_op("metaloss_tests::grow", mutates_args=("tensor",))
def grow(tensor: torch.Tensor) -> None:
    tensor.mul_(1.5)


class ByOperator(SetsInLate):
    def write(self):
        grow(self.target.weight)


class DropsMore(SetsInLate):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 3))

    def write(self):
        self.head[0].p += 0.1


def seeded():
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)


@pytest.mark.parametrize("engine", ["exact", "unrolled"])
@pytest.mark.parametrize(
    "kind",
    [Loaded, InPlace, ThroughData, DataSet, DataReadBefore, InAList, InADict, InAnArray,
     DrawsByNumpy, DrawsByPython, ByOperator, DropsMore],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_what_sets_in_late_is_right_at_that_very_step(float64, kind, engine):
    """Every step is certified here, and the model is to the bit that of plain training."""
    batch = rows(), torch.arange(8) % 3
    torch.manual_seed(1)
    model = kind()
    plain = copy.deepcopy(model)
    learner, loss = learner_of(model, engine, meta_lr=1e-300, certify_every=1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    seeded()
    for _ in range(LATE + 6):
        step = learner.step(batch, batch)
        assert not step.skipped
        assert float(step.adjoint_residual) < 1e-10
    seeded()
    for _ in range(LATE + 6):
        optimizer.zero_grad()
        loss(*metaloss.links.probabilities(plain(batch[0]), batch[1])).mean().backward()
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    assert torch.equal(model.target.weight, plain.target.weight)
    assert model.factor() is not None
    assert torch.equal(torch.as_tensor(model.factor()), torch.as_tensor(plain.factor()))


class WrongDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return x**3

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.x**2 * slope

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.x**2 * tangent


class LateBranch(SetsInLate):
    """From a late pass on another layer takes part, or a function is called that was not before."""

    def __init__(self, with_parameters: bool) -> None:
        super().__init__()
        self.other = nn.Linear(8, 8) if with_parameters else torch.sin

    def forward(self, x):
        hidden = torch.tanh(self.layer(x))
        return self.head(WrongDerivative.apply(self.other(hidden)) if self.due() else hidden)


@pytest.mark.parametrize("with_parameters", [True, False])
def test_a_step_that_does_what_none_before_it_did_is_certified_at_once(float64, with_parameters):
    batch = rows(), torch.arange(8) % 3
    learner, _ = learner_of(LateBranch(with_parameters), "auto")
    for _ in range(LATE - 1):
        assert not learner.step(batch, batch).skipped
    assert learner.step(batch, batch).skipped
    with pytest.warns(UserWarning, match="is taken by engine 'unrolled'"):
        assert not learner.step(batch, batch).skipped


class ThroughNumpy(SetsInLate):
    """Its tensor is written through an array that it was made of, of which torch knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(1)
        self.view = self.scale.numpy()

    def write(self):
        self.view *= 1.5

    def factor(self):
        return self.scale


def test_what_is_not_seen_to_set_in_is_found_by_the_next_certificate(float64):
    batch = rows(), torch.arange(8) % 3
    learner, _ = learner_of(ThroughNumpy(), "auto", certify_every=1)
    with pytest.warns(UserWarning, match="changes more in its forward pass|does not hold"):
        steps = [learner.step(batch, batch) for _ in range(LATE + 1)]
    assert any(step.skipped for step in steps)


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    @functools.lru_cache  # noqa: B019 - such models are met
    def weight(self):
        return self.layer.weight.T.contiguous()

    def forward(self, x):
        return x @ self.weight()


def test_what_is_computed_of_parameters_once_and_cached_is_refused(float64):
    batch = rows(), torch.arange(8) % 3
    learner, _ = learner_of(Cached(), "auto")
    with pytest.raises(UnsupportedModelError, match=r"functools.cache, so that later steps go by"):
        for _ in range(2):
            learner.step(batch, batch)


def test_another_build_of_the_model_has_certificates_anew(float64):
    problem, (batch, valid) = small()
    learner = metaloss.AdaLFL(problem.model, problem.optimizer, problem.loss)
    for _ in range(6):
        learner.step(batch, valid)
    problem.model[1].register_full_backward_hook(lambda module, given, taken: (given[0] * 0.3,))
    with pytest.warns(UserWarning, match="by engine 'unrolled': 'exact' does not work"):
        learner.step(batch, valid)


def test_a_parameter_may_be_replaced_by_another_one(float64):
    """The optimizer keeps the momentum of the former one, which torch's state_dict fails at."""
    problem, (batch, valid) = small()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
    learner = metaloss.AdaLFL(problem.model, optimizer, problem.loss)
    learner.step(batch, valid)
    former = problem.model[0].weight
    problem.model[0].weight = nn.Parameter(former.detach().clone())
    held = optimizer.param_groups[0]["params"]
    held[:] = [problem.model[0].weight if p is former else p for p in held]
    before = former.detach().clone()
    assert not learner.step(batch, valid).skipped
    assert torch.equal(former, before)
    assert not torch.equal(problem.model[0].weight, before)
    assert former in optimizer.state


class ById(nn.Module):
    """Keeps something by the identity of a parameter, which in plain training stays."""

    def __init__(self):
        super().__init__()
        self.layer, self.norms = nn.Linear(6, 3), {}

    def forward(self, x):
        key = id(self.layer.weight)
        if key not in self.norms:
            self.norms[key] = self.layer.weight.detach().norm()
        return self.layer(x) / self.norms[key]


class KnownById(nn.Module):
    """Was told at its making what belongs to which parameter."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.gains = {id(p): 2.0 for p in self.parameters()}

    def forward(self, x):
        return self.layer(x) * self.gains.get(id(self.layer.weight), 1.0)


class ByClock(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) * time.perf_counter()


@pytest.mark.parametrize("engine", ["unrolled", "evolution"])
@pytest.mark.parametrize("model", [Stream, ById, KnownById, ByClock])
def test_a_model_of_which_no_pass_can_be_made_again_is_said(float64, model, engine):
    batch = rows(), torch.arange(8) % 3
    learner, _ = learner_of(model(), engine)
    with pytest.warns(UserWarning, match="two passes of the model over one batch.*θ is not that"):
        learner.step(batch, batch)
    learner.step(batch, batch)  # once


class HalfPrecision(nn.Module):
    """A frozen part in a lower precision than what is trained."""

    def __init__(self, dtype):
        super().__init__()
        self.part, self.head = nn.Linear(6, 8).to(dtype).requires_grad_(False), nn.Linear(8, 3)
        self.trained = nn.Linear(6, 6)

    def forward(self, x):
        x = self.trained(x).to(self.part.weight.dtype)
        return self.head(torch.tanh(self.part(x)).to(self.head.weight.dtype))


class CastsByHand(nn.Sequential):
    """Its parameters are in float32; nothing but its pass says that it computes in less."""

    def __init__(self, cast):
        super().__init__(nn.Linear(6, 8), nn.Linear(8, 3))
        self.float()
        self.cast = cast

    def forward(self, x):
        first, last = self
        return last(self.cast(first, x.float()).tanh().float())


def under_autocast(layer, x):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


@pytest.mark.parametrize("engine", ["exact", "unrolled", "logit_difference"])
@pytest.mark.parametrize(
    "cast",
    [
        under_autocast,
        lambda layer, x: F.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16()),
    ],
)
def test_the_precision_of_a_pass_is_seen_where_no_parameter_says_it(cast, engine):
    torch.manual_seed(0)
    model = CastsByHand(cast)
    adaptation = OnlineOneStep(engine=engine, certify_every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = metaloss.REPRESENTATIONS["nn"]()
    learner = metaloss.AdaLFL(model, optimizer, loss, F.cross_entropy, adaptation=adaptation)
    batch, valid = make_batches(2, 16, 6)
    for _ in range(5):
        assert not learner.step((batch[0].float(), batch[1]), (valid[0].float(), valid[1])).skipped
    assert learner.problem.precision is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_lowest_precision_of_a_model_is_that_of_its_passes(float64, dtype):
    batch = rows(), torch.arange(8) % 3
    learner, _ = learner_of(HalfPrecision(dtype), "exact")
    for _ in range(3):
        assert not learner.step(batch, batch).skipped
