#!/usr/bin/env python
"""A learned loss in Hugging Face's Trainer. Needs `pip install 'metaloss[hf]'`.

    make quickstart                        # learns a loss on handwritten digits
    python examples/hf_trainer.py          # trains a small BERT with it, online
    python examples/hf_trainer.py --frozen

A frozen loss is a `compute_loss_func`, and the Trainer stays as it is. A loss that goes on learning
is a subclass with its own `training_step`, whose steps, and so θ and φ, are bit for bit those of a
plain `AdaLFL` loop over the same batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import metaloss


def as_compute_loss_func(loss: metaloss.LearnedLoss) -> Callable[..., Tensor]:
    """A learned loss for `Trainer(compute_loss_func=...)`.

    The Trainer leaves the mean over accumulated batches to this function: it gives the number of
    examples in all of them.
    """

    def compute(outputs: Any, labels: Tensor, num_items_in_batch: int | None = None) -> Tensor:
        share = 1.0 if num_items_in_batch is None else len(labels) / num_items_in_batch
        return loss(outputs.logits, labels) * share

    return compute


def adapter(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """A batch of transformers as (arguments of the model by name, labels)."""
    inputs = dict(batch)
    labels = inputs.pop("labels")
    return inputs, labels


class AdaLFLTrainer(Trainer):
    """A Trainer whose loss goes on learning; one device, no gradient accumulation.

    Gradients are clipped to `max_grad_norm`, as the Trainer clips them, inside of the step.

    Args:
        loss: the learned loss to start from.
        objective: batches that the task loss is taken on, repeated as often as needed.
        meta_lr: η of Adam on φ.
        arguments: of the Trainer.
    """

    def __init__(
        self,
        *,
        loss: metaloss.LearnedLoss,
        objective: Iterable[dict[str, Tensor]],
        meta_lr: float = 1e-5,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.loss = loss.requires_grad_()
        self.objective = _repeat(objective)
        self.meta_lr = meta_lr
        self.learner: metaloss.AdaLFL | None = None

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        model.train()
        if self.learner is None:  # the optimizer comes with train()
            largest = self.args.max_grad_norm
            self.learner = metaloss.AdaLFL(
                model,
                self.optimizer.optimizer,  # under accelerate's
                self.loss.to(self.args.device).representation,
                link=self.loss.link,
                meta_lr=self.meta_lr,
                adapter=adapter,
                outputs=lambda result: result.logits,
                gradient_transform=metaloss.ClipNorm(largest) if largest else None,
            )
        batches = (self._prepare_inputs(batch) for batch in (inputs, next(self.objective)))
        result = self.learner.step(*batches)
        model.zero_grad()  # so that the Trainer's own optimizer.step() finds nothing to do
        return result.learned_loss


def _repeat(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from batches


class Sentences(Dataset):
    """Random tokens of which one, at a random place, is the label."""

    def __init__(self, n: int, seed: int, classes: int = 4, length: int = 12) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(classes, (n,), generator=generator)
        self.tokens = torch.randint(classes, 40, (n, length), generator=generator)
        places = torch.randint(1, length, (n,), generator=generator)
        self.tokens[torch.arange(n), places] = self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[i], "labels": self.labels[i]}


def small_bert(dropout: float = 0.1) -> BertForSequenceClassification:
    """Two layers, from a configuration: nothing is downloaded."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=12, num_labels=4,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )
    )  # fmt: skip


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loss", default="runs/quickstart/adalfl", metavar="RUN")
    parser.add_argument("--frozen", action="store_true", help="the loss stays as it is")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--output_dir", default="runs/hf_trainer", metavar="DIR")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> dict[str, float]:
    """Trains, and gives the cross-entropy on new sentences."""
    arguments = parse_arguments(command_line)
    torch.manual_seed(0)
    loss = metaloss.load_loss(arguments.loss)
    common: dict[str, Any] = {
        "model": small_bert(),
        "args": TrainingArguments(
            arguments.output_dir, max_steps=arguments.steps, per_device_train_batch_size=64,
            learning_rate=1e-3, logging_steps=100, save_strategy="no", report_to="none",
        ),
        "train_dataset": Sentences(4096, seed=0),
        "eval_dataset": Sentences(512, seed=2),
    }  # fmt: skip
    if arguments.frozen:
        trainer = Trainer(compute_loss_func=as_compute_loss_func(loss), **common)
    else:
        objective = DataLoader(Sentences(512, seed=1), 64, shuffle=True)
        trainer = AdaLFLTrainer(loss=loss, objective=objective, **common)
    trainer.train()
    trainer.compute_loss_func = None  # the model's own loss, cross-entropy
    return trainer.evaluate()


if __name__ == "__main__":
    print(main())
