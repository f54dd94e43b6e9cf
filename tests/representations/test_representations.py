"""What each representation computes, what it starts as, its limits, and that it learns."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaloss
from metaloss import REPRESENTATIONS, links
from metaloss.analysis import curves
from metaloss.errors import ConfigError, InputError
from metaloss.representations.parts import smooth
from metaloss.representations.saved.learned_loss import load_loss
from metaloss.representations.saved.trajectory import Trajectory, flat

CLASSES = {n: c for n, c in REPRESENTATIONS.items() if isinstance(c, type)}  # not `pretrained`
BUILT_IN = sorted(n for n, c in CLASSES.items() if c.__module__.startswith("metaloss."))
LEARNABLE = [n for n in BUILT_IN if [*REPRESENTATIONS[n]().parameters()]]


def build(name, **arguments):
    """A loss in float64, its numbers those of a construction in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        return REPRESENTATIONS[name](**arguments)
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def pairs():
    """Probabilities and one-hot targets, [20, 5], float64."""
    logits = 3 * torch.randn(20, 5, dtype=torch.float64)
    return links.probabilities(logits, torch.randint(5, (20,)))


def cross_entropy(prediction, target):
    return -(prediction * target).sum(-1).log()


# --- what they start as ---


@pytest.mark.parametrize(
    ("name", "arguments"), [("poly", {}), ("poly", {"terms": 4}), ("focal", {}), ("residual", {})]
)
def test_what_starts_as_cross_entropy(name, arguments, pairs):
    torch.testing.assert_close(build(name, **arguments)(*pairs), cross_entropy(*pairs))


def test_residual_starts_as_the_known_loss_to_the_bit(pairs):
    for known in ("cross_entropy", "squared_error"):
        assert build("residual", base=known)(*pairs).equal(build(known)(*pairs))
    corrected = build("residual", base="squared_error", correction="taylor", factor=0.5)
    torch.testing.assert_close(
        corrected(*pairs), build("squared_error")(*pairs) + corrected.learned(*pairs) / 2
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("class_set", {}), ("class_set", {"context": "attention"}), ("step_conditioned", {})],
)
def test_networks_start_as_the_plain_network(name, arguments, pairs):
    torch.testing.assert_close(build(name, **arguments)(*pairs), build("nn")(*pairs))


@pytest.mark.parametrize("intervals", [1, 2, 3, 4, 8, 16, 40])
def test_a_spline_starts_near_cross_entropy_the_nearer_the_more_intervals(intervals):
    spline = build("monotone_spline", intervals=intervals)
    p = torch.linspace(0, 1, 500, dtype=torch.float64, requires_grad=True)
    own = spline(p[:, None], torch.ones(500, 1, dtype=torch.float64))
    (slope,) = torch.autograd.grad(own.sum(), p)
    expected = -1 / (p + 1 / (2 * intervals**2))
    torch.testing.assert_close(slope, expected, rtol=0.15 if intervals > 4 else 0.6, atol=0)


def test_a_spline_starts_as_the_square_where_it_can():
    q = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    for target in (0.0, 1.0):
        f = (1 - q if target else q)[:, None]
        loss = build("monotone_spline", start="squared_error")(f, torch.full_like(f, target))
        (slope,) = torch.autograd.grad(loss.sum(), q)
        torch.testing.assert_close(slope, 2 * q, rtol=0, atol=0.07)
        beyond = q > 0.13  # the first interval, where a slope of 0 cannot be
        torch.testing.assert_close(slope[beyond], 2 * q[beyond])


# --- closed forms ---


def test_poly_is_poly_n(pairs):
    epsilon = (0.7, -0.4, 2.0)
    p = (pairs[0] * pairs[1]).sum(-1)
    expected = -p.log() + sum(e * (1 - p) ** j for j, e in enumerate(epsilon, 1))
    torch.testing.assert_close(build("poly", terms=3, epsilon=epsilon)(*pairs), expected)
    torch.testing.assert_close(build("poly", epsilon=2.0)(*pairs), 2 * (1 - p) - p.log())


def test_focal_is_focal(pairs):
    p = (pairs[0] * pairs[1]).sum(-1)
    expected = -0.25 * (1 - p) ** 2 * p.log()
    torch.testing.assert_close(build("focal", gamma=2.0, alpha=0.25)(*pairs), expected)


def test_label_smoothing_is_torchs(pairs):
    logits, labels = pairs[0].log(), pairs[1].argmax(-1)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3, reduction="none")
    torch.testing.assert_close(build("label_smoothing", epsilon=0.3)(*pairs), expected)


@pytest.mark.parametrize("name", ["poly", "focal", "label_smoothing", "monotone_spline"])
def test_soft_targets_mix_the_losses_of_the_classes(name, pairs):
    loss, (prediction, _) = build(name), pairs
    one_hot = torch.eye(5, dtype=torch.float64)
    a, b = (loss(prediction, one_hot[[k]].expand(20, 5)) for k in (1, 3))
    mixed = loss(prediction, (0.3 * one_hot[[1]] + 0.7 * one_hot[[3]]).expand(20, 5))
    torch.testing.assert_close(mixed, 0.3 * a + 0.7 * b)


#: Barron (2019), Table 1 and eq. 8: ρ(x) at c = 1.
ROBUST = {
    2 - 2e-6: lambda x: x**2 / 2,
    1.0: lambda x: (x**2 + 1).sqrt() - 1,
    1.7: lambda x: 0.3 / 1.7 * ((x**2 / 0.3 + 1) ** 0.85 - 1),
    1e-9: lambda x: (x**2 / 2 + 1).log(),
    0.0: lambda x: (x**2 / 2 + 1).log(),
    -1e-9: lambda x: (x**2 / 2 + 1).log(),
    -2.0: lambda x: 2 * x**2 / (x**2 + 4),
    -1e6: lambda x: 1 - (-(x**2) / 2).exp(),
}


@pytest.mark.parametrize("alpha", ROBUST)
def test_robust_is_each_member_of_its_family(alpha):
    x = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(61, 1, dtype=torch.float64)
    found, expected = build("robust", alpha=alpha)(x[:, None], zero), ROBUST[alpha](x)
    near_an_end = alpha < -1e5 or alpha > 1.99
    for _ in range(3):  # the value, its slope and its curvature
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if near_an_end else 1e-8)
        found, expected = (
            torch.autograd.grad(y.sum(), x, create_graph=True)[0] for y in (found, expected)
        )
    scaled = build("robust", alpha=alpha, c=0.1)(x.detach()[:, None], zero)
    atol = 0.1 if near_an_end else 1e-6
    torch.testing.assert_close(scaled, ROBUST[alpha](x.detach() / 0.1), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("alpha", [1.999999, 1.0, 1e-3, 0.0, -1e-3, -1e6])
def test_robust_learns_its_shape_through_every_limit(alpha):
    loss = build("robust", alpha=alpha)
    target = torch.zeros(7, 1, dtype=torch.float64)
    x = torch.tensor([-2.0, -0.5, -1e-4, 0.0, 1e-4, 0.5, 2.0], dtype=torch.float64)[:, None]

    def slope(raw, log_c, x):
        y = torch.func.functional_call(loss, {"raw": raw, "log_c": log_c}, (x, target))
        return torch.autograd.grad(y.sum(), x, create_graph=True)[0]

    inputs = [loss.raw.detach().clone().requires_grad_(), torch.zeros_like(loss.raw)]
    inputs[1].requires_grad_()
    assert torch.autograd.gradcheck(slope, (*inputs, x.requires_grad_()), atol=1e-6)


def test_expm1_ratio_has_the_derivatives_of_its_series():
    for center in (0.0, 1e-8, -0.0999, 0.1, -0.3, 2.0, -3.0):
        x = torch.tensor(center, dtype=torch.float64, requires_grad=True)
        y = smooth.expm1_ratio(x)
        for order in range(3):  # the n-th derivative of Σ xᵏ/(k+1)!
            expected = math.fsum(
                math.prod(range(k - order + 1, k + 1))
                * center ** (k - order)
                / math.factorial(k + 1)
                for k in range(order, 150)
            )
            assert float(y.detach()) == pytest.approx(expected, rel=1e-9), (center, order)
            (y,) = torch.autograd.grad(y, x, create_graph=True)


@pytest.mark.parametrize("order", [2, 3, 4, 7])
def test_taylor_has_every_monomial_with_the_prediction(order, pairs):
    loss = build("taylor", order=order)
    assert sum(p.numel() for p in loss.parameters()) == 2 + order * (order + 1) // 2
    with torch.no_grad():
        for p in loss.parameters():
            p.normal_()
    x, y = pairs[1] - loss.centre[0], pairs[0] - loss.centre[1]
    powers = [
        (a, b) for a, b in itertools.product(range(order + 1), repeat=2) if b and a + b <= order
    ]
    terms = [x**a * y**b / math.factorial(a) / math.factorial(b) for a, b in powers]
    expected = torch.stack(terms, -1) @ loss.coefficients
    torch.testing.assert_close(loss(*pairs), expected.mean(-1))


# --- what holds whatever is learned ---


def shaken(name, seed, size=3.0, **arguments):
    """A loss far from its start."""
    loss = build(name, **arguments)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in loss.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return loss


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["poly", "focal", "label_smoothing", "monotone_spline"])
def test_the_loss_falls_with_the_probability_of_the_label(name, seed):
    """Of one output; what label smoothing adds is of the others."""
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)[:, None].requires_grad_()
    loss = shaken(name, seed)(p, torch.ones_like(p))
    (slope,) = torch.autograd.grad(loss.sum(), p)
    assert (slope < 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_spline_is_monotone_and_twice_smooth_in_both_panels(seed):
    spline = shaken("monotone_spline", seed)
    knots = spline._knots(spline.raw)
    inner = knots[(knots > 1e-9) & (knots < 1 - 1e-9)].detach()
    assert len(inner) == spline.intervals - 1
    error = torch.cat([torch.linspace(0, 1, 301, dtype=torch.float64), inner - 1e-9, inner + 1e-9])
    error.requires_grad_()
    for target in (0.0, 1.0):
        f = (1 - error if target else error)[:, None]
        (slope,) = torch.autograd.grad(
            spline(f, torch.full_like(f, target)).sum(), error, create_graph=True
        )
        assert (slope > 0).all()
        (curvature,) = torch.autograd.grad(slope.sum(), error)
        below, above = (part[301:].chunk(2) for part in (slope.detach(), curvature))
        torch.testing.assert_close(*below, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(*above, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("context", ["mean", "attention"])
def test_a_class_set_looks_at_all_classes_and_not_at_their_order(context, pairs):
    loss, (prediction, target) = shaken("class_set", 0, 0.3, context=context), pairs
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        loss(prediction, target), loss(prediction[:, order], target[:, order])
    )

    def cross_term(loss):
        f = prediction[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(f[None], target[:1]).sum(), f, create_graph=True)
        return torch.autograd.grad(slope[0], f)[0][1:].abs().max()

    assert cross_term(build("nn")) == 0
    assert cross_term(loss) > 1e-3


@pytest.mark.parametrize("name", LEARNABLE)
@pytest.mark.parametrize("size", [1.0, 20.0])
def test_everything_stays_finite_far_from_the_start(name, size, pairs):
    if name in ("nn", "class_set", "taylor", "residual", "scale_shape", "step_conditioned"):
        size = min(size, 1.0)  # free parameters; the others are held by their transforms
    loss = shaken(name, 1, size).float()
    prediction, target = (x.float() for x in pairs)
    prediction.requires_grad_()
    values = loss(prediction, target)
    (slope,) = torch.autograd.grad(values.sum(), prediction, create_graph=True)
    found = torch.autograd.grad(slope.square().sum(), [*loss.parameters()], materialize_grads=True)
    assert all(tensor.isfinite().all() for tensor in (values, slope, *found))


# --- progress ---


def test_the_parameters_are_polynomials_of_the_progress(pairs):
    loss = shaken("step_conditioned", 0, 0.3, of="taylor", degree=2)
    plain = build("taylor")
    for step in (0, 3, 12, 15):
        loss.observe(step, 12)
        tau = min(step / 12, 1.0)
        with torch.no_grad():
            for p, start, change in zip(
                plain.parameters(), loss.loss.parameters(), loss.changes, strict=True
            ):
                p.copy_(start + tau * change[0] + tau**2 * change[1])
        torch.testing.assert_close(loss(*pairs), plain(*pairs))
    before = loss(*pairs)
    loss.observe(6, None)  # of the 12 it knows
    assert float(loss.progress) == 0.5 and not loss(*pairs).equal(before)


class Recorder(nn.Module):
    """A loss that is no Representation: it is told nothing."""

    def forward(self, prediction, target):
        return (prediction - target).square().mean(-1)


def small_learner(loss, **arguments):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return metaloss.AdaLFL(model, optimizer, loss, **arguments)


def some_batch():
    return torch.randn(8, 4), torch.randint(3, (8,))


def test_a_learner_tells_the_progress_before_each_base_step():
    loss = REPRESENTATIONS["scale_shape"](of="step_conditioned", settings={"of": "focal"})
    seen = []
    learner = small_learner(loss, steps=4, meta_lr=1e-2)
    assert float(loss.loss.progress) == 0
    learner.initialize([some_batch()], [some_batch()], steps=3, inner_steps=2)
    assert float(loss.loss.progress) == 0
    for _ in range(5):
        learner.step(some_batch(), some_batch())
        seen.append(float(loss.loss.progress))
    assert seen == [0, 0.25, 0.5, 0.75, 1]
    small_learner(Recorder(), meta_lr=None).step(some_batch())


def test_progress_goes_on_where_it_was_saved():
    def learner():
        return small_learner(REPRESENTATIONS["step_conditioned"](of="taylor"), steps=9, meta_lr=0.1)

    whole, first, second = learner(), learner(), learner()
    second.problem.loss.load_state_dict(first.problem.loss.state_dict())
    whole.problem.loss.load_state_dict(first.problem.loss.state_dict())
    batches = [(some_batch(), some_batch()) for _ in range(6)]
    for batch in batches:
        whole.step(*batch)
    for batch in batches[:3]:
        first.step(*batch)
    second.load_state_dict(first.state_dict())
    second.problem.model.load_state_dict(first.problem.model.state_dict())
    for batch in batches[3:]:
        second.step(*batch)
    for name, value in whole.problem.loss.state_dict().items():
        assert second.problem.loss.state_dict()[name].equal(value), name
    assert float(second.problem.loss.progress) == pytest.approx(5 / 9)


def test_a_loss_that_needs_the_progress_says_so():
    with pytest.raises(InputError) as caught:
        small_learner(REPRESENTATIONS["step_conditioned"]())
    assert str(caught.value) == (
        "representations.step_conditioned looks at the progress of the training: tell how many "
        "base steps it has, AdaLFL(..., steps=...)"
    )


def test_exports_and_curves_know_the_progress(tmp_path, pairs):
    pairs = [x.float() for x in pairs]
    loss = REPRESENTATIONS["step_conditioned"](of="taylor")
    with torch.no_grad():
        loss.changes[1].normal_()
    phi = flat(loss)
    exported = metaloss.LearnedLoss(loss, links.probabilities)
    expected = {}
    for step in (0, 5, 10):
        loss.observe(step, 10)
        expected[step] = loss(*pairs)
        exported.record(step)
    loss.observe(5, 10)
    exported.save_pretrained(tmp_path)
    loaded = load_loss(tmp_path)
    assert loaded.representation(*pairs).equal(expected[5])
    for step, value in expected.items():
        assert loaded.at(step).representation(*pairs).equal(value)
    scheduled = loaded.schedule(steps=20)  # stretched
    for _ in range(10):
        scheduled.step()
    assert scheduled.loss.representation(*pairs).equal(expected[5])
    loaded = loaded.representation
    drawn = curves.sample(loaded, Trajectory(torch.tensor([0, 10]), phi.repeat(2, 1)), classes=5)
    assert abs(drawn.values[0] - drawn.values[1]).max() > 0.1
    loss.observe(10, 10)
    at_the_end = curves.sample(loss, Trajectory(torch.tensor([10]), phi[None]), classes=5)
    assert (at_the_end.values[0] == drawn.values[1]).all()


# --- what is refused ---


def of_values():
    classes = {n: c for n, c in REPRESENTATIONS.items() if isinstance(c, type)}  # plugins' too
    return ", ".join(n for n, c in classes.items() if not c.classification_only)


ONLY = ["cross_entropy", "focal", "label_smoothing", "monotone_spline", "poly"]


def test_which_losses_are_of_classification_alone():
    assert [n for n in BUILT_IN if REPRESENTATIONS[n].classification_only] == ONLY


@pytest.mark.parametrize("name", ONLY)
def test_a_run_refuses_regression_before_it_starts(name, refused):
    assert refused(
        f"--gin_param=Runner.representation = @representations.{name}()",
        files=("tasks/diabetes_mlp.gin", "methods/ml3_letter.gin"),
    ) == (
        f"representations.{name} is a loss of class probabilities, and these targets are no "
        "distributions over classes: it serves neither regression nor several labels at once · "
        f"losses that do: {of_values()}"
    )


def test_ones_own_loop_refuses_regression_at_its_first_step_also_within_another_loss():
    learner = small_learner(REPRESENTATIONS["residual"](base="cross_entropy"), meta_lr=1e-3)
    with pytest.raises(InputError, match="representations.cross_entropy is a loss of class prob"):
        learner.step((torch.randn(8, 4), torch.randn(8, 3)))


@pytest.mark.parametrize("name", ["robust", "class_set", "taylor", "step_conditioned"])
def test_the_others_serve_regression(name):
    loss = REPRESENTATIONS[name]()
    learner = small_learner(loss, task_loss=F.mse_loss, meta_lr=1e-3, steps=3)
    for _ in range(3):
        result = learner.step((torch.randn(8, 4), torch.randn(8, 3)))
        assert result.gradient_norm > 0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("taylor", {"order": 1}, "representations.taylor.order = 1: give an integer of at least 2"),
        ("poly", {"terms": 2, "epsilon": (1.0,)},
         "representations.poly.epsilon = (1.0,): give 2 numbers, or one for all"),
        ("poly", {"terms": 2, "epsilon": -0.7},
         "representations.poly.epsilon = -0.7: give a number above -0.5"),
        ("focal", {"gamma": -1.0}, "representations.focal.gamma = -1.0: give a number above -1"),
        ("label_smoothing", {"epsilon": 1.0},
         "representations.label_smoothing.epsilon = 1.0: give a number above 0 and below 1"),
        ("monotone_spline", {"start": "hinge"},
         "representations.monotone_spline.start = 'hinge': give one of 'cross_entropy', "
         "'squared_error'"),
        ("class_set", {"hidden": (8, 0)},
         "representations.class_set.hidden = (8, 0): give a list, each item an "
         "integer of at least 1"),
        ("step_conditioned", {"of": "cross_entropy"},
         "representations.step_conditioned.of = 'cross_entropy': give a loss that has "
         "parameters to change"),
        ("residual", {"factor": "much"},
         "representations.residual.factor = 'much': give a number that is finite"),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(name, arguments, message):
    with pytest.raises(ConfigError) as caught:
        REPRESENTATIONS[name](**arguments)
    assert str(caught.value) == message


def test_the_ends_of_the_robust_family_are_no_starts():
    for alpha in (2.0, -float("inf"), 2 - 1e-9):
        with pytest.raises(ConfigError, match="representations.robust.alpha = .*: give a number"):
            REPRESENTATIONS["robust"](alpha=alpha)


# --- they learn ---


@pytest.fixture(scope="module")
def digits():
    return metaloss.TASKS["digits"]().load(Path(), torch.Generator().manual_seed(0))


#: Arguments and meta learning rates of those that start nearly flat.
SETTINGS = {
    "taylor": ({}, 3e-2),
    "robust": ({"c": 0.2}, 1e-2),
    "scale_shape": ({"of": "focal"}, 1e-2),
}


@pytest.mark.parametrize("name", LEARNABLE)
def test_adalfl_trains_with_it(name, digits):
    """Offline, then online, on digits: the training loss falls, φ moves in both phases."""
    torch.manual_seed(0)
    model = metaloss.BACKBONES["mlp"]((1, 8, 8), 10, hidden=(32,))
    arguments, meta_lr = SETTINGS.get(name, ({}, 3e-3))
    loss = REPRESENTATIONS[name](**arguments)
    generator = torch.Generator().manual_seed(0)
    draws = [lambda split=split: digits.draw(split, 64, generator) for split in ("train", "valid")]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    learner = metaloss.AdaLFL(model, optimizer, loss, meta_lr=meta_lr, steps=60)
    start = flat(loss)
    learner.initialize(
        *draws,
        steps=60,
        inner_steps=1,
        meta_lr=meta_lr,
        horizon=1,
        fit_steps=0,
        scale_steps=0,
        trial_steps=0,
    )
    middle = flat(loss)
    inputs, labels = digits.splits["train"]
    before = F.cross_entropy(model(inputs), labels).item()
    for _ in range(60):
        learner.step(*draws)
    after = F.cross_entropy(model(inputs), labels).item()
    assert after < 0.7 * before
    assert not start.equal(middle) and not middle.equal(flat(loss))
