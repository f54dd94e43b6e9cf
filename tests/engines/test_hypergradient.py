"""The meta-gradient against double backward and against finite differences of the real step."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaloss import REPRESENTATIONS, links
from metaloss.engines import ENGINES
from metaloss.engines.sweep import Sweep, _graph_bytes
from metaloss.errors import UnsupportedModelError
from metaloss.machine import memory, seeding
from metaloss.problem.batches import Batch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from tests.helpers import make_batches, make_problem, meta_gradient, relative, thinned
from tests.small_models import MODELS, mlp

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.5),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


# With its own ε = 1e-8 a fresh Adam's step is nearly the sign of the gradient, a step function that
# no finite difference can follow where gradients are small.
SMOOTH_OPTIMIZERS = {
    **{name: OPTIMIZERS[name] for name in ("sgd", "momentum", "nesterov")},
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2, amsgrad=True, eps=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-2),
}


LOSSES = {
    **{name: made for name, made in REPRESENTATIONS.items() if isinstance(made, type)},
    "taylor2": lambda: REPRESENTATIONS["taylor"](order=2),
    "ml3": lambda: REPRESENTATIONS["nn"](activation="relu", output="softplus"),
}
LEARNABLE = [name for name in LOSSES if any(True for _ in LOSSES[name]().parameters())]


pytestmark = pytest.mark.usefixtures("float64")


def made(model: str, optimizer: str, loss: str, optimizers=OPTIMIZERS) -> Problem:
    """A problem of these names."""
    return make_problem(MODELS[model], optimizers[optimizer], LOSSES[loss])


def images(count: int, size: int = 6, pixels: int = 16) -> list[Batch]:
    return make_batches(count, size, 1, pixels, pixels)


@pytest.mark.parametrize(
    ("optimizer", "model", "loss"),
    thinned(
        itertools.product(OPTIMIZERS, ("mlp", "lenet5", "resnet", "dropout"), LEARNABLE),
        keep=lambda optimizer, model, loss: (
            (optimizer == "nesterov" and model == "mlp")
            or (model == "resnet" and loss == "nn")
            or (optimizer == "adam" and loss == "nn")
        ),
    ),
)
def test_exact_equals_double_backward(model, optimizer, loss):
    for warm in (0, 2):
        exact, reference = (
            meta_gradient(made(model, optimizer, loss), images(warm + 2), warm, engine)
            for engine in ("exact", "unrolled")
        )
        assert exact.isfinite().all()
        assert relative(exact, reference) <= 1e-10


REPLAYED = [
    *itertools.product(["stop_gradient", "annealed", "attention", "shared"], [1, 3]),
    # Not with 3: double backward recomputes a checkpoint with later parameters. See the finite
    # differences below.
    ("checkpointed", 1),
]


@pytest.mark.parametrize(("model", "inner_steps"), REPLAYED)
@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
def test_a_replayed_pass_is_the_pass_that_was(model, optimizer, inner_steps):
    batches = images(inner_steps + 3)
    exact, reference = (
        meta_gradient(made(model, optimizer, "nn"), batches, 2, engine)
        for engine in ("exact", "unrolled")
    )
    assert relative(exact, reference) <= 1e-10


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_a_module_held_twice_keeps_its_parameters(inner_steps):
    problem = made("shared", "nesterov", "nn")
    meta_gradient(problem, images(inner_steps + 1), 0, "exact")
    pairs = zip(problem.theta, problem.model.parameters(), strict=True)
    assert all(held is own for held, own in pairs)


def test_the_validation_pass_moves_no_buffer_of_a_checkpointed_model():
    problem = made("checkpointed", "sgd", "nn")
    before = {name: buffer.clone() for name, buffer in problem.model.named_buffers()}
    problem.task_gradient(images(1)[0])
    for name, buffer in problem.model.named_buffers():
        assert buffer.equal(before[name]), name


def test_autocast():
    """bfloat16 has 8 bits: the meta-gradient points the same way, and both engines take it."""
    torch.set_default_dtype(torch.float32)
    (x, y), valid = [(x.float(), y) for x, y in images(2, size=32)]
    gradients = {}
    for engine, enabled in (("exact", True), ("unrolled", True), ("exact", False)):
        problem = made("resnet", "sgd", "nn")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            gradients[engine, enabled] = meta_gradient(problem, [(x, y), valid], 0, engine)
    for name in (("exact", True), ("unrolled", True)):
        cosine = F.cosine_similarity(gradients[name], gradients["exact", False], dim=0)
        assert cosine > 0.95, name


def test_an_operator_without_forward_derivative_is_named():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(256, 3))
    model = nn.Sequential(nn.Flatten(), layer)
    problem = Problem(
        model, OPTIMIZERS["sgd"](model.parameters()), LOSSES["nn"](), F.cross_entropy,
        links.probabilities,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"_weight_norm_interface.*engine='unrolled'"):
        meta_gradient(problem, images(2), 0, "exact")
    assert meta_gradient(problem, images(2), 0, "unrolled").isfinite().all()


@pytest.mark.parametrize("inner_steps", [5, 20])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["mlp", "dropout", "tanh_batchnorm"])
def test_sweep_equals_plain_unroll(model, optimizer, inner_steps):
    batches = images(inner_steps + 3)
    exact, reference = (
        meta_gradient(made(model, optimizer, "nn"), batches, 2, engine)
        for engine in ("exact", "unrolled")
    )
    assert relative(exact, reference) <= 1e-10


@pytest.mark.parametrize("model", ["lenet5", "dropout", "tanh_batchnorm", "checkpointed"])
def test_graphs_that_are_kept_change_neither_the_steps_nor_the_gradient(model):
    """All of them, none, and as many as a bound allows, which are counted."""
    batches = images(5)
    problem = made(model, "nesterov", "nn")
    bound = 2.5 * _graph_bytes(problem, batches[0])
    found = []
    for bytes_ in (0, round(bound), 1 << 30):
        problem = made(model, "nesterov", "nn")
        graphs = []
        whole = problem.base_step

        def noted(batch, keep, whole=whole, graphs=graphs):
            step = whole(batch, keep)
            graphs.append(step.gradient.passes[0].graph is not None)
            return step

        engine = Sweep(bytes_)
        engine._kept_steps(problem, batches[0])
        problem.base_step = noted
        gradient = meta_gradient(problem, batches, 0, engine)
        found.append((gradient, [p.clone() for p in problem.theta], graphs))
    (none, theta, _), *others = found
    assert [graphs for *_, graphs in found] == [[False] * 4, [False, False, True, True], [True] * 4]
    for gradient, theta_too, _ in others:
        assert relative(gradient, none) <= 1e-12
        assert all(map(torch.equal, theta, theta_too))


class Rounding(nn.Module):
    """Tanh, whose backward pass rounds otherwise where its own graph is wanted, as SiLU's may."""

    class _Rounding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        def backward(ctx, slope):
            (x,) = ctx.saved_tensors
            if torch.is_grad_enabled():
                slope = slope * 1.1 / 1.1
            return slope * (1 - x.tanh().square())

    def forward(self, x: Tensor) -> Tensor:
        return self._Rounding.apply(x)


@pytest.mark.parametrize("activation", [nn.Tanh, Rounding])
def test_no_graph_is_kept_that_would_change_the_step(activation):
    problem = make_problem(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 20), activation(), nn.Linear(20, 3)),
        OPTIMIZERS["sgd"], LOSSES["nn"],
    )  # fmt: skip
    assert (_graph_bytes(problem, images(1)[0]) is None) == (activation is Rounding)


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("optimizer", SMOOTH_OPTIMIZERS)
@pytest.mark.parametrize("model", ["tanh_mlp", "tanh_batchnorm", "checkpointed"])
def test_exact_equals_finite_differences_of_the_real_step(model, optimizer, warm, inner_steps):
    """A central difference along a random direction of φ, through torch.optim's own step()."""
    problem = made(model, optimizer, "nn", SMOOTH_OPTIMIZERS)
    batches = images(warm + inner_steps + 1)
    for batch in batches[:warm]:
        problem.base_step(batch)
    start = copy.deepcopy((problem.model.state_dict(), problem.optimizer.state_dict()))
    direction = [torch.randn_like(p) for p in problem.phi]

    def task_loss(shift: float) -> float:
        problem.model.load_state_dict(start[0])
        problem.optimizer.load_state_dict(copy.deepcopy(start[1]))
        with torch.no_grad():
            for p, d in zip(problem.phi, direction, strict=True):
                p.add_(d, alpha=shift)
        torch.manual_seed(2)
        for x, y in batches[warm:-1]:
            problem.optimizer.zero_grad()
            problem.learned_loss(problem.model(x), y).backward()
            problem.optimizer.step()
        with torch.no_grad():
            for p, d in zip(problem.phi, direction, strict=True):
                p.sub_(d, alpha=shift)
        with torch.no_grad(), seeding.aside(torch.device("cpu")):  # by the same masks
            return float(F.cross_entropy(problem.model(batches[-1][0]), batches[-1][1]))

    h = 1e-5
    difference = (task_loss(h) - task_loss(-h)) / (2 * h)
    problem.model.load_state_dict(start[0])
    problem.optimizer.load_state_dict(copy.deepcopy(start[1]))
    gradient = meta_gradient(problem, batches[warm:], 0, "exact")
    along = float(gradient @ torch.cat([d.flatten() for d in direction]))
    assert along == pytest.approx(difference, rel=1e-5, abs=1e-8 * float(gradient.norm()))


def test_a_model_without_double_backward():
    """torch has no second derivative of hardsigmoid; between its kinks it is linear, as here.

    In place of x/6 + 1/2 written out, the operator itself must give the same meta-gradient.
    """

    class Linear6(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 6 + 0.5

    def problem(activation: nn.Module) -> Problem:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), activation, nn.Linear(4, 3))
        nn.init.normal_(model[1].weight, std=0.01)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        loss = LOSSES["nn"]()
        return Problem(model, optimizer, loss, F.cross_entropy, links.probabilities)

    batches = images(2)
    exact = meta_gradient(problem(nn.Hardsigmoid()), batches, 0, "exact")
    reference = meta_gradient(problem(Linear6()), batches, 0, "unrolled")
    assert relative(exact, reference) <= 1e-8  # torch's derivative is 1/6 in single precision
    with pytest.raises(UnsupportedModelError, match="twice .*aten::hardsigmoid_backward"):
        meta_gradient(problem(nn.Hardsigmoid()), batches, 0, "unrolled")


def test_closed_form_on_a_scalar():
    """θ' = θ - α·dM/dθ with M = φ·(θx - y)², L = (θ'z - w)².

    With θ=1, x=2, y=1, φ=3, α=0.1, z=1, w=2: the slope of (θx - y)² in θ is 2·(2 - 1)·2 = 4, so
    θ' = 1 - 0.1·3·4 = -0.2, dθ'/dφ = -0.4, dL/dφ = 2·(-0.2 - 2)·1·(-0.4) = 1.76.
    """

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phi = nn.Parameter(torch.tensor(3.0))

        def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
            return self.phi * (prediction - target).square().mean(-1)

    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    problem = Problem(
        model, torch.optim.SGD(model.parameters(), lr=0.1), Scaled(), F.mse_loss, links.values
    )
    batch = (torch.tensor([[2.0]]), torch.tensor([[1.0]]))
    objective = (torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    found = ENGINES["exact"]().hypergradient(
        problem, MetaParameters(problem), [batch], lambda: objective
    )
    assert model.weight.item() == pytest.approx(-0.2)
    assert found.phi[0].item() == pytest.approx(1.76)


def test_parameter_groups_and_frozen_parameters():
    def problem() -> Problem:
        torch.manual_seed(0)
        model = mlp()
        model[1].bias.requires_grad_(False)
        first, *rest = [p for p in model.parameters() if p.requires_grad]
        groups = [{"params": [first], "lr": 0.3}, {"params": rest, "momentum": 0.9}]
        return Problem(
            model,
            torch.optim.SGD(groups, lr=0.05, weight_decay=0.1),
            REPRESENTATIONS["nn"](),
            F.cross_entropy,
            links.probabilities,
        )

    exact, reference = (
        meta_gradient(problem(), images(4), 2, engine) for engine in ("exact", "unrolled")
    )
    assert relative(exact, reference) <= 1e-10


def test_a_parameter_that_the_model_does_not_use():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(256, 3)
            self.unused = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.flatten(1))

    for optimizer, inner_steps in itertools.product(OPTIMIZERS.values(), (1, 3)):
        gradients = []
        for engine in ("exact", "unrolled"):
            torch.manual_seed(0)
            model = Unused()
            problem = Problem(
                model,
                optimizer(model.parameters()),
                REPRESENTATIONS["nn"](),
                F.cross_entropy,
                links.probabilities,
            )
            before = model.unused.weight.clone()
            gradients.append(meta_gradient(problem, images(inner_steps + 1), 0, engine))
            assert model.unused.weight.equal(before)
        assert relative(*gradients) <= 1e-10


@pytest.mark.parametrize("engine", ["exact", "unrolled"])
def test_running_statistics_move_once_a_step(engine):
    problem = made("tanh_batchnorm", "sgd", "nn")
    batches = images(3)
    plain = copy.deepcopy(problem.model)
    with torch.no_grad():
        plain(batches[0][0])
    meta_gradient(problem, [batches[0], batches[1]], 0, engine)
    for name, buffer in plain.named_buffers():
        assert dict(problem.model.named_buffers())[name].equal(buffer), name


@pytest.mark.full
def test_sweep_through_allcnn_equals_plain_unroll():
    exact, reference = (
        meta_gradient(made("allcnn", "nesterov", "nn"), images(6, size=3), 0, engine)
        for engine in ("exact", "unrolled")
    )
    assert relative(exact, reference) <= 1e-8


def small_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


@pytest.mark.full  # up to a hundred inner steps
@pytest.mark.parametrize(
    ("model", "size", "pixels", "few", "many", "factor"),
    [
        pytest.param(small_convolutions, 16, 16, 5, 50, 1.3, id="small_convolutions"),
        pytest.param(MODELS["allcnn"], 4, 8, 2, 100, 1.1, id="allcnn"),
    ],
)
def test_memory_of_the_sweep_does_not_grow_with_the_steps(model, size, pixels, few, many, factor):
    """But for the copies of θ. The paper, on AllCNN-C, had no memory for more than 20 steps."""
    torch.set_default_dtype(torch.float32)

    def peak(inner_steps: int) -> int:
        torch.manual_seed(0)
        network = model()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        problem = Problem(
            network, optimizer, REPRESENTATIONS["nn"](), F.cross_entropy, links.probabilities
        )
        batches = images(inner_steps + 2, size, pixels)
        problem.base_step(batches[0])  # makes the optimizer's state
        theta = sum(p.numel() * p.element_size() for p in problem.theta)
        with memory.measuring(torch.device("cpu")) as used:
            meta_gradient(problem, batches[1:], 0, Sweep(kept_bytes=0))
        return used.peak_bytes - inner_steps * theta

    assert peak(many) <= factor * peak(few)
