"""Steps as CUDA graphs: equal to the bit on a GPU, and everywhere what decides of replaying."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import metaloss
from metaloss.engines import ENGINES
from metaloss.errors import InputError
from metaloss.meta_optimizers.meta_lr import meta_lr
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.meta_optimizers.parts import recorded
from metaloss.meta_optimizers.parts.by_gradient import FIRST
from metaloss.problem import snapshot
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.tasks.base import CLASSIFICATION, Data

GPU = torch.cuda.is_available()
on_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")


def images_model(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(36, 10),
    )  # fmt: skip


def batches_of_images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(16, 1, 8, 8, generator=generator),
            torch.randint(10, (16,), generator=generator),
        )
        for _ in range(count)
    ]


def learner_of(model, recorded, adaptation=None, optimizer=None, seed=1, **more):
    torch.manual_seed(seed)
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(8, 8)).to(next(model.parameters()).device)
    optimizer = optimizer or torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    return metaloss.AdaLFL(
        model, optimizer, loss, meta_lr=None, adaptation=adaptation, cuda_graphs=recorded, **more
    )


ADAPTATIONS = {
    "none": lambda: None,
    "each step": lambda: OnlineOneStep(1e-3),
    "every third": lambda: OnlineOneStep(1e-3, every=3, start=2),
    "frozen at 7": lambda: OnlineOneStep(1e-3, stop=7),
    "learned rate": lambda: meta_lr(1e-3),
}


class Graph:
    """Stands in for a CUDA graph: runs the step again, on the same tensors, uncounted."""

    made = 0
    replays = 0

    def __init__(self, meta_optimizer):
        lead = getattr(meta_optimizer, "_lead", meta_optimizer)
        members = getattr(meta_optimizer, "_members", [meta_optimizer])
        self._counted = []
        if isinstance(lead, OnlineOneStep):
            self._counted = [(each, "_base_steps") for each in [lead, *members]]
            self._counted += [(each.guard, "meta_steps") for each in [lead, *members]]
            self._counted += [(member.meta_descent._descent, "_steps") for member in members]

    def __call__(self, step):
        Graph.made += 1
        before = self._counters()
        first = [step()]
        result = copy.copy(first[0])

        def replay():
            Graph.replays += 1
            if not first:
                counted = self._counters()
                self._set(before)
                for name, value in vars(step()).items():
                    if value is not None:
                        getattr(result, name).copy_(value)
                self._set(counted)
            first.clear()

        return replay, result

    def _counters(self):
        return [getattr(owner, name) for owner, name in self._counted]

    def _set(self, values):
        for (owner, name), value in zip(self._counted, values, strict=True):
            setattr(owner, name, value)


@pytest.fixture
def pretended(monkeypatch):
    """CUDA graphs on the CPU, by `Graph`; gives what prepares them for a learner."""
    Graph.made = Graph.replays = 0
    monkeypatch.setattr(recorded, "refuse_unrecordable", lambda problem: None)

    def prepare(learner):
        monkeypatch.setattr(recorded, "graph", Graph(learner.adaptation))

    return prepare


def assert_equal_lives(plain, recorded):
    for a, b in zip(
        *(m.problem.model.state_dict().values() for m in (plain, recorded)), strict=True
    ):
        assert torch.equal(a, b)
    for a, b in zip(plain.problem.phi, recorded.problem.phi, strict=True):
        assert torch.equal(a, b)


def steps(learner, train, valid):
    results = [learner.step(*pair) for pair in zip(train, valid, strict=True)]
    return [
        {name: None if value is None else value.item() for name, value in vars(result).items()}
        for result in results
    ]


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_what_is_replayed_are_the_steps_that_would_be_made(adaptation, pretended):
    """Bit for bit, over batches of two sizes, a changed learning rate and a loaded state."""
    plain, recorded = (
        learner_of(images_model(), is_recorded, ADAPTATIONS[adaptation]())
        for is_recorded in (False, True)
    )
    pretended(recorded)
    train, valid = batches_of_images(12, seed=0), batches_of_images(12, seed=1)
    train[9] = tuple(part[:5] for part in train[9])
    assert steps(plain, train, valid) == steps(recorded, train, valid)
    for learner in (plain, recorded):
        learner.problem.optimizer.param_groups[0]["lr"] = 0.005
        learner.load_state_dict(copy.deepcopy(learner.state_dict()))
    train, valid = batches_of_images(8, seed=2), batches_of_images(8, seed=3)
    assert steps(plain, train, valid) == steps(recorded, train, valid)
    assert_equal_lives(plain, recorded)
    if adaptation == "learned rate":
        assert Graph.made == 0  # Python writes the rate into the optimizer
    else:
        assert Graph.made in (2, 3, 4) and Graph.replays > 8


def test_what_a_loop_changes_in_the_model_is_recorded_anew(pretended):
    """As a temperature that falls: a graph would go on with the one that was recorded."""
    model = images_model()
    model.temperature = 1.0
    learner = learner_of(model, True, OnlineOneStep(1e-3))
    pretended(learner)
    train, valid = batches_of_images(24, 2), batches_of_images(24, 3)
    made = []
    for k, (one, other) in enumerate(zip(train, valid, strict=True)):
        if k == 20:
            model.temperature = 0.5
        learner.step(one, other)
        made.append(Graph.made)
    assert made[16] == made[20] > 0
    assert made[21:] == [made[20] + 1] * 3  # after a step that is made as it is


def test_the_initialisation_is_replayed_from_an_empty_optimizer(pretended):
    plain, recorded = (
        learner_of(images_model(), is_recorded, OnlineOneStep(1e-4, certify_every=0))
        for is_recorded in (False, True)
    )
    for learner in (plain, recorded):
        pretended(recorded)
        batches = iter(batches_of_images(24, seed=4))
        torch.manual_seed(3)
        learner.initialize(
            batches.__next__,
            batches.__next__,
            steps=12,
            inner_steps=1,
            horizon=1,
            scale_steps=0,
            fit_steps=0,
            trial_steps=0,
        )
        assert not learner.problem.optimizer.state
        steps(learner, batches_of_images(6, seed=5), batches_of_images(6, seed=6))
    assert_equal_lives(plain, recorded)
    assert Graph.replays == 10 - FIRST + 4  # the first certified steps are not recorded


def stack_of(recorded, device="cpu", dtype=torch.float32):
    """Three learners, whose models and losses differ."""
    learners = []
    for seed in range(3):
        model = images_model().to(device, dtype)
        torch.manual_seed(seed)
        model[-1].reset_parameters()
        learners.append(learner_of(model, recorded, OnlineOneStep(1e-3, every=2), seed=seed))
        learners[-1].problem.loss.to(dtype)
    return metaloss.Stack(learners)


def stacked_batches(count, seed, device="cpu", dtype=torch.float32):
    each = [batches_of_images(count, seed=100 * seed + s) for s in range(3)]
    return [
        (
            torch.stack([x for x, _ in parts]).to(device, dtype),
            torch.stack([y for _, y in parts]).to(device),
        )
        for parts in zip(*each, strict=True)
    ]


def test_the_steps_of_a_stack_are_replayed(pretended):
    plain, recorded = stack_of(False), stack_of(True)
    pretended(recorded)
    for batch, valid in zip(stacked_batches(16, 0), stacked_batches(16, 1), strict=True):
        ours, theirs = recorded.step(batch, valid), plain.step(batch, valid)
        assert ours.learned_loss.equal(theirs.learned_loss)
    for one, other in zip(plain.learners, recorded.learners, strict=True):
        assert_equal_lives(one, other)
        assert one.state_dict()["base_steps"] == other.state_dict()["base_steps"] == 16
        steps_made = [learner.adaptation.state_dict() for learner in (one, other)]
        assert steps_made[0]["base_steps"] == steps_made[1]["base_steps"]
        assert steps_made[0]["descent"]["descent"]["steps"] == 8
        assert steps_made[1]["descent"]["descent"]["steps"] == 8
    # Of 8 base steps the first is not replayed, and of 8 meta-steps those up to the sixth.
    assert Graph.made == 2 and Graph.replays == 7 + 2


def test_replayed_steps_have_their_certificates(pretended):
    learner = learner_of(images_model(), True, OnlineOneStep(1e-3, certify_every=2))
    pretended(learner)
    made = [learner.step(batch, batch) for batch in batches_of_images(10, seed=0)]
    residuals = [result.adjoint_residual for result in made]
    assert [residual is not None for residual in residuals] == [True, True, True] + [
        step % 2 == 0 for step in range(3, 10)
    ]
    assert all(0 < residual < 1e-6 for residual in residuals if residual is not None)
    assert Graph.replays > 0


def test_a_step_result_is_not_written_again(pretended):
    recorded = learner_of(images_model(), True, OnlineOneStep(1e-3))
    pretended(recorded)
    batches = batches_of_images(6, seed=0)
    results = [recorded.step(batch, batch) for batch in batches]
    assert len({result.learned_loss.item() for result in results}) == 6


@pytest.mark.parametrize(
    ("adaptation", "message"),
    [
        (
            OnlineOneStep(1e-3),
            "cuda_graphs: the forward-mode pass draws the base pass's random numbers again (as of "
            "dropout in attention, or of a dropout changed in place), which no graph can: leave it "
            "out",
        ),
        (
            None,
            "cuda_graphs: the model draws random numbers on the CPU, and a graph would keep the "
            "first ones: leave it out",
        ),
    ],
)
def test_a_model_whose_random_numbers_no_graph_can_draw_is_refused(adaptation, message, pretended):
    learner = learner_of(images_model(dropout=0.5), True, adaptation)
    (batch,) = batches_of_images(1, seed=0)
    with pytest.raises(InputError) as error:
        for _ in range(FIRST + 3):  # the first certified ones are not recorded
            learner.step(batch, batch)
    assert str(error.value) == message


def test_what_cannot_be_recorded_is_refused():
    with pytest.raises(InputError, match="cuda_graphs: the model is on the cpu, and not on cuda"):
        learner_of(images_model(), True)
    model = images_model()
    for refusal, more in {
        "Adam keeps counts that Python computes with in each step; SGD does not": {
            "optimizer": torch.optim.Adam(model.parameters())
        },
        "a step with a gradient_transform cannot be recorded": {
            "gradient_transform": metaloss.ClipNorm(1.0)
        },
    }.items():
        problem = learner_of(model, False, **more).problem
        problem.device = torch.device("cuda")
        with pytest.raises(InputError) as error:
            recorded.refuse_unrecordable(problem)
        assert str(error.value) == f"cuda_graphs: {refusal}"


@on_gpu
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_on_a_gpu_recorded_steps_equal_plain_ones_bit_for_bit(adaptation, dropout):
    """30 steps in float32 after 10 of initialisation, by deterministic kernels."""
    lives = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for is_recorded in (False, True):
            model = images_model(dropout).cuda()
            learner = learner_of(model, is_recorded, ADAPTATIONS[adaptation]())
            init, train, valid = (
                [(x.cuda(), y.cuda()) for x, y in batches_of_images(count, seed=seed)]
                for count, seed in ((20, 0), (30, 1), (30, 2))
            )
            torch.manual_seed(3)
            if adaptation != "none":
                learner.initialize(init, train, steps=10)
            lives.append((learner, steps(learner, train, valid)))
    finally:
        torch.use_deterministic_algorithms(False)
    (plain, numbers), (recorded, same) = lives
    assert numbers == same
    assert_equal_lives(plain, recorded)


@on_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("recorded", [False, True])
def test_on_a_gpu_a_step_does_not_wait(recorded):
    """Neither for a batch from the data nor for the step, recorded or not."""
    model = images_model(dropout=0.3).cuda()
    learner = learner_of(model, recorded, OnlineOneStep(1e-3))
    x, y = (torch.cat(parts) for parts in zip(*batches_of_images(40, seed=0), strict=True))
    splits = dict.fromkeys(("train", "valid", "test"), (x, y))
    data = Data(splits, 10, CLASSIFICATION).to(torch.device("cuda"))
    generator = torch.Generator().manual_seed(0)

    def draw():
        return data.draw("train", 16, generator)

    for _ in range(4):
        learner.step(draw, draw)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            learner.step(draw, draw)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@pytest.mark.parametrize("engine", ["exact", "sweep", "logit_difference"])
def test_on_a_gpu_the_engines_agree_with_double_backward(engine):
    """With BatchNorm and dropout; the difference of outputs to its own accuracy."""
    model = images_model(dropout=0.3).cuda().double()
    problem = learner_of(model, False).problem
    problem.loss.double()
    meta = MetaParameters(problem)
    train, valid = (
        [(x.cuda().double(), y.cuda()) for x, y in batches_of_images(3, seed=seed)]
        for seed in (0, 1)
    )
    for warm in train[1:]:
        problem.base_step(warm)
    found = {}
    for name in ("unrolled", engine):
        torch.manual_seed(5)
        with snapshot.on_trial(problem, train[0]):
            found[name] = ENGINES[name]().hypergradient(problem, meta, train[:1], valid[:1].pop)
    for ours, reference in zip(found[engine].phi, found["unrolled"].phi, strict=True):
        tolerance = 1e-4 if engine == "logit_difference" else 1e-9
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance * 1e-2)


@on_gpu
def test_on_a_gpu_a_recorded_stack_makes_the_steps_of_each_learner_alone():
    """In float64; after an initialisation, and with a momentum that builds up."""
    cuda = {"device": "cuda", "dtype": torch.float64}
    alone, stack = stack_of(False, **cuda).learners, stack_of(True, **cuda)
    alone = [
        learner_of(copy.deepcopy(each.problem.model), False, OnlineOneStep(1e-3, every=2), seed=i)
        for i, each in enumerate(alone)
    ]
    train, valid = stacked_batches(20, 0, **cuda), stacked_batches(20, 1, **cuda)
    for learner in alone:
        learner.problem.loss.double()
    for batch, check in zip(train, valid, strict=True):
        result = stack.step(batch, check)
        for i, learner in enumerate(alone):
            one = learner.step(*((x[i], y[i]) for x, y in (batch, check)))
            torch.testing.assert_close(result.learned_loss[i], one.learned_loss)
    for one, other in zip(alone, stack.learners, strict=True):
        for ours, theirs in zip(
            [*one.problem.theta, *one.problem.phi], [*other.problem.theta, *other.problem.phi],
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
