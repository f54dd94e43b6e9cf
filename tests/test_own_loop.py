"""AdaLFL at home in other people's training loops (tests/own_loops.py)."""

from __future__ import annotations

import copy
import gc
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

import metaloss
from metaloss import ENGINES, links
from metaloss.engines.exact import Exact
from metaloss.engines.logit_difference import LogitDifference
from metaloss.engines.sweep import Sweep
from metaloss.engines.unrolled import Unrolled
from metaloss.errors import InputError, UnsupportedModelError
from metaloss.machine.memory import measuring
from metaloss.meta_optimizers.descents.base import Descent
from metaloss.meta_optimizers.online_one_step import OnlineOneStep
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from tests.helpers import ROOT
from tests.own_loops import LOOPS, Loop, flat, meta_gradient_by_hand, mlp, plain


class Recorder(Descent):
    """Keeps φ where it is, and the gradient that it was given."""

    def __init__(self, groups) -> None:
        self.phi = [tensor for group in groups for tensor in group.tensors.values()]
        self.found: list[torch.Tensor] = []

    def descend(self, gradients, finite) -> None:
        self.found.append(flat(gradients, self.phi))

    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None:
        pass


def build(loop: Loop, dtype=torch.float64, **online):
    """Model, optimizer, scheduler, loss, and a learner around them that never moves φ."""
    torch.manual_seed(0)
    model = loop.model().to(dtype)
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(6, 6)).to(dtype)
    optimizer = loop.optimizer(model)
    scheduler = loop.scheduler(optimizer)
    recorders = []

    def descent(groups):
        recorders.append(Recorder(groups))
        return recorders[-1]

    learner = metaloss.AdaLFL(
        model,
        optimizer,
        loss,
        loop.task_loss,
        adaptation=OnlineOneStep(1e-3, descent=descent, **online),
        **loop.arguments,
    )
    return model, optimizer, scheduler, loss, learner, recorders


def in_dtype(batch, dtype):
    """A batch whose floating-point tensors have this type."""
    return torch.utils._pytree.tree_map(
        lambda x: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x, batch
    )


def drawn(loop: Loop, count: int, dtype=torch.float64):
    """For each step the list of its micro-batches, and a validation batch."""
    generator = torch.Generator().manual_seed(7)
    steps = [[loop.batch(generator) for _ in range(loop.micro or 1)] for _ in range(count)]
    return in_dtype([(train, loop.batch(generator)) for train in steps], dtype)


def given(loop: Loop, train):
    """What AdaLFL.step takes for a list of micro-batches."""
    return metaloss.MicroBatches(train) if loop.micro else train[0]


@pytest.mark.parametrize("name", LOOPS)
def test_the_meta_gradient_is_that_of_double_backward(name):
    """At each of 4 steps, momentum cold and warm, under a scheduler; by the exact engine."""
    loop = LOOPS[name]
    model, optimizer, scheduler, loss, learner, recorders = build(loop, engine="exact")
    for train, valid in drawn(loop, 4):
        expected = meta_gradient_by_hand(loop, model, optimizer, loss, train, valid)
        result = learner.step(given(loop, train), valid)
        found = recorders[0].found[-1]
        assert expected.norm() > 1e-8
        assert (found - expected).norm() <= 1e-8 * expected.norm(), name
        if "BatchNorm" not in name:  # whose running statistics the validation pass leaves alone
            assert result.task_loss.item() == pytest.approx(loop.task(model, valid).item())
        scheduler.step()


@pytest.mark.parametrize("name", LOOPS)
def test_with_phi_frozen_theta_is_that_of_the_plain_loop_bit_for_bit(name):
    """12 steps, with a meta-step after each second that leaves φ where it is."""
    loop = LOOPS[name]
    model, _, scheduler, _, learner, _ = build(loop, torch.float32, every=2)
    own, optimizer, own_scheduler, loss, _, _ = build(loop, torch.float32)
    for train, valid in drawn(loop, 12, torch.float32):
        learner.step(given(loop, train), valid)
        optimizer.zero_grad()
        for batch in train:
            learned = loop.learned(own, loss, batch)
            (learned / len(train) if loop.micro else learned).backward()
        loop.clip_in_place([p for g in optimizer.param_groups for p in g["params"]])
        optimizer.step()
        scheduler.step()
        own_scheduler.step()
    assert own.state_dict().keys() == model.state_dict().keys()
    for key, value in own.state_dict().items():
        assert model.state_dict()[key].equal(value), key


def problem_of(loop: Loop):
    model, optimizer, _, loss, learner, _ = build(loop)
    return learner.problem, MetaParameters(learner.problem)


STEPS = ["norm clipping of micro-batches", "norm clipping of adam's micro-batches",
         "value clipping", "a transform of one's own", "micro-batches of adam", "plain",
         "segmentation", "tied weights with padding", "nesterov, all tensors at once"]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", STEPS)
def test_engines_agree_on_several_steps(name, count):
    """The exact ones with each other; a difference of logits with them, where it can be had."""
    loop = LOOPS[name]
    steps = drawn(loop, count)
    found = {}
    for engine in (Exact(), Unrolled(), Sweep(), LogitDifference()):
        if isinstance(engine, LogitDifference) and (count > 1 or "tied" in name):
            continue
        problem, meta = problem_of(loop)
        adapter = loop.arguments.get("adapter")
        batches = [
            metaloss.problem.batches.adapted(given(loop, train), adapter) for train, _ in steps
        ]
        result = engine.hypergradient(problem, meta, batches, lambda: steps[0][1])
        found[ENGINES.name_of(engine)] = flat(result.phi, meta.phi)
    reference = found.pop("unrolled")
    for engine, gradient in found.items():
        bound = 1e-6 if engine == "logit_difference" else 1e-10
        assert (gradient - reference).norm() <= bound * reference.norm(), engine


def test_a_loss_that_looks_at_theta_does_so_once_for_each_micro_batch():
    """A learned regulariser beside the network: exact, unrolled and the sweep agree."""

    class Regularised(metaloss.representations.base.Representation):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inner = metaloss.REPRESENTATIONS["nn"](hidden=(6,)).double()
            self.decay = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
            self.held = [model]

        def forward(self, prediction, target):
            size = sum(p.square().sum() for p in self.held[0].parameters())
            return self.inner(prediction, target) + self.decay * size

    found = []
    ((train, valid),) = drawn(plain(micro=3), 1)
    for engine in (Exact(), Unrolled(), Sweep()):
        torch.manual_seed(0)
        model = mlp().double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        problem = Problem(
            model, optimizer, Regularised(model), F.cross_entropy, links.probabilities,
            gradient_transform=metaloss.ClipNorm(0.1),
        )  # fmt: skip
        meta = MetaParameters(problem)
        batches = [metaloss.MicroBatches(train)]
        result = engine.hypergradient(problem, meta, batches, lambda: valid)
        found.append(flat(result.phi, meta.phi))
    assert found[0][-1].abs() > 1e-6
    for gradient in found[1:]:
        assert (gradient - found[0]).norm() <= 1e-10 * found[0].norm()


def test_norm_clipping_has_the_closed_form_of_its_documentation():
    """u becomes c (u - g⟨g, u⟩/‖g‖²) where it is active, and stays u where it is not."""
    g, u = (torch.randn(2, 5, dtype=torch.float64) for _ in range(2))
    for max_norm, expected in (
        (100.0, u),
        (0.3, 0.3 / g.norm() * (u - g * (g * u).sum() / g.norm() ** 2)),
    ):
        made = metaloss.problem.gradient_transform.Transformed(
            metaloss.ClipNorm(max_norm), [g, None]
        )
        found, missing = made.cotangent([u, None])
        assert missing is None
        assert torch.allclose(found, expected, rtol=1e-5)
    made = metaloss.problem.gradient_transform.Transformed(metaloss.ClipValue(0.5), [g])
    assert made.cotangent([u])[0].equal(u * (g.abs() <= 0.5))


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_clipping_equals_torch_bit_for_bit(norm_type):
    grads = [torch.randn(3, 4), torch.randn(5), torch.zeros(2)]
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for max_norm in (0.1, 2.0, 1e4):
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g.clone()
        nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
        for p, g in zip(parameters, metaloss.ClipNorm(max_norm, norm_type)(grads), strict=True):
            assert p.grad.equal(g)


@pytest.mark.parametrize("engine", ["exact", "sweep", "logit_difference"])
def test_micro_batches_take_the_memory_of_one(engine):
    """Peak tensor memory of a meta-step on 8 micro-batches, of a model whose activations rule."""
    peaks = {}
    for count in (1, 2, 8):
        torch.manual_seed(0)
        model = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(32, 32), nn.Tanh())])
        learner = metaloss.AdaLFL(
            model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            metaloss.REPRESENTATIONS["nn"](hidden=(4,)), F.mse_loss, meta_lr=None,
            adaptation=OnlineOneStep(engine=engine),
        )  # fmt: skip
        batch = torch.randn(512, 32), torch.randn(512, 32)
        with measuring(torch.device("cpu")) as memory:
            learner.step(metaloss.MicroBatches([batch] * count), batch)
        peaks[count] = memory.peak_bytes
    assert peaks[8] <= 1.02 * peaks[2] <= 1.1 * peaks[1]


@pytest.mark.full  # long runs; test_no_tensor_outlives_its_step has a short one
@pytest.mark.parametrize(
    "engine",
    ["exact", "unrolled", "sweep", "logit_difference"],
)
def test_nothing_is_left_of_200_steps(engine):
    """Neither tensors that Python sees, nor memory that only the autograd graph would hold."""
    torch.manual_seed(0)
    model = mlp().float()
    learner = metaloss.AdaLFL(
        model, torch.optim.Adam(model.parameters()), metaloss.REPRESENTATIONS["nn"](hidden=(4,)),
        gradient_transform=metaloss.ClipNorm(0.1), adaptation=OnlineOneStep(engine=engine),
    )  # fmt: skip
    (((train,), valid),) = drawn(plain(), 1, torch.float32)

    def living():
        gc.collect()
        # Without those that torch.compile made, in other tests: they have no memory.
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return len(tensors), sum(storages.values())

    def run(steps):
        for i in range(steps):
            learner.step(metaloss.MicroBatches([train, valid]) if i % 2 else train, valid)

    def peak_of(steps):
        with measuring(torch.device("cpu")) as memory:
            run(steps)
        return memory.peak_bytes

    run(24)  # the first probe of the loss's health, which keeps the shares of the labels, is over
    before = living()
    run(200)
    assert living() == before
    assert peak_of(12) <= peak_of(4)


def test_a_state_dict_in_the_middle_continues_bit_for_bit():
    """After 7 steps of 20, with a meta-step after each third, clipping, dropout and a scheduler."""

    def start():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=20)
        learner = metaloss.AdaLFL(
            model, optimizer, metaloss.REPRESENTATIONS["nn"](hidden=(6,)),
            adaptation=OnlineOneStep(1e-2, every=3), gradient_transform=metaloss.ClipNorm(0.05),
        )  # fmt: skip
        return model, optimizer, scheduler, learner

    steps = drawn(plain(micro=2), 20, torch.float32)

    def go_on(things, chosen):
        results = []
        for train, valid in chosen:
            results.append(things[3].step(metaloss.MicroBatches(train), valid))
            things[2].step()
        return results

    things = start()
    go_on(things, steps[:7])
    states = copy.deepcopy([thing.state_dict() for thing in things])
    random = torch.get_rng_state()
    straight = go_on(things, steps[7:])
    again = start()
    for thing, state in zip(again, states, strict=True):
        thing.load_state_dict(state)
    torch.set_rng_state(random)
    resumed = go_on(again, steps[7:])
    for a, b in zip(straight, resumed, strict=True):
        assert a.learned_loss.equal(b.learned_loss)
        assert (a.task_loss is None) == (b.task_loss is None)
        assert a.task_loss is None or a.task_loss.equal(b.task_loss)
    for one, other in ((things[0], again[0]), (things[3].problem.loss, again[3].problem.loss)):
        for key, value in one.state_dict().items():
            assert other.state_dict()[key].equal(value), key
    assert sum(result.task_loss is not None for result in straight) == 4  # after 9, 12, 15 and 18


def test_schedulers_and_averages_of_the_weights_go_on_beside_it():
    """ReduceLROnPlateau, SWALR, stochastic weight averaging and an EMA, bit for bit."""
    averages, rates = [], []
    for learned in (True, False):
        model, optimizer, _, loss, learner, _ = build(plain(), torch.float32, every=2)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5)
        swa = SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
        mean = AveragedModel(model)
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        for i, (train, valid) in enumerate(drawn(plain(), 12, torch.float32)):
            if learned:
                learner.step(train[0], valid)
            else:
                optimizer.zero_grad()
                plain().learned(model, loss, train[0]).backward()
                optimizer.step()
            ema.update_parameters(model)
            if i < 6:
                plateau.step(1.0)
            else:
                swa.step()
                mean.update_parameters(model)
        averages.append((mean, ema))
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1] != 0.3
    for a, b in zip(*averages, strict=True):
        for key, value in a.state_dict().items():
            assert b.state_dict()[key].equal(value), key


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], dropout: float) -> None:
        super().__init__()
        self.rnn = kind(4, 5, num_layers=2, batch_first=True, dropout=dropout)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_networks_have_a_forward_mode(kind, dropout):
    """In float32 too, where an LSTM is another kernel; dropout between the layers is replayed."""
    found = {}
    for engine in (Exact(), Unrolled()):
        torch.manual_seed(0)
        model = Recurrent(kind, dropout)
        problem = Problem(
            model, torch.optim.SGD(model.parameters(), lr=0.5),
            metaloss.REPRESENTATIONS["nn"](hidden=(6,)), F.cross_entropy, links.probabilities,
        )  # fmt: skip
        meta = MetaParameters(problem)
        batch = torch.randn(8, 7, 4), torch.randint(3, (8,))
        result = engine.hypergradient(problem, meta, [batch], lambda batch=batch: batch)
        found[type(engine)] = flat(result.phi, meta.phi)
    reference = found[Unrolled]
    assert (found[Exact] - reference).norm() <= 1e-5 * reference.norm()


def test_the_choice_of_another_engine_is_said():
    """An EmbeddingBag has neither a forward derivative nor a second one."""
    model = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3))
    learner = metaloss.AdaLFL(
        model, torch.optim.SGD(model.parameters(), lr=0.1), metaloss.REPRESENTATIONS["nn"]()
    )
    batch = torch.randint(9, (8, 5)), torch.randint(3, (8,))
    with pytest.warns(UserWarning, match="taken by engine 'logit_difference': 'exact' does not"):
        learner.step(batch)
    learner.step(batch)


# Rows: the learned side counts the same ones as torch's losses


@pytest.mark.parametrize("weight", [None, (0.2, 1.0, 3.0)])
@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 4, 5)])
def test_dense_rows_are_those_of_torchs_cross_entropy(shape, weight):
    outputs = torch.randn(shape[0], 3, *shape[1:], dtype=torch.float64)
    labels = torch.randint(3, shape).masked_fill(torch.rand(shape) < 0.3, -100)
    given = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    expected = F.cross_entropy(outputs, labels, weight=given)
    crossed = metaloss.REPRESENTATIONS["cross_entropy"]()
    for link, logits in (
        (links.Dense(weight=weight), outputs),
        (links.Dense(weight=weight, class_dim=-1), outputs.movedim(1, -1)),
    ):
        prediction, target, *weights = link(logits, labels)
        assert len(prediction) == int((labels != -100).sum())
        assert links.mean(crossed(prediction, target), *weights).item() == pytest.approx(
            expected.item(), rel=1e-12
        )


@pytest.mark.parametrize("shape", [(6,), (6, 3), (2, 3, 4, 5)])
def test_multi_label_rows_are_those_of_binary_cross_entropy(shape):
    class Binary(metaloss.representations.base.Representation):
        def forward(self, prediction, target):
            return F.binary_cross_entropy(prediction, target, reduction="none").mean(-1)

    outputs, labels = torch.randn(shape, dtype=torch.float64), torch.rand(shape) < 0.4
    prediction, target = links.multi_label(outputs, labels)
    assert prediction.ndim == 2
    assert links.mean(Binary()(prediction, target)).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(outputs, labels.double()).item(), rel=1e-12
    )


def test_where_no_row_counts_the_loss_is_that_of_torch():
    outputs, labels = torch.randn(4, 3), torch.full((4,), -100)
    rows = metaloss.REPRESENTATIONS["nn"]()(*links.Dense()(outputs, labels))
    assert links.mean(rows).isnan() and F.cross_entropy(outputs, labels).isnan()


def rows_that_count(kind):
    """Three micro-batches of which rows of other numbers count, of the first none; a learner's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    shape = (5, 6, 4) if kind == "tokens" else (6, 4)
    link, weight = links.probabilities, None
    if kind in ("tokens", "class weights"):
        weight = (0.2, 1.0, 3.0) if kind == "class weights" else None
        link = links.Dense(weight=weight, class_dim=-1)
    given = None if weight is None else torch.tensor(weight).double()

    def loss(outputs, labels):
        if kind == "weighted":
            labels, w = labels
            return (w * F.cross_entropy(outputs, labels, reduction="none")).sum() / w.sum()
        return F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), weight=given)

    parts = []
    for kept in (0.0, 0.8, 0.3):
        inputs = torch.randn(shape).double()
        labels = torch.randint(3, shape[:-1])
        labels = labels.masked_fill(torch.rand(shape[:-1]) >= kept, -100)
        parts.append((inputs, labels))
    if kind == "weighted":
        link = links.Weighted(links.probabilities)
        parts = [(x, (y.clamp(0), torch.rand(len(y)).double() * (y >= 0))) for x, y in parts[1:]]
    if kind == "sizes":
        parts = [(x[:n], y[:n].clamp(0)) for n, (x, y) in zip((6, 2, 1), parts, strict=True)]
    return model, parts, {"link": link, "task_loss": loss}


@pytest.mark.parametrize("engine", ["exact", "unrolled", "logit_difference", "neumann", "blind"])
@pytest.mark.parametrize("kind", ["classes", "tokens", "class weights", "weighted", "sizes"])
def test_micro_batches_are_one_batch_of_all_their_rows(kind, engine, monkeypatch):
    """Also where a micro-batch has no row that counts: it weighs nothing, no step is skipped.

    "blind": Python sees no label, as on a GPU.
    """
    if engine == "blind":
        monkeypatch.setattr(links, "_can_look_at", lambda labels: False)
        engine = "exact"
    found = []
    for how in ("apart", "whole"):
        model, parts, arguments = rows_that_count(kind)
        if how == "whole":
            x, y = zip(*parts, strict=True)
            both = [torch.cat(one) for one in zip(*y, strict=True)] if kind == "weighted" else None
            batch = torch.cat(x), torch.cat(y) if both is None else tuple(both)
        else:
            batch = metaloss.MicroBatches(parts)
        loss = metaloss.REPRESENTATIONS["nn"](hidden=(4,)).double()
        adaptation = metaloss.META_OPTIMIZERS["online_one_step"](0.1, engine=engine)
        learner = metaloss.AdaLFL(
            model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss,
            adaptation=adaptation, health_every=1, **arguments,
        )  # fmt: skip
        steps = [learner.step(batch, batch) for _ in range(3)]
        assert not any(bool(step.skipped) for step in steps)
        numbers = [torch.stack([s.learned_loss, s.task_loss, s.gradient_norm]) for s in steps]
        found.append([*model.parameters(), *loss.parameters(), *numbers])
    tolerance = 1e-4 if engine == "logit_difference" else 1e-9
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("link", [links.probabilities, links.Dense()])
def test_batches_without_a_row_that_counts_are_no_trouble(link):
    """Each probe and the trial leave them out; no warning, and θ and φ stay finite."""
    torch.manual_seed(0)
    model, loss = nn.Linear(4, 3), metaloss.REPRESENTATIONS["nn"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = metaloss.AdaLFL(model, optimizer, loss, link=link, health_every=1)
    x = torch.randn(16, 4)
    some, none = (x, x[:, :3].argmax(-1)), (x, torch.full((16,), -100))
    learner.initialize([some, none], [some, none], steps=2, fit_steps=200)
    for batch in (some, none, metaloss.MicroBatches([none, some]), none, some):
        skipped = bool(learner.step(batch, batch).skipped)
        assert skipped == (batch is none)
    assert not learner.health().warnings
    assert all(p.isfinite().all() for p in [*model.parameters(), *loss.parameters()])


@pytest.mark.parametrize("link", [
    links.probabilities, links.values, links.multi_label, links.by_labels, links.Dense(),
    links.Dense(255, (1.0, 2.0), -1), links.Weighted(), links.Weighted(links.Dense(0)),
])  # fmt: skip
def test_links_are_plain_data_and_back(link, tmp_path):
    import json

    assert links.from_json(json.loads(json.dumps(links.to_json(link)))) == link
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(4,))
    metaloss.LearnedLoss(loss, link).save_pretrained(tmp_path)
    assert metaloss.load_loss(tmp_path).link == link


def test_an_exported_loss_counts_rows_as_its_link_does(tmp_path):
    loss, link = metaloss.REPRESENTATIONS["nn"](hidden=(4,)), links.Weighted(links.Dense())
    metaloss.LearnedLoss(loss, link).save_pretrained(tmp_path)
    outputs, labels, weights = torch.randn(2, 3, 5), torch.randint(3, (2, 5)), torch.rand(2, 5)
    labels[:, 3:] = -100
    kept = softmaxed = outputs.transpose(1, 2)[:, :3].reshape(-1, 3).softmax(-1)
    rows = loss(softmaxed, F.one_hot(labels[:, :3].reshape(-1), 3).to(kept))
    w = weights[:, :3].reshape(-1)
    found = metaloss.load_loss(tmp_path)(outputs, (labels, weights))
    assert found.item() == pytest.approx((w * rows).sum().item() / w.sum().item(), rel=1e-6)


# What is refused, and why


def learner_of(model=None, **arguments):
    model = model or mlp().float()
    return metaloss.AdaLFL(
        model, torch.optim.SGD(model.parameters(), lr=0.1), metaloss.REPRESENTATIONS["nn"](),
        **arguments,
    )  # fmt: skip


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    return str(error.value)


def test_batches_that_are_none_are_refused():
    x, y = torch.randn(4, 6), torch.randint(3, (4,))
    learner = learner_of()
    assert refused(learner.step, (x, y, y)) == (
        "a batch is (inputs, labels), and this one is a tuple of 3: give `adapter`, a function "
        "from it to the two"
    )
    assert refused(learner.step, {"x": x, "y": y}) == (
        "a batch is (inputs, labels), and this one is a dict of x, y: give `adapter`, a function "
        "from it to the two"
    )
    assert refused(learner_of(adapter=lambda b: b["x"]).step, {"x": x}) == (
        "a batch is (inputs, labels), and this one is a Tensor [4, 6]: `adapter` has to return "
        "the two"
    )
    assert (
        refused(metaloss.MicroBatches, []) == "MicroBatches are at least one batch; there is none"
    )


def test_a_task_loss_that_looks_elsewhere_for_the_classes_is_refused():
    learner = learner_of(nn.Linear(6, 3), link=links.Dense(class_dim=-1))
    assert refused(learner.step, (torch.randn(2, 5, 6), torch.randint(3, (2, 5)))) == (
        "the link has the classes of outputs [2, 5, 3] in dimension -1, and the task loss, torch's "
        "own, in dimension 1: give task_loss=lambda f, y: F.cross_entropy(f.movedim(-1, 1), y)"
    )
    learner.step((torch.randn(4, 6), torch.randint(3, (4,))))  # where both are one dimension


def test_outputs_that_are_no_tensor_are_refused():
    class Dictionary(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x), "hidden": x}

    batch = torch.randn(4, 6), torch.randint(3, (4,))
    assert refused(learner_of(Dictionary(6, 3)).step, batch) == (
        "a model gives a tensor of outputs, and this one gives a dict of logits, hidden: give "
        "`outputs`, a function from it to the tensor"
    )
    assert refused(learner_of(Dictionary(6, 3), outputs=tuple).step, batch) == (
        "`outputs` has to give a tensor, and it gives a tuple of 2"
    )


def test_gradient_hooks_are_refused_when_they_are_there_and_when_they_come():
    reason = (
        "a parameter of shape (8, 6) has a gradient hook, and what it does in a step cannot be "
        "followed: remove it, and give what it changes as `gradient_transform`"
    )
    batch = torch.randn(4, 6), torch.randint(3, (4,))
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        model = mlp().float()
        learner = learner_of(model)
        handle = getattr(model[0].weight, register)(lambda g: None)
        assert refused(learner_of, model) == reason
        assert refused(learner.step, batch) == reason
        handle.remove()
        learner.step(batch)


def test_float16_is_refused_and_bfloat16_is_not():
    reason = (
        "gradients underflow in float16 without a GradScaler, which the meta-gradient does not "
        "pass through: take torch.bfloat16, which needs none"
    )
    batch = torch.randn(4, 6), torch.randint(3, (4,))
    assert refused(learner_of, autocast=torch.float16) == reason
    with torch.autocast("cpu", torch.float16):
        assert refused(learner_of().step, batch) == reason
    with torch.autocast("cpu", torch.bfloat16):
        assert learner_of().step(batch).skipped.item() is False


def test_transforms_that_lose_gradients_are_refused():
    batch = torch.randn(4, 6), torch.randint(3, (4,))
    learner = learner_of(nn.Linear(6, 3), gradient_transform=lambda grads: grads[:1])
    assert refused(learner.step, batch) == (
        "a gradient_transform gives one tensor for each that it gets, of the same shape: from "
        "[3, 6], [3] this one makes [3, 6]"
    )
    learner = learner_of(nn.Linear(6, 3), gradient_transform=lambda grads: None)
    assert refused(learner.step, batch).endswith("from [3, 6], [3] this one makes nothing")


@pytest.mark.parametrize("argument", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_with_another_gradient_are_refused_unless_frozen(argument):
    model = nn.Sequential(nn.Embedding(9, 4, **argument), nn.Flatten(), nn.Linear(8, 3))
    (name,) = argument
    assert refused(learner_of, model).endswith(
        f", whose {name} makes its gradient another than its derivative: leave it out, or freeze "
        "its weight"
    )
    model[0].weight.requires_grad_(False)
    learner_of(model)


def test_a_tied_padding_row_is_refused_by_differences_of_outputs():
    problem, meta = problem_of(LOOPS["tied weights with padding"])
    with pytest.raises(UnsupportedModelError, match="its padding row moves, but not by its own"):
        LogitDifference().hypergradient(problem, meta, [None], lambda: None)


def test_links_say_which_shapes_they_take():
    outputs = torch.randn(2, 3, 5)
    assert refused(links.probabilities, outputs, torch.zeros(2, 5, dtype=torch.long)) == (
        "the model gives outputs [2, 3, 5] for labels [2, 5]: links.probabilities takes "
        "[batch, classes] and [batch]; pixels and tokens have link=metaloss.links.Dense()"
    )
    assert refused(links.Dense(class_dim=-1), outputs, torch.zeros(2, 5, dtype=torch.long)) == (
        "the model gives outputs [2, 3, 5] for labels [2, 5]: with classes in dimension -1 labels "
        "are [2, 3]"
    )
    assert refused(links.multi_label, outputs, outputs[0]) == (
        "the model gives outputs [2, 3, 5] for labels [3, 5]: multi-label classification has 0 or "
        "1 for each output"
    )
    labels = torch.randint(3, (2, 5))
    assert refused(links.Weighted(links.Dense()), outputs, (labels, torch.ones(3))) == (
        "there are 3 weights for 10 rows of outputs [2, 3, 5]: one for each"
    )
    assert refused(links.by_labels, outputs, (labels, labels)) == (
        "labels are a tuple, and which link takes it is not said: give `link`, as "
        "metaloss.links.Weighted() for (labels, weights)"
    )
    assert refused(links.to_json, refused) == (
        "the link 'refused' has no name to be saved by · known: probabilities, values, "
        "multi_label, by_labels, dense, weighted"
    )
    assert refused(links.from_json, "densse") == (
        "no link is called 'densse'; did you mean 'dense'? · known: probabilities, values, "
        "multi_label, by_labels, dense, weighted"
    )
    assert "unexpected keyword argument 'ignore'" in refused(
        links.from_json, {"name": "dense", "ignore": 1}
    )


# Initialisation


def test_initialisation_leaves_what_is_not_trained_as_it_is():
    """A frozen backbone may have come a long way: φ is learned on it, not on noise."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    learner = learner_of(model, adapter=lambda b: (b["x"], b["y"]))
    seen = []
    model[2].register_forward_pre_hook(
        lambda module, _: seen.append((model[0].weight.clone(), module.bias.clone()))
    )
    loader = [{"x": torch.randn(4, 6), "y": torch.randint(3, (4,))} for _ in range(3)]
    grouped = [metaloss.MicroBatches(loader[:2])]
    learner.initialize(grouped, loader, steps=3)
    assert all(w.equal(before["0.weight"]) and b.equal(before["2.bias"]) for w, b in seen)
    for key, value in before.items():
        assert model.state_dict()[key].equal(value), key


def test_trials_and_initialisation_leave_no_trace_in_any_buffer():
    """A count of the training passes that no state dict has."""

    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 3)
            self.register_buffer("passes", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.passes += 1
            return super().forward(x)

    model = Counting()
    learner = learner_of(model)  # whose engine is chosen by a trial
    batch = torch.randn(4, 6), torch.randint(3, (4,))
    learner.initialize([batch], [batch], steps=3)
    assert model.passes == 0
    learner.step(batch)
    learner.step(metaloss.MicroBatches([batch, batch]), batch)
    assert model.passes == 3


# What is written


@pytest.mark.full  # two trainings
def test_the_example_learns_digits_with_the_five_lines_and_without(capsys):
    spec = importlib.util.spec_from_file_location("own_loop", ROOT / "examples/own_loop.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main(["--epochs=2", "--initial_steps=5"]) > 0.8
    assert "epoch  2  test accuracy 0." in capsys.readouterr().out
    assert example.main(["--epochs=2", "--plain"]) > 0.8
