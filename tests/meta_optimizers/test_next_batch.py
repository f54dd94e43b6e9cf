"""objective = "next": the task loss on the next training batch, by the pass of the next step."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metaloss
from metaloss.engines import exact
from metaloss.errors import ArgumentError, InputError, UncertifiedError
from metaloss.learner import AdaLFL
from metaloss.machine import sealed
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.problem.batches import Batch
from tests.helpers import make_batches
from tests.small_models import MODELS

pytestmark = pytest.mark.usefixtures("float64")

OPTIMIZERS = {
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    # Not its own ε, at which a fresh Adam's step is nearly a sign.
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2, amsgrad=True, eps=1e-2),
}


def images(count: int) -> list[Batch]:
    return make_batches(count, 6, 1, 16, 16)


def started(
    model: str = "mlp",
    optimizer: str = "nesterov",
    objective: str = "next",
    meta_lr: float = 1e-2,
    more: dict | None = None,
    **arguments,
) -> AdaLFL:
    """A learner from seed 0; `more` is the learner's own."""
    torch.manual_seed(0)
    network = MODELS[model]()
    made = AdaLFL(
        network,
        OPTIMIZERS[optimizer](network.parameters()),
        metaloss.REPRESENTATIONS["nn"](hidden=(8,)),
        adaptation=OnlineOneStep(meta_lr, objective=objective, **arguments),
        **(more or {}),
    )
    torch.manual_seed(2)
    return made


def phi(learner: AdaLFL) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learner.problem.phi])


def standing(learner: AdaLFL) -> dict[str, Tensor]:
    """θ, buffers, φ and the rate."""
    problem = learner.problem
    lr = torch.tensor(problem.optimizer.param_groups[0]["lr"])
    return {**problem.model.state_dict(), **problem.named_phi, "lr": lr}


def assert_equal(one: AdaLFL, other: AdaLFL, *but: str) -> None:
    for name, value in standing(one).items():
        assert name in but or value.equal(standing(other)[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "model", ["mlp", "resnet", "dropout", "annealed", "attention", "checkpointed"]
)
@pytest.mark.parametrize("engine", ["exact", "logit_difference"])
def test_the_gradient_is_that_of_the_next_pass(engine, model, optimizer):
    """Of L_T in the pass that trains next, by its masks and its buffers; by real steps."""
    batches = images(4)
    descent = metaloss.DESCENTS["sgd"]

    def task_loss(shift: Tensor | None, meta_lr: float = 1e-300) -> tuple[float, Tensor]:
        """L_T in the fourth step, and how far φ moved in it; the third was made by φ + shift."""
        learner = started(
            model, optimizer, meta_lr=meta_lr, start=2, stop=3, engine=engine, descent=descent
        )
        for batch in batches[:2]:
            assert learner.step(batch).task_loss is None
        if shift is not None:
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(phi(learner) + shift, learner.problem.phi)
        assert learner.step(batches[2]).task_loss is None
        before = phi(learner)
        made = learner.step(batches[3])
        return float(made.task_loss), before - phi(learner)

    found = task_loss(None, meta_lr=1.0)[1]
    direction = torch.randn(found.shape) * found.norm()
    size = 1e-5 / direction.norm()
    above, below = (task_loss(sign * size * direction)[0] for sign in (1, -1))
    slope = (above - below) / (2 * float(size))
    assert slope == pytest.approx(
        float(found @ direction), rel=3e-5, abs=1e-7 * float(found.norm())
    )


@pytest.mark.parametrize("learned", [{}, {"rate": "bounded"}, {"every": 3, "start": 1}])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["lenet5", "resnet", "stop_gradient"])
def test_it_is_the_objective_train_that_is_given_the_next_batch(model, optimizer, learned):
    """Bit for bit, without dropout: whose masks are those of the pass that trains."""
    learned = {n: metaloss.RATES[v]() if n == "rate" else v for n, v in learned.items()}
    batches = images(9)
    ahead = started(model, optimizer, "train", engine="exact", **copy.deepcopy(learned))
    own = started(model, optimizer, engine="exact", **copy.deepcopy(learned))
    for k, (batch, following) in enumerate(zip(batches, batches[1:], strict=False)):
        judged = ahead.step(batch, following)
        if k == 0:
            assert own.step(batch).task_loss is None
        made = own.step(following)
        assert made.due is judged.due
        if judged.due:
            assert made.task_loss == judged.task_loss
            assert made.gradient_norm == judged.gradient_norm
        assert phi(own).equal(phi(ahead))
    ahead.adaptation.stop = 0  # one more base step, as it has made by now
    ahead.step(batches[-1])
    assert_equal(own, ahead)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["dropout", "annealed", "checkpointed", "resnet"])
@pytest.mark.parametrize("engine", ["exact", "logit_difference"])
def test_a_restored_training_has_the_same_bits(tmp_path, engine, model, optimizer):
    """The open step is made anew: by its batch, θ, buffers, masks, and what becomes of g."""
    tabulate = "always" if model == "resnet" else "auto"
    more = {"gradient_transform": metaloss.ClipNorm(0.5), "tabulate": tabulate}
    first, whole = (started(model, optimizer, engine=engine, more=more) for _ in range(2))
    batches = images(8)
    for batch in batches:
        whole.step(batch)
    torch.manual_seed(2)
    for batch in batches[:4]:
        first.step(batch)
    parts = (first.problem.model, first.problem.optimizer, first)
    saved = {str(k): part.state_dict() for k, part in enumerate(parts)}
    sealed.save(tmp_path / "state", {**saved, "random": torch.get_rng_state()})
    loaded = sealed.load(tmp_path / "state")
    again = started(model, optimizer, engine=engine, more=more)
    for k, part in enumerate((again.problem.model, again.problem.optimizer, again)):
        part.load_state_dict(loaded[str(k)])
    torch.set_rng_state(loaded["random"])
    opened = again.state_dict()["adaptation"]["open"]  # saved once more before it is judged
    assert all(map(torch.equal, opened["batch"], batches[3]))
    for batch in batches[4:]:
        again.step(batch)
    assert_equal(whole, again)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
@pytest.mark.parametrize("engine", ["exact", "logit_difference"])
def test_a_copied_learner_goes_on_with_the_same_bits(engine, how):
    """Between a step and the pass that judges it."""
    learner = started("dropout", engine=engine)
    batches = images(6)
    for batch in batches[:3]:
        learner.step(batch)
    other, random_state = how(learner), torch.get_rng_state()
    for each in (learner, other):
        torch.set_rng_state(random_state)
        for batch in batches[3:]:
            each.step(batch)
    assert_equal(learner, other)


def test_meta_steps_come_a_step_later_and_the_last_does_not():
    learner = started(every=3, start=2, stop=7)
    due = [learner.step(batch).due for batch in images(8)]
    assert [k for k, was in enumerate(due) if was] == [3, 6]
    for steps in (2, 3, 4, 6, 7, 8):
        assert learner.adaptation.meta_steps(steps) == sum(due[:steps]), steps


def test_a_step_that_cannot_be_judged_any_more_is_left():
    """φ was moved by somebody else, or other parameters are trained."""
    learner, batches = started(), images(5)
    assert [learner.step(batch).due for batch in batches[:2]] == [False, True]
    with torch.no_grad():
        learner.problem.phi[0].mul_(1.1)
    assert not learner.step(batches[2]).due
    assert learner.step(batches[3]).due
    next(learner.problem.model.parameters()).requires_grad_(False)
    assert not learner.step(batches[4]).due
    assert learner.step(batches[0]).due


def test_a_certificate_is_of_the_step_that_is_judged(monkeypatch):
    learner, batches = started(engine="exact"), images(4)
    made = [learner.step(batch).adjoint_residual for batch in batches[:2]]
    assert made[0] is None
    assert made[1] < 1e-9
    forward = exact.forward_mode_pass

    def planted(*arguments):
        outputs, tangent = forward(*arguments)
        return outputs, 1.01 * tangent

    monkeypatch.setattr(exact, "forward_mode_pass", planted)
    before = phi(learner)
    with pytest.raises(UncertifiedError, match="does not give the gradient of the step"):
        learner.step(batches[2])
    assert phi(learner).equal(before)


@pytest.mark.filterwarnings("ignore:the meta-gradient is taken by engine 'logit_difference'")
def test_auto_takes_no_engine_that_judges_at_once():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    class Net(nn.Module):  # without a forward derivative, and twice differentiable
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(256, 3)

        def forward(self, x):
            return Doubled.apply(self.layer(x.flatten(1)))

    model = Net()
    learner = AdaLFL(
        model, torch.optim.SGD(model.parameters(), lr=0.1), metaloss.REPRESENTATIONS["nn"](),
        adaptation=OnlineOneStep(objective="next"),
    )  # fmt: skip
    for batch in images(3):
        learner.step(batch)
    assert type(learner.adaptation.engine.chosen).__name__ == "LogitDifference"


def test_the_rate_alone_is_learned():
    """As by `train`, with the next batch."""
    batches = images(5)

    def trained(objective: str) -> float:
        torch.manual_seed(0)
        model = MODELS["mlp"]()
        rate = metaloss.META_OPTIMIZERS["meta_lr"](1e-3, objective=objective)
        learner = AdaLFL(
            model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), None,
            F.cross_entropy, adaptation=rate,
        )  # fmt: skip
        for batch, following in zip(batches, batches[1:], strict=False):
            learner.step(batch, following)
        if objective == "next":
            learner.step(batches[-1])
        return float(learner.adaptation.meta.x)

    assert trained("next") == trained("train") != 0.05


def test_what_does_not_go_with_it_is_refused():
    with pytest.raises(ArgumentError, match="engine = 'sweep': give 'auto', 'exact' or 'logit_"):
        OnlineOneStep(objective="next", engine="sweep")
    with pytest.raises(ArgumentError, match="objective_batch_size = 8: give none with objective"):
        OnlineOneStep(objective="next", objective_batch_size=8)
    with pytest.raises(InputError, match="with a descent that takes a Jacobian"):
        started(descent=metaloss.DESCENTS["natural"])
    learner, batches = started(), images(2)
    with pytest.raises(InputError, match="micro-batches are passes one after another"):
        learner.step(metaloss.MicroBatches(batches))
    with pytest.raises(InputError, match="in an initialisation, which draws θ anew"):
        learner.adaptation.set_out(learner.problem, lambda: None)
    with pytest.raises(InputError, match="leaves a step of each seed open"):
        metaloss.Stack([started(), started()])
