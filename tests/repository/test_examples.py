"""The examples train, and where they say so make the steps of a plain loop, bit for bit."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metaloss
from metaloss.runs import launch
from tests.helpers import ROOT, differences

# Of other packages: advice about workers and logging, and their own imports.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]


def example(name):
    """A file of examples/ as a module."""
    path = ROOT / f"examples/{name}.py"
    spec = importlib.util.spec_from_file_location(f"examples_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The run folder of the quickstart, as its initialisation leaves the loss."""
    folder = tmp_path_factory.mktemp("learned") / "adalfl"
    code = launch.train(
        gin_file=["quickstart.gin"],
        gin_param=[
            "Runner.steps = 1",
            "Runner.samples = 1",
            "meta_optimizers.task_fit.steps = 300",
            "meta_optimizers.offline_unrolled.steps = 40",
            "meta_optimizers.offline_unrolled.scale_steps = 2",
        ],
        output_dir=str(folder),
        device="cpu",
    )
    assert code == 0
    return folder


def small_problem():
    """A model and two loaders, the same each time; they do not shuffle."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    inputs = torch.randn(160, 6)
    data = TensorDataset(inputs, (inputs @ torch.randn(6, 3)).argmax(-1))
    train, valid = torch.utils.data.random_split(data, [120, 40])
    return model, DataLoader(train, 20), DataLoader(valid, 20)


# --- baselines that choose their own step ---


def test_the_plain_loop_beside_prodigy_is_that_of_a_run(tmp_path):
    """Model, splits and batches are a run's, and so are the test error and loss, to the bit."""
    code = launch.train(
        gin_file=["tasks/digits_mlp.gin", "methods/baseline.gin", "ablations/select.gin"],
        gin_param=["Runner.steps = 20", "Runner.figures = 0"],
        output_dir=str(tmp_path / "run"),
        device="cpu",
        seed=3,
    )
    assert code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    found = example("rate_free").main(["--seed=3", "--steps=20", "--only=sgd"])
    assert found["sgd"].items() <= result["test_metrics"].items()  # which has scores besides


@pytest.mark.parametrize("name", ["prodigy", "schedule_free"])
def test_an_optimizer_that_chooses_its_own_step_trains(name):
    """An extra: where it is not installed there is nothing to hold."""
    pytest.importorskip({"prodigy": "prodigyopt", "schedule_free": "schedulefree"}[name])
    found = example("rate_free").main(["--steps=150", f"--only={name}"])
    assert found[name]["error_rate"] < 0.3


# --- Lightning ---


@pytest.fixture
def fit(tmp_path, learned):
    """Trains the example's module on the small problem; -> (trainer, module)."""
    import lightning
    from lightning.pytorch.utilities import CombinedLoader

    lightning_module = example("lightning_module")

    def fit(model, train, valid, ckpt_path=None, lr=0.02, meta_lr=1e-3, **limits):
        module = lightning_module.AdaLFLModule(
            model, metaloss.load_loss(learned), lr=lr, meta_lr=meta_lr
        )
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
            num_sanity_val_steps=0, **limits,
        )  # fmt: skip
        loaders = CombinedLoader({"train": train, "valid": valid}, "max_size_cycle")
        trainer.fit(module, loaders, valid, ckpt_path=ckpt_path, weights_only=True)
        return trainer, module

    return fit


@pytest.mark.full  # a loss is learned first, and other trainers are imported
def test_lightning_makes_the_steps_of_a_plain_loop(fit, learned):
    trainer, module = fit(*small_problem(), max_epochs=3)
    model, train, valid = small_problem()
    loss = metaloss.load_loss(learned).requires_grad_()
    learner = metaloss.AdaLFL(
        model,
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True),
        loss.representation,
        link=loss.link,
        meta_lr=1e-3,
    )
    for _ in range(3):
        for batch, valid_batch in zip(train, itertools.cycle(valid), strict=False):
            learner.step(batch, valid_batch)
    assert differences(module.model.state_dict(), model.state_dict()) == []
    assert differences(module.loss.state_dict(), loss.state_dict()) == []
    assert differences(loss.state_dict(), metaloss.load_loss(learned).state_dict())
    assert trainer.global_step == 18


@pytest.mark.full  # another trainer's whole training
def test_lightning_trains(fit):
    lr = 0.001  # with its momentum .9 the rate .01 that the loss was learned for: it has a scale
    first, _ = fit(*small_problem(), lr=lr, max_epochs=1)
    last, _ = fit(*small_problem(), lr=lr, max_epochs=20)
    losses = [float(trainer.callback_metrics["valid_loss"]) for trainer in (first, last)]
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.full  # a loss is learned first, and other trainers are imported
def test_lightning_goes_on_from_a_checkpoint_bit_for_bit(fit, tmp_path):
    _, straight = fit(*small_problem(), max_epochs=2)
    half, _ = fit(*small_problem(), max_epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(*small_problem(), ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
    assert differences(straight.state_dict(), resumed.state_dict()) == []
    both = [module.learner.state_dict()["adaptation"] for module in (straight, resumed)]
    trained = [state.pop("trained") for state in both]  # names, which are no numbers
    assert trained[0] == trained[1]
    torch.testing.assert_close(*both, rtol=0, atol=0)


@pytest.mark.full  # a loss is learned first, and other trainers are imported
def test_lightning_stops_at_max_steps(fit):
    trainer, _ = fit(*small_problem(), meta_lr=None, max_steps=4)
    assert trainer.global_step == 4


# --- Hugging Face ---


@pytest.fixture
def hf(tmp_path, learned):
    """A trainer of the example on a small BERT without dropout; it keeps the batches it saw."""
    from transformers import TrainingArguments

    trainers = example("hf_trainer")

    def make(kind, steps, **arguments):
        torch.manual_seed(0)
        model = trainers.small_bert(dropout=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

        class Recording(kind):
            seen = []

            def training_step(self, model, inputs, num_items_in_batch=None):
                self.seen.append(dict(inputs))
                return super().training_step(model, inputs, num_items_in_batch)

        args = TrainingArguments(
            str(tmp_path), max_steps=steps, per_device_train_batch_size=32, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
            max_grad_norm=1.0, logging_strategy="no",
        )  # fmt: skip
        return Recording(
            model=model, args=args, train_dataset=trainers.Sentences(2048, seed=0),
            eval_dataset=trainers.Sentences(256, seed=2), optimizers=(optimizer, constant),
            **arguments,
        )  # fmt: skip

    make.module = trainers
    make.objective = DataLoader(trainers.Sentences(128, seed=1), 32)
    return make


def plain_bert(hf):
    """The same model and optimizer as the trainer's."""
    torch.manual_seed(0)
    model = hf.module.small_bert(dropout=0.0).train()
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3)


@pytest.mark.full  # a loss is learned first, and other trainers are imported
def test_a_frozen_loss_in_the_hf_trainer_is_plain_training(hf, learned):
    from transformers import Trainer

    frozen = hf.module.as_compute_loss_func(metaloss.load_loss(learned))
    trainer = hf(Trainer, 5, compute_loss_func=frozen)
    trainer.train()
    model, optimizer = plain_bert(hf)
    loss = metaloss.load_loss(learned)
    for batch in trainer.seen:
        optimizer.zero_grad()
        loss(model(input_ids=batch["input_ids"]).logits, batch["labels"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert len(trainer.seen) == 5
    assert differences(trainer.model.state_dict(), model.state_dict()) == []


@pytest.mark.full  # a loss is learned first, and other trainers are imported
def test_accumulated_batches_share_the_mean(hf, learned):
    """Of 8 and 24 examples: the mean over all 32."""
    loss = metaloss.load_loss(learned)
    frozen = hf.module.as_compute_loss_func(loss)
    logits, labels = torch.randn(32, 4), torch.randint(4, (32,))
    parts = [
        frozen(type("Outputs", (), {"logits": x}), y, 32)
        for x, y in zip(logits.split([8, 24]), labels.split([8, 24]), strict=True)
    ]
    torch.testing.assert_close(sum(parts), loss(logits, labels))


@pytest.mark.full  # a loss is learned first, and other trainers are imported
def test_the_hf_trainer_makes_the_steps_of_a_plain_loop(hf, learned):
    trainer = hf(
        hf.module.AdaLFLTrainer, 5,
        loss=metaloss.load_loss(learned), objective=hf.objective, meta_lr=1e-3,
    )  # fmt: skip
    trainer.train()
    model, optimizer = plain_bert(hf)
    loss = metaloss.load_loss(learned).requires_grad_()
    learner = metaloss.AdaLFL(
        model, optimizer, loss.representation, link=loss.link, meta_lr=1e-3,
        adapter=lambda batch: ((batch["input_ids"],), batch["labels"]),
        outputs=lambda result: result.logits, gradient_transform=metaloss.ClipNorm(1.0),
    )  # fmt: skip
    for batch, other in zip(trainer.seen, itertools.cycle(hf.objective), strict=False):
        learner.step(batch, other)
    assert len(trainer.seen) == 5
    assert differences(trainer.model.state_dict(), model.state_dict()) == []
    assert differences(trainer.loss.state_dict(), loss.state_dict()) == []
    assert differences(loss.state_dict(), metaloss.load_loss(learned).state_dict())


@pytest.mark.full
def test_the_hf_trainer_trains(hf, learned):
    trainer = hf(
        hf.module.AdaLFLTrainer, 120, loss=metaloss.load_loss(learned), objective=hf.objective
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before


# --- timm ---


@pytest.mark.full  # another trainer's whole training
@pytest.mark.parametrize("flags", [[], ["--frozen"]], ids=["online", "frozen"])
def test_timm_trains(learned, flags):
    small = ["--model=test_resnet", "--img-size=16", "--epochs=3"]
    history = example("timm_train").main([f"--loss={learned}", *small, *flags])
    assert history[-1][0] < 0.8 * history[0][0]
    assert history[-1][1] < history[0][1]


@pytest.mark.full  # a loss is learned first, and other trainers are imported
def test_a_learner_without_a_meta_step_is_the_train_loss_fn(learned):
    timm_train = example("timm_train")
    models = []
    for online in (False, True):
        model, train, valid = small_problem()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        loss = metaloss.load_loss(learned)
        if online:
            learner = metaloss.AdaLFL(
                model, optimizer, loss.representation, link=loss.link, meta_lr=None
            )
            timm_train.train_one_epoch_online(learner, train, valid)
        else:
            timm_train.train_one_epoch(model, train, optimizer, loss)
        models.append(model)
    assert differences(*(model.state_dict() for model in models)) == []


# --- the algorithm in thirty lines ---


@pytest.mark.parametrize("name", ["its own", "nn"])
def test_thirty_lines_make_the_steps_of_adalfl(name):
    """Double backward in plain torch, and the identity: θ and φ after ten steps, in float64."""
    thirty_lines = example("thirty_lines")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    loss = (thirty_lines.LearnedLoss if name == "its own" else metaloss.REPRESENTATIONS[name])()
    both = nn.ModuleList([model, loss.double()])
    ours = copy.deepcopy(both)
    start = [p.detach().clone() for p in both.parameters()]
    batches = [
        tuple((torch.randn(20, 6).double(), torch.randint(3, (20,))) for _ in range(2))
        for _ in range(10)
    ]
    optimizer = torch.optim.SGD(ours[0].parameters(), lr=0.5)
    learner = metaloss.AdaLFL(ours[0], optimizer, ours[1], meta_lr=1e-2)

    theirs = thirty_lines.adalfl(model, loss, loss.parameters(), batches, base_lr=0.5, meta_lr=1e-2)
    task_losses = [float(learner.step(*pair).task_loss) for pair in batches]

    assert task_losses == pytest.approx(theirs, rel=1e-9)
    for mine, other, before in zip(ours.parameters(), both.parameters(), start, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)
        assert not other.equal(before) or before.numel() == 1  # a bias of the last layer may stay
