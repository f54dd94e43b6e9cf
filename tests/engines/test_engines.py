"""The engines beyond the exact one: closed forms, limits, and what `auto` chooses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaloss import BACKBONES, ENGINES, RATES, REPRESENTATIONS, links
from metaloss.engines import evolution, persistent_evolution
from metaloss.errors import ConfigError, MissingGradientError, UnsupportedModelError
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.problem import snapshot
from metaloss.problem.batches import Batch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem

ROWS, FEATURES = 12, 4


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Stretched(nn.Module):
    """M = ½ (f - φ y)², so that the minimum over a linear model is φ times the least squares."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.tensor(1.5))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - self.phi * target).square().mean(-1) / 2


def least_squares(decay: float) -> tuple[Problem, Batch, Batch, Tensor]:
    """A linear model at the minimum of M + decay/2 ‖θ‖²; -> with both batches and dθ*/dφ."""
    torch.manual_seed(0)
    x, y = torch.randn(ROWS, FEATURES), torch.randn(ROWS, 1)
    model = nn.Linear(FEATURES, 1, bias=False)
    hessian = x.T @ x / ROWS + decay * torch.eye(FEATURES)
    slope = torch.linalg.solve(hessian, x.T @ y / ROWS).T
    loss = Stretched()
    with torch.no_grad():
        model.weight.copy_(loss.phi * slope)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
    problem = Problem(model, optimizer, loss, F.mse_loss, links.values)
    return problem, (x, y), (torch.randn(ROWS, FEATURES), torch.randn(ROWS, 1)), slope


def phi_gradient(engine, problem, train, objective) -> Tensor:
    found = engine.hypergradient(problem, MetaParameters(problem), train, lambda: objective)
    return torch.cat([g.flatten() for g in found.phi if g is not None])


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(
    "engine",
    [
        ENGINES["conjugate_gradient"](iterations=FEATURES, tolerance=0.0),
        ENGINES["neumann"](iterations=2000, lr=0.5),
    ],
    ids=["conjugate_gradient", "neumann"],
)
def test_implicit_engines_at_a_minimum(engine, decay):
    problem, train, objective, slope = least_squares(decay)
    x, y = objective
    residual = problem.model(x).detach() - y
    expected = 2 / ROWS * (residual.T @ x @ slope.T).squeeze()
    found = phi_gradient(engine, problem, [train, train], objective)
    assert found.squeeze().item() == pytest.approx(expected.item(), rel=1e-8)


def test_conjugate_gradient_is_not_an_iterate_late():
    """n iterations on n dimensions solve the system; so does one on a multiple of the identity."""
    engine = ENGINES["conjugate_gradient"](iterations=1, tolerance=0.0)
    v = [torch.tensor([1.0, -2.0]), torch.tensor([[0.5]])]
    for got, given in zip(engine.solve(lambda q: [4 * p for p in q], v, 0.1), v, strict=True):
        assert torch.allclose(got, given / 4, rtol=1e-14)
    matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    engine = ENGINES["conjugate_gradient"](iterations=2, tolerance=1e-10)
    (got,) = engine.solve(lambda q: [matrix @ q[0]], [torch.tensor([1.0, 2.0])], 0.1)
    assert torch.allclose(got, torch.linalg.solve(matrix, torch.tensor([1.0, 2.0])), rtol=1e-12)


def test_conjugate_gradient_stops_at_negative_curvature():
    engine = ENGINES["conjugate_gradient"]()
    (got,) = engine.solve(lambda q: [-q[0]], [torch.ones(3)], 0.1)
    assert got.equal(torch.zeros(3))


def test_neumann_is_the_truncated_series():
    matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    v = torch.tensor([1.0, 2.0])
    for lr in (None, 0.2):
        eta = 0.1 if lr is None else lr
        step = torch.eye(2) - eta * matrix
        expected = eta * (v + step @ v + step @ step @ v)
        (got,) = ENGINES["neumann"](iterations=3, lr=lr).solve(lambda q: [matrix @ q[0]], [v], 0.1)
        assert torch.allclose(got, expected, rtol=1e-12)


def smooth_problem(dropout: float = 0.0) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    loss = REPRESENTATIONS["nn"](hidden=(8,))
    return Problem(model, optimizer, loss, F.cross_entropy, links.probabilities)


def make_batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 3, generator=generator), torch.randint(3, (16,), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_logit_difference_approaches_the_exact_engine(optimizer):
    train, objective = make_batches(2)
    found = {}
    for name in ("exact", "logit_difference"):
        problem = smooth_problem(dropout=0.3)
        if optimizer == "adam":
            adam = torch.optim.Adam(problem.model.parameters())
            problem = Problem(
                problem.model, adam, problem.loss, F.cross_entropy, links.probabilities
            )
        torch.manual_seed(3)
        found[name] = phi_gradient(ENGINES[name](), problem, [train], objective)
    error = (found["logit_difference"] - found["exact"]).norm() / found["exact"].norm()
    assert 0 < error < 1e-7


def test_logit_difference_takes_one_step_at_a_time():
    train, objective = make_batches(2)
    with pytest.raises(ConfigError, match=r"one base step at a time; inner_steps = 2 needs"):
        phi_gradient(ENGINES["logit_difference"](), smooth_problem(), [train, train], objective)


class Decayed(nn.Module):
    """A learned loss with a learned weight decay: it looks at a layer of the model itself."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.network = REPRESENTATIONS["nn"](hidden=(8,))
        self.log_decay = nn.Parameter(torch.tensor(-2.0))
        self.layers = [layer]  # in a list: its parameters are not the loss's

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        decay = self.log_decay.exp() * self.layers[0].weight.square().sum()
        return self.network(prediction, target) + decay


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_loss_that_looks_at_theta_itself(optimizer):
    *train, objective = make_batches(3)
    found = {}
    for name in ("exact", "unrolled"):
        model = smooth_problem().model
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
        problem = Problem(
            model, make(model.parameters(), lr=0.1), Decayed(model[4]), F.cross_entropy,
            links.probabilities,
        )  # fmt: skip
        problem.base_step(train[0])
        found[name] = phi_gradient(ENGINES[name](), problem, train[1:], objective)
        found[f"{name} theta"] = torch.cat([p.detach().flatten() for p in problem.theta])
    assert torch.allclose(found["exact"], found["unrolled"], rtol=1e-10)
    assert found["exact"][0].abs() > 1e-4, "the decay is learned"
    assert torch.allclose(found["exact theta"], found["unrolled theta"], rtol=1e-12)


def test_alpha_and_phi_together_are_alpha_and_phi_alone():
    train, objective = make_batches(2)
    for name in ("exact", "unrolled", "logit_difference"):
        found = []
        for learn, rate in ((("*",), RATES["raw"]()), (("*",), None), ((), RATES["raw"]())):
            problem = smooth_problem()
            meta = MetaParameters(problem, learn, rate)
            call = ENGINES[name]().hypergradient(problem, meta, [train], lambda: objective)
            found.append((call.phi, call.alpha))
        (joint, alpha), (phi, none), (nothing, alone) = found
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(joint, phi, strict=True))
        assert none is None and nothing == []
        assert alpha.item() == pytest.approx(alone.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["exact", "sweep", "unrolled"])
@pytest.mark.parametrize("steps", [1, 3])
def test_alpha_against_finite_differences_of_the_real_steps(name, steps):
    *train, objective = make_batches(steps + 1)

    def loss_at(lr: float) -> float:
        problem = smooth_problem()
        problem.optimizer.param_groups[0]["lr"] = lr
        for batch in train:
            problem.base_step(batch)
        return snapshot.task_loss(problem, objective).item()

    problem = smooth_problem()
    meta = MetaParameters(problem, (), RATES["raw"]())
    found = ENGINES[name]().hypergradient(problem, meta, train, lambda: objective)
    numeric = (loss_at(0.1 + 1e-6) - loss_at(0.1 - 1e-6)) / 2e-6
    assert found.alpha.item() == pytest.approx(numeric, rel=1e-6)


def unit_vectors(monkeypatch, module):
    """Lets the noise run through the axes of (φ, α), one a pair; -> how many there are."""
    sizes = [p.numel() for p in smooth_problem().phi]
    count = sum(sizes) + 1
    axes = iter(torch.eye(count).repeat(8, 1))

    def draw(meta):
        *parts, last = next(axes).split([*sizes, 1])
        shaped = [part.view(p.shape).clone() for part, p in zip(parts, meta.phi, strict=True)]
        return [*shaped, last.squeeze()]

    monkeypatch.setattr(module, "draw_noise", draw)
    return count


def flat(found) -> Tensor:
    return torch.cat([*(g.flatten() for g in found.phi), found.alpha[None]])


@pytest.mark.parametrize("steps", [1, 2])
def test_evolution_along_the_axes_is_the_gradient(monkeypatch, steps):
    count = unit_vectors(monkeypatch, evolution)
    *train, objective = make_batches(steps + 1)
    found = []
    for engine in (ENGINES["evolution"](pairs=count, sigma=1e-5), ENGINES["exact"]()):
        problem = smooth_problem(dropout=0.3)
        torch.manual_seed(3)
        meta = MetaParameters(problem, rate=RATES["raw"]())
        found.append(flat(engine.hypergradient(problem, meta, train, lambda: objective)))
    assert torch.allclose(count * found[0], found[1], rtol=1e-5, atol=1e-8)


def test_persistent_evolution_credits_earlier_windows(monkeypatch):
    """Two windows of one step, one pair: ξ (L⁺ - L⁻) / 2σ, both members trained by hand."""
    train, objective = make_batches(2)
    sigma = 1e-3
    problem = smooth_problem()
    meta = MetaParameters(problem)
    noise = [[torch.randn_like(p) for p in meta.phi] for _ in range(2)]
    source = iter(noise)
    monkeypatch.setattr(persistent_evolution, "draw_noise", lambda meta: next(source))
    engine = ENGINES["persistent_evolution"](pairs=1, sigma=sigma)
    for _ in range(2):
        found = engine.hypergradient(problem, meta, [train], lambda: objective)

    losses = []
    for sign in (1, -1):
        member = smooth_problem()
        start = [p.detach().clone() for p in member.phi]
        for window in range(2):
            with torch.no_grad():
                for p, value, e in zip(member.phi, start, noise[window], strict=True):
                    p.copy_(value + sign * sigma * e)
            member.base_step(train)
        losses.append(snapshot.task_loss(member, objective))
    slope = (losses[0] - losses[1]) / (2 * sigma)
    for got, first, second in zip(found.phi, *noise, strict=True):
        assert torch.allclose(got, slope * (first + second), rtol=1e-9)


class Exotic(torch.autograd.Function):
    """exp, without forward derivative; and without second derivative if asked."""

    @staticmethod
    def forward(ctx, x, twice):
        ctx.save_for_backward(x)
        ctx.twice = twice
        return x.exp()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        slope = grad * x.exp()
        return slope if ctx.twice else ExoticBackward.apply(slope), None


class ExoticBackward(torch.autograd.Function):
    """What torch does for an operator without second derivative."""

    @staticmethod
    def forward(ctx, slope):
        return slope.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("derivative for exotic_backward is not implemented")


class ExoticLayer(nn.Module):
    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        return Exotic.apply(x.tanh(), self.twice)


def exotic_problem(twice: bool) -> Problem:
    problem = smooth_problem(dropout=0.3)
    problem.model[2] = ExoticLayer(twice)
    return problem


def test_auto_takes_the_exact_engine_where_it_works():
    train, objective = make_batches(2)
    auto = ENGINES["auto"]()
    found = []
    for engine in (auto, ENGINES["exact"]()):
        problem = smooth_problem(dropout=0.3)
        torch.manual_seed(3)
        found.append(phi_gradient(engine, problem, [train], objective))
    assert found[0].equal(found[1]), "the probe left something behind"
    assert ENGINES.name_of(auto.chosen) == "exact"


@pytest.mark.parametrize(("twice", "chosen"), [(True, "unrolled"), (False, "logit_difference")])
def test_auto_falls_back_and_says_why(twice, chosen):
    train, objective = make_batches(2)
    auto = ENGINES["auto"]()
    problem = exotic_problem(twice)
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match=f"by engine '{chosen}': 'exact' does not work"):
        found = phi_gradient(auto, problem, [train], objective)
    reference = exotic_problem(twice=True)
    torch.manual_seed(3)
    expected = phi_gradient(ENGINES["unrolled"](), reference, [train], objective)
    assert (found - expected).norm() <= (1e-10 if twice else 1e-7) * expected.norm()


def test_auto_says_why_nothing_works():
    train, objective = make_batches(2)
    with pytest.raises(UnsupportedModelError) as error:
        phi_gradient(ENGINES["auto"](), exotic_problem(False), [train, train], objective)
    twice = (
        "the model cannot be differentiated twice (derivative for exotic_backward is not "
        "implemented): one base step at a time, engine='exact' or 'logit_difference' needs it once"
    )
    assert str(error.value) == (
        f"no engine can differentiate this model: 'exact' does not work ({twice}); 'unrolled' does "
        f"not work ({twice}); 'logit_difference' does not work (engine = "
        "'logit_difference' goes back through one base step at a time; inner_steps = 2 needs "
        "'exact' or 'unrolled') · 'evolution' asks nothing of a model"
    )


def test_auto_does_not_take_a_bug_for_a_model_that_it_cannot_differentiate():
    """A plugin's error is seen, although the next engine would not have met it."""
    train, objective = make_batches(2)
    problem, calls = smooth_problem(), []

    def buggy(outputs, labels):
        calls.append(outputs)
        if len(calls) == 1:
            raise RuntimeError("the plugin's own bug")
        return F.cross_entropy(outputs, labels)

    problem.task_loss = buggy
    with pytest.raises(RuntimeError, match="the plugin's own bug"):
        phi_gradient(ENGINES["auto"](), problem, [train], objective)


def test_implicit_engines_give_the_learning_rate_no_gradient():
    problem, train, objective, _ = least_squares(0.0)
    online = OnlineOneStep(learn=(), rate=RATES["raw"](), engine=ENGINES["conjugate_gradient"]())
    online.attach(problem)
    with pytest.raises(MissingGradientError, match=r"received a gradient \(lr\)"):
        online.step(lambda: train, lambda: objective)


def test_on_trial_leaves_nothing_behind():
    (batch,) = make_batches(1)
    problem = smooth_problem(dropout=0.5)
    problem.base_step(batch)
    before = copy.deepcopy((problem.model.state_dict(), problem.optimizer.state_dict()))
    state = torch.get_rng_state()
    with snapshot.on_trial(problem, batch):
        problem.base_step(batch)
    assert torch.get_rng_state().equal(state)
    after = (problem.model.state_dict(), problem.optimizer.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # timm's import
def test_the_difference_of_outputs_is_short_enough_in_single_precision():
    """One as long as the cube root of the resolution makes most of this gradient an error."""
    torch.set_default_dtype(torch.float32)

    def phi_bar(engine):
        torch.manual_seed(0)
        settings = {"img_size": 8, "patch_size": 4}
        model = BACKBONES["timm"]((3, 8, 8), 10, name="test_vit", arguments=settings)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True)
        loss = REPRESENTATIONS["nn"]()
        problem = Problem(model, optimizer, loss, F.cross_entropy, links.probabilities)
        batches = [(torch.randn(32, 3, 8, 8), torch.randint(10, (32,))) for _ in range(2)]
        found = ENGINES[engine]().hypergradient(
            problem, MetaParameters(problem), batches[:1], lambda: batches[1]
        )
        return torch.cat([part.flatten() for part in found.phi])

    exact, found = phi_bar("exact"), phi_bar("logit_difference")
    assert exact.dtype == torch.float32
    assert (found - exact).norm() < 0.05 * exact.norm()
