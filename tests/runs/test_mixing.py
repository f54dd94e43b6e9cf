"""Mixed batches, soft labels, frozen parameters and their groups, in whole runs of each method."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaloss import BASE_OPTIMIZERS, GROUPINGS, config
from metaloss.errors import ConfigError, InputError
from metaloss.machine import sealed
from metaloss.runs.freezing import Freezing
from metaloss.runs.run import Run
from metaloss.runs.runner import Runner
from metaloss.tasks.base import CLASSIFICATION
from metaloss.tasks.preparation.mixing import Mixing
from metaloss.testing.certification.certify import certify, planned_case
from tests.helpers import METHODS, QUICK, assert_same_state, killed_when, rows, train


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- a batch ---

IMAGES, LABELS = torch.rand(8, 3, 6, 5), torch.arange(8) % 3


def test_mixup_is_the_same_share_of_example_and_label():
    """Each with the one before it, by λ: recovered from the pictures, it is that of the labels."""
    for inputs in (IMAGES, IMAGES.flatten(1)):  # a table's rows too
        mixed, soft = Mixing(3, mixup=0.8)((inputs, LABELS), generator())
        before, hard = inputs.roll(1, 0), F.one_hot(LABELS, 3).float()
        share = ((mixed - before) * (inputs - before)).sum() / (inputs - before).square().sum()
        assert 0 < share < 1 and mixed.shape == inputs.shape
        torch.testing.assert_close(mixed, share * inputs + (1 - share) * before)
        torch.testing.assert_close(soft, share * hard + (1 - share) * hard.roll(1, 0))


def test_cutmix_labels_weigh_by_area():
    mixed, soft = Mixing(3, cutmix=1.0)((IMAGES, LABELS), generator(1))
    kept = (mixed == IMAGES).all(1).float().mean((1, 2))
    assert kept.unique().numel() == 1 and 0 < kept[0] < 1
    hard = F.one_hot(LABELS, 3).float()
    torch.testing.assert_close(soft, kept[0] * hard + (1 - kept[0]) * hard.roll(1, 0))


def test_the_share_is_of_a_beta_distribution():
    """λ of Beta(α, α): mean 1/2, variance 1 / (4 (2α + 1)), within 5 standard errors."""
    stream, two = generator(), torch.tensor([[0.0], [1.0]])
    mixing = Mixing(2, mixup=0.5)
    shares = torch.stack([mixing((two, torch.tensor([0, 1])), stream)[0][1, 0] for _ in range(500)])
    variance = 1 / (4 * (2 * 0.5 + 1))
    assert abs(shares.mean() - 0.5) < 5 * math.sqrt(variance / 500)
    assert abs(shares.var() - variance) < 5 * variance * math.sqrt(2 / 500)


def test_smoothing_and_what_a_stream_decides():
    _, soft = Mixing(3, smoothing=0.3)((IMAGES, LABELS), generator())
    torch.testing.assert_close(soft, 0.7 * F.one_hot(LABELS, 3).float() + 0.1)
    both = Mixing(3, mixup=0.3, cutmix=0.7)
    outside = torch.get_rng_state()
    first, again = (both((IMAGES, LABELS), generator(5))[0] for _ in range(2))
    assert first.equal(again)
    assert torch.get_rng_state().equal(outside)
    stream = generator()
    kinds = {
        bool((both((IMAGES, LABELS), stream)[0] == IMAGES).any()) for _ in range(20)
    }  # CutMix leaves pixels as they are, mixup none
    assert kinds == {True, False}


# --- parameters ---


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def test_frozen_until_a_step():
    model = small()
    freezing = Freezing(model, {"*": 5, "2.*": 0, "1.*": None})
    trained = []
    for step in (0, 4, 5, 100):
        freezing.apply(step)
        trained.append([name for name, p in model.named_parameters() if p.requires_grad])
    assert trained[0] == trained[1] == ["2.weight", "2.bias"]
    assert trained[2] == trained[3] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert freezing.steps == {5}
    for until, message in (
        ({"3.*": 1}, r"3.\* matches none"),
        ({"*": 5}, "some parameter that is trained from step 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Freezing(model, until)


def optimizer(grouping: str, model: nn.Module, **arguments) -> torch.optim.Optimizer:
    runner = Runner.__new__(Runner)
    runner.grouping = lambda model: GROUPINGS[grouping](model=model, **arguments)
    runner.base_optimizer = lambda groups: BASE_OPTIMIZERS["adamw"](groups, lr=0.5)
    return runner.optimizer(model)


def settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_groups_have_their_own_rates_and_decays():
    model = small()
    asked = {"rates": {"*": 0.1, "2.*": 1.0}, "no_decay": ["*.bias"]}
    found = optimizer("patterns", model, **asked)
    assert found.param_groups[0]["lr"] == 0.5  # what is told as the rate
    by_name = settings(found, model)
    assert by_name["0.weight"] == (0.05, 0.01) and by_name["0.bias"] == (0.05, 0.0)
    assert by_name["2.weight"] == (0.5, 0.01) and by_name["2.bias"] == (0.5, 0.0)
    with pytest.raises(ConfigError, match=r"rates = '3.\*': give a pattern"):
        GROUPINGS["patterns"](model=model, rates={"3.*": 1.0})
    by_name = settings(optimizer("no_decay", model), model)
    assert {name for name, (_, decay) in by_name.items() if decay} == {"0.weight", "2.weight"}
    with pytest.raises(ConfigError, match="Sequential does not say what its layers are"):
        GROUPINGS["layers"](model=model)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_layers_of_timm_fall_from_the_head_on():
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=12, depth=2, num_heads=3, num_classes=2
    )
    by_name = settings(optimizer("layers", model, decay=0.5), model)
    assert by_name["head.weight"] == (0.5, 0.01)
    rates = [by_name[f"blocks.{i}.mlp.fc1.weight"][0] for i in range(2)]
    assert rates[1] == 2 * rates[0] and rates[1] < 0.5
    assert by_name["patch_embed.proj.weight"][0] == rates[0] / 2
    for name in ("pos_embed", "cls_token", "head.bias", "norm.weight"):
        assert by_name[name][1] == 0.0


# --- runs ---

FROZEN = "Runner.frozen_until = {'*': 5, '3.*': 0}"
CUT = (
    "Runner.cutmix = 1.0",
    "Runner.mixup = 0.4",  # one of the two for each batch
    "Runner.grouping = @groupings.no_decay",
    "Runner.base_optimizer = @base_optimizers.sgd",
    "base_optimizers.sgd.lr = 0.1",
    "base_optimizers.sgd.weight_decay = 0.1",
    "Runner.figures = 0",
)
FINE_TUNED = (
    "Runner.mixup = 0.4",
    "Runner.label_smoothing = 0.1",
    FROZEN,
    "Runner.grouping = @groupings.patterns",
    "groupings.patterns.rates = {'1.*': 0.5}",
    "groupings.patterns.no_decay = ('*.bias',)",
    "Runner.figures = 0",
)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_each_method_resumes_bit_for_bit(method, tmp_path):
    """Killed while it mixes and parameters are frozen, and again after they are not."""
    assert train(tmp_path / "whole", method, FINE_TUNED) == 0
    for moment in (3, 7, 12):
        with killed_when(lambda state, moment=moment: state.init_steps + state.steps == moment):
            train(tmp_path / "killed", method, FINE_TUNED, resume=True)
    assert train(tmp_path / "killed", method, FINE_TUNED, resume=True) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "killed", tmp_path / "whole")


def test_what_is_frozen_does_not_move_in_a_run(tmp_path, monkeypatch):
    after_step, seen = Run._record, {}

    def look(self, phase, step, *rest):
        if phase == "train":
            seen[step] = {n: v.clone() for n, v in self.state.model.state_dict().items()}
        after_step(self, phase, step, *rest)

    monkeypatch.setattr(Run, "_record", look)
    train(tmp_path / "run", "adalfl", FINE_TUNED)
    moved = {
        step: sorted(n for n, value in seen[step].items() if not value.equal(seen[step - 1][n]))
        for step in range(2, 15)
    }
    assert all(moved[step] == ["3.bias", "3.weight"] for step in range(2, 6))
    assert all(len(moved[step]) == 4 for step in range(6, 15))


def test_what_a_run_cannot_do_with_them_is_said(tmp_path):
    with pytest.raises(InputError, match="several seeds at once .* frozen_until changes them"):
        train(tmp_path / "both", "baseline", FINE_TUNED, seed=(0, 1))
    with pytest.raises(ConfigError, match=r"cutmix = 1.0 cuts pictures; .* shape \[64\]"):
        Mixing(2, cutmix=1.0).require((64,), CLASSIFICATION)
    regression = ("Runner.task = @tasks.diabetes()", "Runner.mixup = 1.0")
    with pytest.raises(ConfigError, match="are of classes; this task's labels are others"):
        train(tmp_path / "run", "baseline", regression)


def test_mixed_seeds_at_once_are_those_alone(tmp_path):
    extra = ("Runner.mixup = 0.4", "Runner.figures = 0", "Runner.steps = 4")
    train(tmp_path / "both", "baseline", extra, seed=(0, 1))
    train(tmp_path / "alone", "baseline", extra, seed=1)
    losses = [
        [row["learned_loss"] for row in rows(folder) if "learned_loss" in row]
        for folder in (tmp_path / "both" / "seed1", tmp_path / "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0]


def test_cutmix_and_no_decay_resume_bit_for_bit(tmp_path):
    assert train(tmp_path / "whole", "adalfl", CUT) == 0
    with killed_when(lambda state: state.init_steps + state.steps == 14):
        train(tmp_path / "killed", "adalfl", CUT)
    assert train(tmp_path / "killed", "adalfl", CUT, resume=True) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "killed", tmp_path / "whole")
    groups = sealed.load(tmp_path / "whole" / "checkpoint.pt")["state"]["optimizer"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]


@pytest.mark.parametrize("bindings", [FINE_TUNED, (*CUT, FROZEN)], ids=["mixed", "cut"])
def test_the_meta_gradient_is_that_of_what_is_trained_and_mixed(bindings):
    parsed = config.load(["tasks/digits_mlp.gin", "methods/adalfl.gin"], [*QUICK, *bindings])
    case = planned_case(parsed.build(), Path(), 0, 8)
    problem = case.make()
    assert {*problem.theta_names} == {"3.weight", "3.bias"}  # in the order of the groups
    assert case.batches[0][1].shape == (8, 10)
    for engine, inner_steps in (("exact", 1), ("sweep", 3)):
        found = certify(case, engine, 2, inner_steps)
        assert found.holds, found
