"""Other people's training loops, each written out by hand beside the arguments that AdaLFL gets.

A loop says how its model is called on a batch and how its losses are taken, in plain torch; nothing
here comes from metaloss but the network of the learned loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import metaloss
from metaloss import links

Call = Callable[..., Any]  #: the model, with the parameters of the moment


@dataclass
class Loop:
    """A training loop in plain torch, and what AdaLFL is told of it."""

    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Any]
    learned: Callable[[Call, nn.Module, Any], Tensor]  #: M_φ of a batch, written out
    task: Callable[[Call, Any], Tensor]  #: L_T of a batch, written out
    task_loss: Callable[..., Tensor] = F.cross_entropy
    arguments: dict[str, Any] = field(default_factory=dict)  #: of AdaLFL
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda model: torch.optim.SGD(
        model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-2
    )
    scheduler: Callable[[torch.optim.Optimizer], Any] = lambda optimizer: (
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    )
    micro: int = 0  #: micro-batches of a step; 0 for a plain batch
    clip: Callable[[Sequence[Tensor]], list[Tensor]] = list  #: differentiable, written out
    clip_in_place: Callable[[Sequence[nn.Parameter]], Any] = lambda parameters: None


def meta_gradient_by_hand(
    loop: Loop,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: nn.Module,
    train: Sequence[Any],
    valid: Any,
) -> Tensor:
    """∇_φ L_T by double backward through the whole step, as one vector; changes nothing."""
    names = {p: name for name, p in model.named_parameters()}
    start = {name: p.detach().clone().requires_grad_() for p, name in names.items()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}

    def calling(theta: dict[str, Tensor]) -> Call:
        return lambda *args, **kwargs: functional_call(model, {**theta, **buffers}, args, kwargs)

    trained = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    place = {p: i for i, p in enumerate(trained)}
    leaves = [start[names[p]] for p in trained]
    gradient: list[Tensor | None] = [None] * len(trained)
    for batch in train:
        share = loop.learned(calling(start), loss, batch) / len(train)
        new = torch.autograd.grad(share, leaves, create_graph=True, allow_unused=True)
        gradient = [a if b is None else b if a is None else a + b
                    for a, b in zip(gradient, new, strict=True)]  # fmt: skip
    used = [i for i, g in enumerate(gradient) if g is not None]
    for i, clipped in zip(used, loop.clip([gradient[i] for i in used]), strict=True):
        gradient[i] = clipped
    after = dict(start)
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad and (g := gradient[place[p]]) is not None:
                theta, state = start[names[p]], optimizer.state.get(p, {})
                rule = sgd if isinstance(optimizer, torch.optim.SGD) else adam
                after[names[p]] = rule(theta, g + group["weight_decay"] * theta, group, state)
    phi = list(loss.parameters())
    return flat(torch.autograd.grad(loop.task(calling(after), valid), phi, allow_unused=True), phi)


def sgd(theta: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    """θ' of SGD with momentum (Nesterov's, if asked for) and without dampening."""
    buffer = state.get("momentum_buffer")
    buffer = g if buffer is None else group["momentum"] * buffer + g
    return theta - group["lr"] * (g + group["momentum"] * buffer if group["nesterov"] else buffer)


def adam(theta: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    """θ' of Adam."""
    (b1, b2), t = group["betas"], float(state.get("step", 0)) + 1
    m = b1 * state.get("exp_avg", torch.zeros_like(theta)) + (1 - b1) * g
    v = b2 * state.get("exp_avg_sq", torch.zeros_like(theta)) + (1 - b2) * g * g
    m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
    return theta - group["lr"] * m_hat / (v_hat.sqrt() + group["eps"])


def flat(gradients: Sequence[Tensor | None], phi: Sequence[Tensor]) -> Tensor:
    pairs = zip(gradients, phi, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def softmax_rows(loss: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """The learned loss of each row, by hand."""
    return loss(logits.softmax(-1), F.one_hot(labels, logits.shape[-1]).to(logits))


def classified(call: Call, loss: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return softmax_rows(loss, call(x), y).mean()


def tabular(generator: torch.Generator, size: int = 8) -> Any:
    x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (size,), generator=generator)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Softplus(), nn.Linear(5, 3)
    )


def plain(**changes: Any) -> Loop:
    return Loop(mlp, tabular, classified, lambda call, b: F.cross_entropy(call(b[0]), b[1]),
                **changes)  # fmt: skip


# Parameters


def partly_frozen() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def two_groups_and_a_stranger(model: nn.Module) -> torch.optim.Optimizer:
    """The middle layer is held by no optimizer, the frozen weight by one."""
    return torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.5, "momentum": 0.0},
            {"params": model[4].parameters(), "weight_decay": 0.1, "nesterov": True},
        ],
        lr=0.2,
        momentum=0.9,
    )


# Batches and models of other shapes


class Pooled(nn.Module):
    """As transformers' models are: named arguments, and an object with `logits`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=0)
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        hidden = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
        pooled = hidden.sum(1) / attention_mask.sum(1, keepdim=True)
        return SimpleNamespace(logits=self.head(pooled.tanh()), hidden_states=(hidden,))


def tokens(generator: torch.Generator) -> dict[str, Any]:
    ids = torch.randint(1, 11, (8, 5), generator=generator)
    mask = torch.ones(8, 5, dtype=torch.float64)
    mask[::2, 3:] = 0
    labels = torch.randint(3, (8,), generator=generator)
    return {"input_ids": ids * mask.long(), "attention_mask": mask, "labels": labels, "id": "a"}


def tokens_adapter(batch: dict[str, Any]) -> tuple[Any, Any]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"]


def of_tokens(call: Call, batch: dict[str, Any]) -> Tensor:
    return call(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Bilinear(4, 5, 3)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.left(a).tanh()
        return self.right(b, hidden), hidden


def pairs(generator: torch.Generator) -> Any:
    a, b = torch.randn(2, 8, 4, generator=generator, dtype=torch.float64)
    return a, b, torch.randint(3, (8,), generator=generator)


# Targets of other shapes


def images(generator: torch.Generator) -> Any:
    """Pixels with labels, a third of them ignored."""
    x = torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (3, 4, 5), generator=generator)
    return x, y.masked_fill(torch.rand(3, 4, 5, generator=generator) < 1 / 3, 255)


def weighted_images(generator: torch.Generator) -> Any:
    x, y = images(generator)
    return x, (y, torch.rand(3, 4, 5, generator=generator, dtype=torch.float64))


CLASS_WEIGHT = (0.5, 1.0, 3.0)


def pixel_rows(call: Call, loss: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and class weights of the pixels that count, and which those are."""
    logits, counted = call(x).permute(0, 2, 3, 1), y != 255
    rows = softmax_rows(loss, logits[counted], y[counted])
    return rows, rows.new_tensor(CLASS_WEIGHT)[y[counted]], counted


def segmented(call: Call, loss: nn.Module, batch: Any) -> Tensor:
    rows, weight, _ = pixel_rows(call, loss, *batch)
    return (weight * rows).sum() / weight.sum()


def segmented_with_weights(call: Call, loss: nn.Module, batch: Any) -> Tensor:
    x, (y, w) = batch
    rows, _, counted = pixel_rows(call, loss, x, y)
    return (w[counted] * rows).sum() / w[counted].sum()


def segmentation_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    weight = torch.tensor(CLASS_WEIGHT, dtype=outputs.dtype)
    return F.cross_entropy(outputs, labels, weight=weight, ignore_index=255)


def pixel_weighted_loss(outputs: Tensor, labels: Any) -> Tensor:
    y, w = labels
    rows = F.cross_entropy(outputs, y, ignore_index=255, reduction="none")
    return (w * rows).sum() / w[y != 255].sum()


def pixels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))


class Tagger(nn.Module):
    """Logits [batch, T, classes], by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0])


def tagged_tokens(generator: torch.Generator) -> Any:
    y = torch.randint(3, (4, 6), generator=generator)
    y[:, 4:] = -100
    return torch.randint(11, (4, 6), generator=generator), y


def tagging_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), labels.flatten())


def tagged(call: Call, loss: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return softmax_rows(loss, call(x)[:, :4].flatten(0, 1), y[:, :4].flatten()).mean()


class TiedLanguageModel(nn.Module):
    """The next token, by one weight that embeds and decodes; token 0 is padding, on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5, padding_idx=0)
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.embedding(x).cumsum(1)).tanh()).transpose(1, 2)


def text(generator: torch.Generator) -> Any:
    x = torch.randint(1, 7, (4, 6), generator=generator)
    x[::2, :2] = 0
    return x[:, :-1], x[:, 1:]


def next_token(call: Call, loss: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    logits, counted = call(x).transpose(1, 2), y != 0
    return softmax_rows(loss, logits[counted], y[counted]).mean()


def padded_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, ignore_index=0)


def many_labels(generator: torch.Generator) -> Any:
    x, _ = tabular(generator)
    return x, (torch.rand(8, 3, generator=generator) < 0.4).double()


def soft_labels(generator: torch.Generator) -> Any:
    x, _ = tabular(generator)
    return x, torch.rand(8, 3, generator=generator, dtype=torch.float64).softmax(-1)


def with_weights(generator: torch.Generator) -> Any:
    x, y = tabular(generator)
    return x, y, torch.rand(8, generator=generator, dtype=torch.float64)


def weighted_cross_entropy(outputs: Tensor, labels: Any) -> Tensor:
    y, w = labels
    return (w * F.cross_entropy(outputs, y, reduction="none")).sum() / w.sum()


def numbers(generator: torch.Generator) -> Any:
    x, _ = tabular(generator)
    return x, x[:, 0] * x[:, 1]


def regressor() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0))


# Clipping


def norm_clipped(grads: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    norm = torch.cat([g.flatten() for g in grads]).square().sum().sqrt()
    assert (norm > max_norm) == (max_norm < 1)  # active but in the loop that says otherwise
    return [g * (max_norm / (norm + 1e-6)) for g in grads] if norm > max_norm else list(grads)


def value_clipped(grads: Sequence[Tensor]) -> list[Tensor]:
    assert any((g.abs() > 0.002).any() for g in grads)
    return [torch.where(g.abs() < 0.002, g, 0.002 * g.detach().sign()) for g in grads]


def centred(grads: Sequence[Tensor]) -> list[Tensor]:
    """Gradient centralisation: each row of a weight's gradient without its mean."""
    return [g - g.mean(-1, keepdim=True) if g.ndim > 1 else g for g in grads]


def centre_in_place(parameters: Sequence[nn.Parameter]) -> None:
    for p in parameters:
        if p.grad is not None and p.grad.ndim > 1:
            p.grad -= p.grad.mean(-1, keepdim=True)


def clipping(max_norm: float) -> dict[str, Any]:
    return {
        "arguments": {"gradient_transform": metaloss.ClipNorm(max_norm)},
        "clip": lambda grads: norm_clipped(grads, max_norm),
        "clip_in_place": lambda ps: nn.utils.clip_grad_norm_(ps, max_norm),
    }


def adam_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=1e-2)


def nesterov(model: nn.Module) -> torch.optim.Optimizer:
    """By foreach kernels, as on a GPU, which change the gradients in place."""
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, nesterov=True, foreach=True)


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    """Moves the learning rate up and the momentum down, then back."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=12)


LOOPS = {
    "plain": plain(),
    "adam": plain(optimizer=adam_optimizer),
    "nesterov, all tensors at once": plain(optimizer=nesterov),
    "frozen, groups and a stranger": Loop(
        partly_frozen, tabular, classified,
        lambda call, b: F.cross_entropy(call(b[0]), b[1]), optimizer=two_groups_and_a_stranger,
    ),
    "one cycle": plain(scheduler=one_cycle),
    "one cycle of adam": plain(scheduler=one_cycle, optimizer=adam_optimizer),
    "named inputs, an object back": Loop(
        Pooled, tokens,
        lambda call, loss, b: softmax_rows(loss, of_tokens(call, b), b["labels"]).mean(),
        lambda call, b: F.cross_entropy(of_tokens(call, b), b["labels"]),
        arguments={"adapter": tokens_adapter, "outputs": lambda result: result.logits},
    ),
    "two inputs, a tuple back": Loop(
        Siamese, pairs,
        lambda call, loss, b: softmax_rows(loss, call(b[0], b[1])[0], b[2]).mean(),
        lambda call, b: F.cross_entropy(call(b[0], b[1])[0], b[2]),
        arguments={"adapter": lambda b: (b[:2], b[2]), "outputs": lambda result: result[0]},
    ),
    "micro-batches": plain(micro=3),
    "micro-batches of adam": plain(micro=3, optimizer=adam_optimizer),
    "micro-batches through BatchNorm": Loop(
        normalised, tabular, classified,
        lambda call, b: F.cross_entropy(call(b[0]), b[1]), micro=2,
    ),
    "norm clipping": plain(**clipping(0.005)),
    "norm clipping, never active": plain(**clipping(1e3)),
    "norm clipping of adam": plain(**clipping(0.001), optimizer=adam_optimizer),
    "norm clipping of micro-batches": plain(**clipping(0.005), micro=2),
    "norm clipping of adam's micro-batches": plain(
        **clipping(0.001), micro=2, optimizer=adam_optimizer
    ),
    "value clipping": plain(
        arguments={"gradient_transform": metaloss.ClipValue(0.002)}, clip=value_clipped,
        clip_in_place=lambda ps: nn.utils.clip_grad_value_(ps, 0.002),
    ),
    "a transform of one's own": plain(
        arguments={"gradient_transform": centred}, clip=centred, clip_in_place=centre_in_place
    ),
    "segmentation": Loop(
        pixels, images, segmented, lambda call, b: segmentation_loss(call(b[0]), b[1]),
        segmentation_loss,
        arguments={"link": links.Dense(ignore_index=255, weight=CLASS_WEIGHT)},
    ),
    "segmentation with weights": Loop(
        pixels, weighted_images, segmented_with_weights,
        lambda call, b: pixel_weighted_loss(call(b[0]), b[1]), pixel_weighted_loss,
        arguments={"link": links.Weighted(links.Dense(ignore_index=255))},
    ),
    "sequences, by an LSTM": Loop(
        Tagger, tagged_tokens, tagged, lambda call, b: tagging_loss(call(b[0]), b[1]),
        tagging_loss, arguments={"link": links.Dense(class_dim=-1)},
    ),
    "tied weights with padding": Loop(
        TiedLanguageModel, text, next_token,
        lambda call, b: padded_cross_entropy(call(b[0]), b[1]), padded_cross_entropy,
        arguments={"link": links.Dense(ignore_index=0)},
    ),
    "multi-label": Loop(
        mlp, many_labels,
        lambda call, loss, b: loss(call(b[0]).sigmoid(), b[1]).mean(),
        lambda call, b: F.binary_cross_entropy_with_logits(call(b[0]), b[1]),
        F.binary_cross_entropy_with_logits, arguments={"link": links.multi_label},
    ),
    "soft labels": Loop(
        mlp, soft_labels,
        lambda call, loss, b: loss(call(b[0]).softmax(-1), b[1]).mean(),
        lambda call, b: F.cross_entropy(call(b[0]), b[1]),
        arguments={"link": links.probabilities},
    ),
    "weights of examples": Loop(
        mlp, with_weights,
        lambda call, loss, b: (softmax_rows(loss, call(b[0]), b[1]) * b[2]).sum() / b[2].sum(),
        lambda call, b: weighted_cross_entropy(call(b[0]), b[1:]), weighted_cross_entropy,
        arguments={"adapter": lambda b: (b[0], b[1:]), "link": links.Weighted()},
    ),
    "regression without a second dimension": Loop(
        regressor, numbers,
        lambda call, loss, b: loss(call(b[0])[:, None], b[1][:, None]).mean(),
        lambda call, b: F.mse_loss(call(b[0]), b[1]), F.mse_loss,
    ),
}  # fmt: skip
