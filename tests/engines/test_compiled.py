"""The engine that compiles the step: the steps of the exact one, and what it leaves to that."""

from __future__ import annotations

import copy
import functools
import shutil
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaloss import BACKBONES, ENGINES, RATES, REPRESENTATIONS, AdaLFL, ClipNorm, MicroBatches
from metaloss.engines import compiled
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.problem.batches import Batch
from metaloss.problem.tables import Certified, Tables
from tests.helpers import thinned


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.ReLU(), nn.Linear(8, 3))


class Tied(nn.Module):
    """One weight twice, a parameter that is not trained and a buffer that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.last = nn.Linear(6, 3)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).tanh() * self.scale).tanh())


class PowerIteration(nn.Module):
    """Moves a buffer and looks at it in the same pass, as spectral normalisation does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("v", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.v.copy_(F.normalize(self.v + x.T @ (x @ self.v), dim=0))
        return x + (x @ self.v)[:, None]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(100, 3),
    )  # fmt: skip


MODELS = {
    "mlp": mlp,
    "tied": Tied,
    "lenet5": lambda: BACKBONES["lenet5"]((1, 16, 16), 3),
    "batch norm in evaluation": lambda: mlp(nn.BatchNorm1d(8), nn.Dropout(0.5)).eval(),
    "batch norm": lambda: mlp(nn.BatchNorm1d(8)),
    "batch norm of convolutions": convolutional,
    "batch norm without statistics": lambda: mlp(nn.BatchNorm1d(8, track_running_stats=False)),
    "power iteration": lambda: mlp(PowerIteration()),
}
LOSSES = {
    "nn": lambda: REPRESENTATIONS["nn"](hidden=(5, 4)),
    "softplus": lambda: REPRESENTATIONS["nn"]((5,), "softplus", "smooth_leaky_relu"),
    "taylor": lambda: REPRESENTATIONS["taylor"](),
    "step_conditioned": lambda: REPRESENTATIONS["step_conditioned"](settings={"hidden": (4,)}),
}


def batches(count: int, *shape: int, size: int = 7) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, *(shape or (6,)), generator=generator),
            torch.randint(3, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def regularised(model: nn.Module, outputs: Tensor, labels: Tensor) -> Tensor:
    """A task loss that looks at θ."""
    return F.cross_entropy(outputs, labels) + 0.1 * sum(
        p.square().sum() for p in model.parameters()
    )


class Checkpointed(nn.Linear):
    """Runs once more in each backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class Counting(nn.Module):
    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x / self.passes


class PutAnew(nn.Module):
    """Its running mean is another tensor after each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


SGD = {"momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}


def train(model, loss, engine, given, every=1, sgd=SGD, objective=True, **settings) -> Tensor:
    """θ, the momenta, φ and the losses of some steps on copies of the model and the loss."""
    model, loss = copy.deepcopy(model), copy.deepcopy(loss)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.1)  # where a polynomial starts, it may be flat
    trained = [p for p in model.parameters() if p.requires_grad]
    if callable(settings.get("task_loss")) and settings["task_loss"] is regularised:
        settings["task_loss"] = functools.partial(regularised, model)
    if settings.pop("two_groups", False):
        trained = [{"params": trained[:1], "weight_decay": 0.1}, {"params": trained[1:]}]
    optimizer = torch.optim.SGD(trained, 0.1, **sgd)
    scheduler = settings.pop("scheduler", lambda o: torch.optim.lr_scheduler.StepLR(o, 2))(
        optimizer
    )
    online = OnlineOneStep(1e-2, every, engine=engine, **settings.pop("online", {}))
    learner = AdaLFL(model, optimizer, loss, adaptation=online, steps=10, **settings)
    found = []
    for train_batch, valid_batch in zip(given[::2], given[1::2], strict=True):
        result = learner.step(train_batch, valid_batch if objective else None)
        found += [result.learned_loss] if result.task_loss is None else [
            result.learned_loss, result.task_loss, result.gradient_norm
        ]  # fmt: skip
        scheduler.step()
    states = optimizer.state.values()
    momenta = [b for state in states if (b := state.get("momentum_buffer")) is not None]
    parameters = [*model.parameters(), *model.buffers(), *loss.parameters(), *momenta]
    return torch.cat([p.detach().double().flatten() for p in parameters] + [torch.stack(found)])


def assert_close(ours: Tensor, exact: Tensor, error: float = 1e-13) -> None:
    assert (ours - exact).norm() <= error * exact.norm()


def both(engine, model, loss, given, **settings) -> list[Tensor]:
    """By this engine and by the exact one, from the same random state."""
    found = []
    for one in (engine, "exact"):
        torch.manual_seed(2)
        found.append(train(model, loss, one, given, **settings))
    return found


@pytest.mark.parametrize(
    ("model", "loss", "every"),
    [
        *thinned(
            ((model, "nn", 1) for model in MODELS),
            keep=lambda model, *_: model in ("lenet5", "batch norm"),
        ),
        *thinned(
            (("mlp", loss, 2) for loss in LOSSES), keep=lambda _, loss, every: loss == "taylor"
        ),
    ],
)
def test_recorded_steps_are_the_exact_engine_s(model, loss, every):
    torch.manual_seed(0)
    shape = (1, 16, 16) if model in ("lenet5", "batch norm of convolutions") else (6,)
    engine = ENGINES["compiled"]("none")
    ours, exact = both(engine, MODELS[model](), LOSSES[loss](), batches(8, *shape), every=every)
    # Taylor's steep cubes amplify a rounding of another order by some ten times in eight steps.
    assert_close(ours, exact, 1e-11 if loss == "taylor" else 1e-13)


SETTINGS = {
    "no momentum": {"sgd": {}},
    "dampening": {"sgd": {"momentum": 0.9, "dampening": 0.3, "maximize": True}},
    "two groups": {"two_groups": True},
    "momentum on a schedule": {
        "scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=5)
    },
    "the same batch": {"objective": False},
    "some of φ": {"online": {"learn": ("layers.1.*",)}},
    "start and stop": {"online": {"start": 1, "stop": 3}},
    "a task loss that looks at θ": {"task_loss": regularised},
    "read from a table": {"tabulate": "always"},
    "another task loss": {"task_loss": lambda f, y: F.cross_entropy(f, y, label_smoothing=0.1)},
}
#: Each case traces several kinds of steps; these trace the most of them.
FEW = ("two groups",)


@pytest.mark.parametrize(
    ("name", "settings"), thinned(SETTINGS.items(), keep=lambda name, _: name in FEW)
)
def test_recorded_steps_of_other_settings(name, settings):
    torch.manual_seed(0)
    ours, exact = both(ENGINES["compiled"]("none"), mlp(), LOSSES["nn"](), batches(8), **settings)
    assert_close(ours, exact)


@pytest.mark.full
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("dtype", "error"),
    [(torch.float64, 1e-10), (torch.float32, 1e-5)],
)
def test_compiled_steps_are_the_exact_engine_s_up_to_rounding(dtype, error):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    for middle in ([], [nn.BatchNorm1d(8)]):
        engine, given = ENGINES["compiled"](), batches(6)
        ours, exact = both(engine, mlp(*middle), LOSSES["nn"](), given, every=2)
        assert_close(ours, exact, error)


@pytest.mark.full  # records four kinds of steps
def test_a_step_of_another_shape_is_recorded_anew(monkeypatch):
    torch.manual_seed(0)
    given = batches(4) + batches(2, size=5) + batches(2)
    engine = ENGINES["compiled"]("none")
    ours, exact = both(engine, mlp(), LOSSES["nn"](), given)
    assert_close(ours, exact)
    monkeypatch.setattr(compiled, "MOST_KINDS", 1)
    with pytest.warns(UserWarning, match="there are more than 1 kinds of steps") as caught:
        ours, exact = both(ENGINES["compiled"]("none"), mlp(), LOSSES["nn"](), given + given)
    assert_close(ours, exact)
    assert len(caught) == 1


def many(count: int) -> list[Batch]:
    """Batches of 200 classes: of more, the exact engine has a polynomial beside the table."""
    return [(x, torch.randint(200, (7,))) for x, _ in batches(count)]


@pytest.mark.parametrize("tabulate", ["never", "always"])
def test_a_table_has_the_loss_recorded_at_its_nodes_alone(tabulate):
    """At each of the 1400 pairs, or at 2 x 64 nodes and more, as the certificate asks for."""
    torch.manual_seed(0)
    engine, loss, given = ENGINES["compiled"]("none"), LOSSES["nn"](), many(6)
    ours, exact = both(engine, nn.Linear(6, 200), loss, given, tabulate=tabulate)
    assert_close(ours, exact)
    (step,) = engine._steps.values()
    widths = {
        node.meta["tensor_meta"].shape[-1]
        for node in step.run.graph.nodes
        if node.target is torch.ops.aten.sigmoid.default
    }
    if tabulate == "never":
        assert step.table is None and widths == {1400}
    else:
        assert widths == {2 * 16 * step.table.panels} and step.table.own


def test_each_table_is_recorded_once(monkeypatch):
    """φ has come to ask for more nodes, and then for the former ones again."""
    torch.manual_seed(0)
    engine, asked = ENGINES["compiled"]("none"), iter([8, 8, 16, 16, 8, 16])
    traced, trace = [], compiled.trace
    monkeypatch.setattr(compiled, "trace", lambda *given: traced.append(given[2]) or trace(*given))
    monkeypatch.setattr(Tables, "serving", lambda *given: Certified(next(asked), own=True, head=5))
    ours, exact = both(engine, mlp(), LOSSES["nn"](), batches(10), tabulate="always")
    assert_close(ours, exact, 1e-9)  # which has the certificate's own table
    assert [table.panels for table in traced] == [8, 16]
    assert len(engine._steps) == 2


class WithUnused(nn.Sequential):
    """Holds a layer that has no part in the outputs."""

    def __init__(self) -> None:
        super().__init__(*mlp())
        self.unused = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self[2](self[1](self[0](x)))


def test_a_parameter_without_a_gradient_gets_no_momentum():
    torch.manual_seed(0)
    ours, exact = both(ENGINES["compiled"]("none"), WithUnused(), LOSSES["nn"](), batches(6))
    assert_close(ours, exact)  # which takes as many momenta


@pytest.mark.parametrize("tabulate", ["never", "always"])
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.full), 3])
def test_it_goes_on_bit_for_bit(every, tabulate):
    """Also with base steps, before which no meta-step has been made since."""

    def learner() -> AdaLFL:
        torch.manual_seed(0)
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, **SGD)
        online = OnlineOneStep(1e-2, every, engine=ENGINES["compiled"]("none"))
        return AdaLFL(model, optimizer, LOSSES["nn"](), adaptation=online, tabulate=tabulate)

    given, one, other = batches(12), learner(), learner()
    for k in range(0, 8, 2):
        one.step(*given[k : k + 2])
    other.problem.model.load_state_dict(one.problem.model.state_dict())
    other.problem.optimizer.load_state_dict(copy.deepcopy(one.problem.optimizer.state_dict()))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for k in range(8, 12, 2):
        results = [learner.step(*given[k : k + 2]) for learner in (one, other)]
        assert results[0].learned_loss.equal(results[1].learned_loss)
    for ours, theirs in zip(one.problem.theta, other.problem.theta, strict=True):
        assert ours.equal(theirs)
        assert ours.grad is None


class Annealed(nn.Sequential):
    """Its outputs are divided by a temperature, which somebody's loop lowers."""

    def __init__(self, temperature: Any) -> None:
        super().__init__(*mlp())
        self.temperatures = [temperature]
        self.sharpness = 1.0

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = super().forward(x)
        return outputs * self.sharpness / self.temperatures[0]


CHANGES: dict[str, Callable[[Annealed], Any]] = {
    "an attribute": lambda model: setattr(model, "sharpness", 2.0),
    "an entry of a list": lambda model: model.temperatures.__setitem__(0, torch.tensor(0.5)),
    "a tensor in place": lambda model: model.temperatures[0].fill_(0.5),
    "a layer": lambda model: setattr(model, "1", nn.Tanh()),
    "a setting of a layer": lambda model: setattr(model[1], "negative_slope", 0.3),
}


@pytest.mark.parametrize(
    ("what", "compiler"),
    [(what, "none") for what in CHANGES]
    + [pytest.param("a tensor in place", "inductor", marks=pytest.mark.full)],
)
def test_what_a_loop_changes_is_not_what_it_was_when_compiled(what, compiler):
    found = []
    for engine in (ENGINES["compiled"](compiler), ENGINES["exact"]()):
        torch.manual_seed(0)
        model = Annealed(torch.tensor(1.0))
        model[1] = nn.LeakyReLU()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, **SGD)
        online = OnlineOneStep(1e-2, engine=engine)
        learner = AdaLFL(model, optimizer, LOSSES["nn"](), adaptation=online)
        given = batches(8)
        for k in range(0, 8, 2):
            if k == 4:
                CHANGES[what](model)
            learner.step(*given[k : k + 2])
        found.append(torch.nn.utils.parameters_to_vector(learner.problem.theta))
    torch.testing.assert_close(*found)


def test_equal_numbers_compile_nothing_anew():
    model = Annealed(torch.tensor(1.0))
    surroundings = AdaLFL(
        model, torch.optim.SGD(model.parameters(), 0.1), LOSSES["nn"]()
    ).problem.surroundings
    counted = surroundings.changes()
    model.sharpness = float("1.0")
    assert surroundings.changes() == counted
    model.sharpness = 1.5
    assert surroundings.changes() == surroundings.changes() == counted + 1


class OptimizerReader(nn.Sequential):
    """It looks at a momentum, which is there from the second step on."""

    def forward(self, x: Tensor) -> Tensor:
        weight, state = self.known
        outputs: Tensor = super().forward(x)
        return outputs * (1 + state[weight]["momentum_buffer"].norm() if weight in state else 1)


def test_a_model_that_reads_its_optimizers_state_is_said():
    model = OptimizerReader(*mlp())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, **SGD)
    weight = model[0].weight

    class Known:
        def __iter__(self) -> Any:
            return iter((weight, optimizer.state))

    model.known = Known()
    online = OnlineOneStep(1e-2, engine=ENGINES["compiled"]("none"))
    learner = AdaLFL(model, optimizer, LOSSES["nn"](), adaptation=online)
    with pytest.warns(UserWarning, match="two passes of the model over one batch"):
        learner.step(*batches(2))


class ReadOut(nn.Module):
    """Its bias's numbers go through Python, where nothing knows of a gradient."""

    def __init__(self, read: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.read = nn.Linear(8, 8), read

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.as_tensor(self.read(self.layer.bias.detach()))


def forking(outputs: Tensor, labels: Tensor) -> Tensor:
    """Does something else where the loss is large."""
    loss = F.cross_entropy(outputs, labels)
    return loss if loss < 1.0 else loss.sqrt()


@pytest.mark.parametrize(
    ("reason", "middle", "settings"),
    [
        ("the model has another buffer in the place of one", PutAnew, {}),
        (
            "the model or a loss reads numbers out of its tensors",
            lambda: nn.BatchNorm1d(8, momentum=None),
            {},
        ),
        ("the model or the loss draws at random", lambda: nn.Dropout(0.5), {}),
        ("the gradient is transformed", nn.Tanh, {"gradient_transform": ClipNorm(0.1)}),
        ("the model or the loss changes Python objects, or draws", Counting, {}),
        *(
            (
                "the model or a loss reads numbers out of its tensors",
                functools.partial(ReadOut, read),
                {},
            )
            for read in (Tensor.numpy, Tensor.tolist, np.asarray)
        ),
        ("the learning rate is learned", nn.Tanh, {"online": {"rate": RATES["raw"]()}}),
        (
            "the model or a loss reads numbers out of its tensors",
            nn.Tanh,
            {"task_loss": forking},
        ),
    ],
)
def test_what_is_left_to_the_exact_engine(reason, middle, settings):
    """Said once, and then made as that makes it."""
    torch.manual_seed(0)
    message = f"engine 'compiled' does not compile this step, and takes engine 'exact': {reason}"
    engine = ENGINES["compiled"]("none")
    with pytest.warns(UserWarning, match=message) as caught:
        ours, exact = both(engine, mlp(middle()), LOSSES["nn"](), batches(6), **settings)
    assert ours.equal(exact)
    assert len(caught) == 1


def test_the_kernel_of_a_gpu_moves_its_running_statistics_too(monkeypatch):
    """Nor does it say that it does. It is recorded by its parts, so that no GPU is needed here."""

    def by_cudnn(x, weight, bias, mean, var, training, momentum, eps, _):
        given = x, weight, bias, mean, var, training, momentum, eps
        return torch.ops.aten.cudnn_batch_norm(*given)

    torch.manual_seed(0)
    model, recorded, trace = mlp(nn.BatchNorm1d(8)), [], compiled.trace

    def trace_by_cudnn(*given):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "_batch_norm_impl_index", by_cudnn)
            recorded.append(trace(*given))
        return recorded[-1]

    monkeypatch.setattr(compiled, "trace", trace_by_cudnn)
    assert_close(*both(ENGINES["compiled"]("none"), model, LOSSES["nn"](), batches(6)))
    assert recorded and not any("cudnn" in str(node.target) for node in recorded[0].graph.nodes)


def test_a_checkpoint_is_run_again_where_its_pass_was():
    torch.manual_seed(0)
    engine = ENGINES["compiled"]("none")
    assert_close(*both(engine, mlp(Checkpointed(8, 8)), LOSSES["nn"](), batches(8)))


def test_a_model_with_another_parameter_in_the_place_of_a_trained_one_is_left_to_it():
    torch.manual_seed(0)
    found, given = [], batches(8)
    start, loss, reached = mlp(), LOSSES["nn"](), None
    for engine in (ENGINES["compiled"]("none"), "exact"):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        online = OnlineOneStep(1e-2, engine=engine)
        learner = AdaLFL(model, optimizer, copy.deepcopy(loss), adaptation=online)
        learner.step(*given[:2])
        # The first step was compiled, which promises equality up to rounding: both go on from it.
        reached = reached or copy.deepcopy((model.state_dict(), learner.problem.loss.state_dict()))
        model.load_state_dict(reached[0])
        learner.problem.loss.load_state_dict(reached[1])
        model[0].weight = nn.Parameter(0.9 * model[0].weight.detach())
        with pytest.warns(UserWarning) if engine != "exact" else nullcontext():
            learner.step(*given[2:4])
        found.append([p.detach() for p in (*model.parameters(), *learner.problem.phi)])
    assert all(map(torch.equal, found[0][1:4], found[1][1:4]))


def test_micro_batches_are_left_to_it():
    torch.manual_seed(0)
    given = [MicroBatches(batches(2)), *batches(1)]
    with pytest.warns(UserWarning, match="several steps or micro-batches"):
        ours, exact = both(ENGINES["compiled"]("none"), mlp(), LOSSES["nn"](), given)
    assert ours.equal(exact)


def test_other_optimizers_are_left_to_it(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.optim, "SGD", lambda p, lr, **_: torch.optim.RMSprop(p, lr))
    with pytest.warns(UserWarning, match="the optimizer is not torch.optim.SGD"):
        ours, exact = both(ENGINES["compiled"]("none"), mlp(), LOSSES["nn"](), batches(4))
    assert ours.equal(exact)


def test_groups_that_come_to_differ_are_left_to_it():
    torch.manual_seed(0)

    def scheduler(optimizer):
        factors = [lambda step: 1.0, lambda step: 0.5 if step > 1 else 1.0]
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)

    settings = {"two_groups": True, "scheduler": scheduler}
    with pytest.warns(UserWarning, match="θ' does not depend on the gradient by one number"):
        ours, exact = both(
            ENGINES["compiled"]("none"), mlp(), LOSSES["nn"](), batches(8), **settings
        )
    assert_close(ours, exact)


def test_a_machine_without_a_compiler(monkeypatch):
    import torch._inductor

    def compile(*given, options):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch._inductor, "compile", compile)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="takes engine 'exact': No working C.. compiler found$"):
        ours, exact = both(ENGINES["compiled"](), mlp(), LOSSES["nn"](), batches(4))
    assert ours.equal(exact)


def test_it_says_what_it_does_not_know():
    with pytest.raises(Exception, match="compiled.compiler"):
        ENGINES["compiled"]("gcc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ENGINES.name_of(ENGINES["compiled"]()) == "compiled"
