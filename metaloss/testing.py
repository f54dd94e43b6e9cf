"""Contract checks: one per kind of component, for our tests and for those of plugin authors.

Each takes a component and raises `ContractError`, saying what does not hold. They run in float64 on
the CPU and are quick: `metaloss.testing.check_representation(MyLoss)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaloss import links
from metaloss.learner import AdaLFL
from metaloss.meta_optimizers.base import MetaOptimizer
from metaloss.problem import Problem
from metaloss.representations.base import Representation
from metaloss.representations.nn import NN
from metaloss.tasks.base import SPLITS, Task
from metaloss.update import TakenStep


class ContractError(AssertionError):
    """A component does not keep its kind's contract."""


def require(holds: bool | Tensor, what: str) -> None:
    """Raises ContractError, saying what does not hold, unless it does."""
    if not bool(holds):
        raise ContractError(what)


def check_representation(cls: type[Representation], **arguments: Any) -> None:
    """Holds a representation to the contract in `metaloss.representations.base`.

    Args:
        cls: the class.
        arguments: of its constructor.
    """
    with _float64():
        loss = cls(**arguments)
        for name, value in loss.arguments().items():
            require(_is_plain(value), f"argument '{name}' is kept as {value!r}, not plain data")
        again = cls(**loss.arguments())
        again.load_state_dict(loss.state_dict())
        prediction, target = _loss_inputs(batch=6, outputs=3)
        values = loss(prediction, target)
        require(values.shape == (6,), f"gives {list(values.shape)}, not one loss per example [6]")
        require(values.isfinite().all(), "is not finite on probabilities")
        require(values.equal(again(prediction, target)), "arguments() and state_dict lose something")
        alone = torch.cat([loss(prediction[i : i + 1], target[i : i + 1]) for i in range(6)])
        require(torch.allclose(values, alone, rtol=1e-12), "examples of a batch see each other")
        prediction.requires_grad_()
        _require_twice_differentiable(lambda p: loss(p, target), prediction)
        phi = [p for p in loss.parameters() if p.requires_grad]
        if phi:
            (slope,) = torch.autograd.grad(loss(prediction, target).sum(), prediction, create_graph=True)
            require(slope.requires_grad, "no parameter can learn: its slope has no graph")
            reached = torch.autograd.grad(slope.square().sum(), phi, allow_unused=True)
            require(any(g is not None and g.any() for g in reached), "no parameter can learn: none changes ∂loss/∂prediction")


def check_backbone(
    recipe: Callable[..., nn.Module],
    input_shape: tuple[int, ...] = (1, 28, 28),
    outputs: int = 10,
    **arguments: Any,
) -> None:
    """Holds a backbone recipe to the contract in `metaloss.backbones.base`.

    Args:
        recipe: the function or class.
        input_shape, outputs: sizes that it serves.
        arguments: further arguments.
    """

    def draw(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return recipe(input_shape=input_shape, outputs=outputs, **arguments)

    with _float64():
        model, same, other = draw(0), draw(0), draw(1)
        pairs = zip(model.state_dict().values(), same.state_dict().values(), strict=True)
        require(all(a.equal(b) for a, b in pairs), "equal global seeds give other parameters")
        pairs = zip(model.parameters(), other.parameters(), strict=True)
        require(any(not a.equal(b) for a, b in pairs), "does not draw from the global generator")
        inputs = torch.randn(4, *input_shape)
        shape = list(model(inputs).shape)
        require(shape == [4, outputs], f"gives outputs {shape}, not {[4, outputs]}")
        model.eval()
        require(
            functional_call(model, dict(model.named_parameters()), (inputs,)).equal(model(inputs)),
            "functional_call does not equal the forward pass",
        )
        model.train()
        exact, reference = (
            _meta_gradient(copy.deepcopy(model), inputs, outputs, engine)
            for engine in ("exact", "unrolled")
        )
        require(
            (exact - reference).norm() <= 1e-10 * reference.norm(),
            "the forward-mode meta-gradient differs from double backward by "
            f"{(exact - reference).norm() / reference.norm():.1e}",
        )


def check_task(task: Task, data_dir: Path) -> None:
    """Holds a task to the contract in `metaloss.tasks.base`.

    Args:
        task: the object.
        data_dir: where its data is.
    """
    data, same, other = (
        task.load(data_dir, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    require(set(data.splits) == set(SPLITS), f"has splits {sorted(data.splits)}, not {SPLITS}")
    rows: dict[str, set[bytes]] = {}
    for name, (inputs, labels) in data.splits.items():
        require(len(inputs) == len(labels) > 0, f"{name}: {len(inputs)} inputs, {len(labels)} labels")
        require(inputs.isfinite().all(), f"{name}: inputs are not finite")
        require(labels.isfinite().all(), f"{name}: labels are not finite")
        require(same.splits[name][0].equal(inputs), f"{name}: equal generators give other splits")
        rows[name] = {x.numpy().tobytes() for x in inputs}
    require(not other.splits["valid"][0].equal(data.splits["valid"][0]), "validation ignores the seed")
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        # Data sets hold a few examples twice; splits that overlap share many.
        shared = len(rows[a] & rows[b]) / len(rows[b])
        require(shared < 0.02, f"{a} and {b} share {shared:.0%} of their examples")
    x, y = data.draw("train", task.batch_size, torch.Generator().manual_seed(0))
    outputs = torch.randn(len(x), data.outputs)
    prediction, target = task.objective.link(outputs, y)
    require(prediction.shape == target.shape == outputs.shape, "the link changes the shape")
    require(task.objective.loss(outputs, y).ndim == 0, "the task loss is no scalar")
    require(task.objective.errors(outputs, y).shape == (len(x),), "the metric is not per example")


def check_meta_optimizer(make: Callable[[], MetaOptimizer]) -> None:
    """Holds a meta-optimizer to the contract in `metaloss.meta_optimizers.base`.

    Args:
        make: builds one, with a meta learning rate that makes a difference in 30 steps.
    """
    with _float64():
        learner, batch = _small_learner(make())
        start = copy.deepcopy(learner.problem.model.state_dict())
        losses = []
        for _ in range(30):
            learner.problem.model.load_state_dict(start)
            learner.problem.optimizer.state.clear()
            losses.append(learner.step(batch, batch).task_loss)
        seen = [loss for loss in losses if loss is not None]
        require(seen[-1] < seen[0], f"30 steps do not improve the task loss: {seen[0]} to {seen[-1]}")

        whole, batch = _small_learner(make())
        halves = [_small_learner(make())[0] for _ in range(2)]
        for _ in range(6):
            whole.step(batch, batch)
        for _ in range(3):
            halves[0].step(batch, batch)
        halves[1].load_state_dict(copy.deepcopy(halves[0].state_dict()))
        halves[1].problem.model.load_state_dict(halves[0].problem.model.state_dict())
        saved = copy.deepcopy(halves[0].problem.optimizer.state_dict())
        halves[1].problem.optimizer.load_state_dict(saved)
        for _ in range(3):
            halves[1].step(batch, batch)
        for name, value in _learned(whole).items():
            require(value.equal(_learned(halves[1])[name]), f"{name} differs after save and load")


def check_base_optimizer(recipe: Callable[..., torch.optim.Optimizer], **arguments: Any) -> None:
    """Holds a base optimizer's `Update` to its torch.optim object, cold and warm.

    The differentiable step against `step()`, the closed-form cotangent and direction against
    central differences of `step()`, and finite values where a gradient is exactly zero.

    Args:
        recipe: called with parameters.
        arguments: further arguments, `lr` among them if it has no default.
    """
    with _float64():
        torch.manual_seed(0)
        start, v = torch.randn(5), torch.randn(5)
        grads = [torch.randn(5) for _ in range(4)]
        for count in range(4):  # earlier steps
            case = f"after {count} steps"
            theta, optimizer = _walk(recipe, arguments, start, grads[:count])
            theta.grad = grads[count].clone()
            taken = TakenStep(optimizer, [theta], "values")
            (again,), _ = taken.differentiable(
                taken.theta_before, [grads[count]], taken.state_before
            )
            require(torch.allclose(again, theta, rtol=1e-12), f"{case}: U is not the real step")
            (u,), (direction,) = taken.cotangent([v]), taken.direction([1.0])
            assert u is not None and direction is not None
            slope = torch.stack([
                _difference(recipe, arguments, start, grads[:count], grads[count], unit)
                for unit in torch.eye(5)
            ])  # [5, 5]: row i is ∂θ'/∂gᵢ
            require(torch.allclose(u, slope @ v, rtol=1e-5, atol=1e-9), f"{case}: ∂θ'/∂g is wrong")
            lr = optimizer.param_groups[0]["lr"]
            faster, slower = (
                _walk(recipe, arguments, start, grads[:count], grads[count], lr=lr * factor)[0]
                for factor in (1 + 1e-5, 1 - 1e-5)
            )
            require(
                torch.allclose(direction, (faster - slower) / (2e-5 * lr), rtol=1e-5, atol=1e-7),
                f"{case}: ∂θ'/∂lr is wrong",
            )
        theta, optimizer = _walk(recipe, arguments, start, [])
        theta.grad = torch.zeros(5)
        (u,) = TakenStep(optimizer, [theta], "nothing").cotangent([v])
        require(u is not None and u.isfinite().all(), "not finite where the gradient is zero")


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_rng_state(state)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _loss_inputs(batch: int, outputs: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(outputs, (batch,))
    return links.probabilities(torch.randn(batch, outputs), labels)


def _require_twice_differentiable(loss: Callable[[Tensor], Tensor], prediction: Tensor) -> None:
    try:
        torch.autograd.gradcheck(loss, prediction)
        torch.autograd.gradgradcheck(loss, prediction)
    except RuntimeError as error:
        line = str(error).strip().splitlines()[0]
        raise ContractError(f"is not twice differentiable in the prediction: {line}") from error


def _meta_gradient(model: nn.Module, inputs: Tensor, outputs: int, engine: str) -> Tensor:
    from metaloss.hypergradient import roll_out

    torch.manual_seed(0)
    labels = torch.randint(outputs, (len(inputs),))
    loss = NN(hidden=(8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    problem = Problem(model, optimizer, loss, nn.functional.cross_entropy, links.probabilities)
    rollout = roll_out(problem, [(inputs, labels)], engine)  # type: ignore[arg-type]
    _, v = problem.task_gradient((inputs.flip(0), labels))
    return torch.cat([g.flatten() for g in rollout.pullback(v) if g is not None])


def _small_learner(adaptation: MetaOptimizer) -> tuple[AdaLFL, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    inputs, labels = torch.randn(16, 3), torch.randn(16, 1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    learner = AdaLFL(
        model,
        optimizer,
        NN(hidden=(8,)),
        nn.functional.mse_loss,
        adaptation=adaptation,
    )
    return learner, (inputs, labels)


def _learned(learner: AdaLFL) -> dict[str, Tensor]:
    problem = learner.problem
    lr = torch.tensor(problem.optimizer.param_groups[0]["lr"])
    return {**problem.model.state_dict(), **problem.named_phi, "lr": lr}


def _walk(
    recipe: Callable[..., torch.optim.Optimizer],
    arguments: dict[str, Any],
    start: Tensor,
    grads: list[Tensor],
    last: Tensor | None = None,
    lr: float | None = None,
) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """Real steps along `grads`, then one along `last` at another learning rate, if given."""
    theta = nn.Parameter(start.clone())
    optimizer = recipe([theta], **arguments)
    for grad in [*grads, *([] if last is None else [last])]:
        if lr is not None and grad is last:
            optimizer.param_groups[0]["lr"] = lr
        theta.grad = grad.clone()
        optimizer.step()
    return theta, optimizer


def _difference(
    recipe: Callable[..., torch.optim.Optimizer],
    arguments: dict[str, Any],
    start: Tensor,
    grads: list[Tensor],
    last: Tensor,
    unit: Tensor,
    h: float = 1e-6,
) -> Tensor:
    """∂θ'/∂g along `unit`, by a central difference of the real step."""
    ahead, behind = (
        _walk(recipe, arguments, start, grads, last + sign * h * unit)[0].detach() for sign in (1, -1)
    )
    return (ahead - behind) / (2 * h)
