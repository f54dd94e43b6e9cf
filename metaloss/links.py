"""Links: how a model's outputs and the labels become the (prediction, target) that a loss sees.

A link maps `(outputs, labels)` to two tensors [rows, C], or to three: what each row weighs, [rows].
The learned loss of a batch is the `mean` of its rows. A link is twice differentiable in the
outputs, and is a function or a frozen object, with a name in `LINKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from metaloss.errors import InputError, did_you_mean

Link = Callable[[Tensor, Any], tuple[Tensor, ...]]
TaskLoss = Callable[[Tensor, Any], Tensor]


def mean(losses: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of a batch's rows; Σ w ℓ / Σ w with weights, as torch.nn.functional.cross_entropy.

    As there, it is NaN where no row counts, and its gradient 0.

    Args:
        losses, weights: [rows]; of a stack [S, rows].
    """
    if weights is None:
        return losses.mean(-1)
    total = weights.sum(-1)
    return nan_where_none_counts((weights * losses).sum(-1) / divisor(total), total)


def divisor(total: Tensor) -> Tensor:
    """Σ w, or 1 where no row counts; scalars, or of a stack [S]."""
    return total.where(total != 0, 1.0)


def nan_where_none_counts(loss: Tensor, total: Tensor) -> Tensor:
    """A loss of rows with a sum of weights, without a gradient where that is 0; scalars or [S]."""
    return loss.where(total != 0, torch.nan)


#: The label of a row that does not count, as of torch's losses.
IGNORED = -100


def probabilities(outputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Classification: softmax probabilities and one-hot targets (paper, section 5.7).

    A row whose label is -100 does not count, as in torch.nn.functional.cross_entropy: it has the
    weight 0, and the others 1.

    Args:
        outputs: logits, [batch, C].
        labels: class indices, [batch], integer; or probabilities, [batch, C] (mixup, smoothing).

    Raises:
        InputError: their shapes are others, there is one output alone, or a label is no class (on
            the CPU, where looking at it waits for nothing).
    """
    if outputs.ndim == 2 and outputs.shape[1] == 1:
        raise InputError(
            "the model has one output, and the softmax of one is 1 whatever it is, so that nothing "
            "trains: two classes by one output have task_loss = "
            "torch.nn.functional.binary_cross_entropy_with_logits, a value has mse_loss"
        )
    if outputs.ndim == 2 and labels.shape == outputs.shape and labels.is_floating_point():
        return outputs.softmax(-1), labels.to(outputs)
    if outputs.ndim != 2 or labels.shape != outputs.shape[:1]:
        raise InputError(
            f"the model gives outputs {list(outputs.shape)} for labels {list(labels.shape)}: "
            "links.probabilities takes [batch, classes] and [batch]; pixels and tokens have "
            "link=metaloss.links.Dense()"
        )
    labels = labels.long()
    counted = _counted(labels, outputs.shape[1])
    if counted is None:
        return outputs.softmax(-1), _one_hot(outputs, labels)
    target = _one_hot(outputs, labels.where(counted, 0))
    return outputs.softmax(-1), target, counted.to(outputs)


def _counted(labels: Tensor, classes: int) -> Tensor | None:
    """Whether each row counts; None where all were seen to.

    Raises:
        InputError: a label was seen that is no class.
    """
    if _can_look_at(labels):
        least, most = (int(end) for end in labels.aminmax()) if len(labels) else (0, 0)
        wrong = most if most >= classes else least if least < 0 else 0
        if wrong and wrong != IGNORED:
            raise InputError(
                f"there is a label {wrong}, and the model has {classes} outputs: classes are 0 to "
                f"{classes - 1}, and {IGNORED} for a row that does not count"
            )
        if least >= 0:
            return None
    return labels != IGNORED


def weight(link: Link, labels: Any) -> float | Tensor | None:
    """What a batch's rows weigh together, Σ w of `mean`, by its labels alone; scalars.

    It is to be compared among batches of one link: of numbers it is how many there are. A number,
    where that waits for no device. None: a link of somebody's own, which says it with the outputs.
    """
    if isinstance(link, Weighted):
        of_labels, weights = labels
        if isinstance(link.link, Dense):
            counted = link.link.counted(of_labels)
            weights = weights.flatten().where(counted, 0)
            if link.link.weight is not None:
                weights = weights * _of_classes(link.link.weight, of_labels.flatten(), counted)
        elif torch.is_tensor(of_labels) and not of_labels.is_floating_point():
            weights = weights.flatten().where(of_labels != IGNORED, 0)
        return _seen(weights)
    if not torch.is_tensor(labels) or link not in _SHIPPED and not isinstance(link, Dense):
        return None
    if isinstance(link, Dense):
        counted = link.counted(labels)
        if link.weight is None:
            return _seen(counted)
        return _seen(_of_classes(link.weight, labels.flatten(), counted))
    if labels.is_floating_point() or link in (values, multi_label):
        return labels.numel() if link is not probabilities else len(labels)
    return _seen(labels != IGNORED)


def _of_classes(weight: tuple[float, ...], labels: Tensor, counted: Tensor) -> Tensor:
    """What each row weighs by its class, [rows]; 0 where it does not count."""
    weights = torch.tensor(weight, device=labels.device)
    return weights[labels.where(counted, 0)].where(counted, 0.0)


def _seen(weights: Tensor) -> float | Tensor:
    """Their sum; of many rows a quotient of two is exact in double precision alone."""
    total = weights.sum(dtype=torch.float64)
    return float(total) if _can_look_at(total) else total


def _one_hot(outputs: Tensor, labels: Tensor) -> Tensor:
    return torch.zeros_like(outputs).scatter(-1, labels.unsqueeze(-1), 1.0)


def _can_look_at(labels: Tensor) -> bool:
    """Whether Python may decide by their values: without waiting, and while nothing is recorded."""
    return (
        labels.device.type == "cpu"
        and not torch._C._are_functorch_transforms_active()
        and get_proxy_mode() is None
        and not torch.jit.is_tracing()  # type: ignore[no-untyped-call]
    )


def values(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Regression: the outputs and the labels as they are, in rows [batch, C].

    Args:
        outputs, labels: [batch, C], [batch] or [batch, C, ...].

    Raises:
        InputError: their shapes differ; broadcasting would compare every output with every label.
    """
    if outputs.shape != labels.shape:
        raise InputError(
            f"the model gives outputs {list(outputs.shape)} for labels {list(labels.shape)}: "
            "regression needs equal shapes"
        )
    return _rows(outputs), _rows(labels)


def multi_label(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Any number of labels at once: the sigmoid of each logit, and 0 or 1.

    The rows that count are those of torch.nn.functional.binary_cross_entropy_with_logits.

    Args:
        outputs: logits, [batch, C], [batch] or [batch, C, ...].
        labels: 0 or 1 for each, of any type, or a probability.

    Raises:
        InputError: their shapes differ.
    """
    if outputs.shape != labels.shape:
        raise InputError(
            f"the model gives outputs {list(outputs.shape)} for labels {list(labels.shape)}: "
            "multi-label classification has 0 or 1 for each output"
        )
    return _rows(outputs).sigmoid(), _rows(labels.to(outputs))


def by_labels(outputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """`values` for floating-point labels, `probabilities` for integer labels.

    A learner that is given this link, which is its default, and a learned loss by itself, decide by
    `decided` once, on the first batch, and keep to that.

    Args:
        outputs: [batch, C].
        labels: class indices [batch], or values [batch, C].

    Raises:
        InputError: labels are no tensor, or their shape does not fit.
    """
    if not torch.is_tensor(labels):
        raise InputError(
            f"labels are a {type(labels).__name__}, and which link takes it is not said: give "
            "`link`, as metaloss.links.Weighted() for (labels, weights)"
        )
    return (values if torch.is_floating_point(labels) else probabilities)(outputs, labels)


#: Those that are functions.
_SHIPPED = (probabilities, values, multi_label, by_labels)

#: Torch's losses, as functions and as modules, and what the labels of each are.
_OF_LOSSES: dict[Any, Any] = {
    F.cross_entropy: probabilities, nn.CrossEntropyLoss: probabilities,
    F.nll_loss: probabilities, nn.NLLLoss: probabilities,
    F.binary_cross_entropy_with_logits: multi_label, nn.BCEWithLogitsLoss: multi_label,
    F.multilabel_soft_margin_loss: multi_label, nn.MultiLabelSoftMarginLoss: multi_label,
    F.mse_loss: values, nn.MSELoss: values, F.l1_loss: values, nn.L1Loss: values,
    F.smooth_l1_loss: values, nn.SmoothL1Loss: values, F.huber_loss: values, nn.HuberLoss: values,
}  # fmt: skip


_CLASSES = "takes class indices: give labels.long(), or probabilities [batch, classes]"


def _name(loss: Any) -> str:
    return str(getattr(loss, "__name__", loss))


def _named(task_loss: TaskLoss | None) -> tuple[Any, dict[str, Any]]:
    """One of torch's losses as it is known by, and the arguments that it was given."""
    function: Any = task_loss
    given: dict[str, Any] = {}
    while isinstance(function, partial):
        given = {**function.keywords, **given}
        function = function.func
    if isinstance(function, nn.Module):
        return type(function), vars(function)
    return function, given


def of_task_loss(task_loss: TaskLoss | None) -> Link | None:
    """The link by which labels are what one of torch's losses takes; None of another loss."""
    key, given = _named(task_loss)
    known = _OF_LOSSES.get(key) if isinstance(key, Hashable) else None
    if known is not probabilities:
        return cast("Link | None", known)
    ignored = int(given.get("ignore_index", IGNORED))
    return probabilities if ignored == IGNORED else Dense(ignore_index=ignored)


def decided(task_loss: TaskLoss | None, of_classes: bool, outputs: Tensor, labels: Any) -> Link:
    """The link of a batch whose link was not said.

    One of torch's losses says what its labels are. Beside another one, integers are classes, and
    numbers are values, unless they may as well be something else.

    Args:
        task_loss: what the labels are given to as well; None where there is none.
        of_classes: whether the learned loss is made for class probabilities alone.
        outputs: of the batch, as a link takes them, [batch, C] mostly.
        labels: of the batch.

    Raises:
        InputError: the labels are no tensor, or not what the task loss takes; or what they are
            cannot be told.
    """
    if not torch.is_tensor(labels):
        by_labels(outputs, labels)  # says which link takes what is no tensor
    key, _ = _named(task_loss)
    known = _OF_LOSSES.get(key) if isinstance(key, Hashable) else None
    if known is probabilities:
        if not labels.is_floating_point() and labels.dtype not in (torch.long, torch.uint8):
            raise InputError(f"labels are {labels.dtype}, and {_name(key)} {_CLASSES}")
        if labels.is_floating_point() and labels.ndim < 2:
            raise InputError(
                f"labels {list(labels.shape)} are numbers, and {_name(key)} {_CLASSES}"
            )
    if known is multi_label and not labels.is_floating_point():
        raise InputError(
            f"labels are {labels.dtype}, and {_name(key)} takes numbers: give labels.float()"
        )
    if known is not None:
        return cast(Link, of_task_loss(task_loss))
    if not labels.is_floating_point():
        return probabilities
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.shape != outputs.shape:
        return values
    if of_classes:
        return probabilities
    if bool(((labels.sum(-1) - 1).abs() < 1e-3).all() & (labels >= 0).all()):
        raise InputError(
            f"labels {list(labels.shape)} are numbers, and each row sums to 1, so they may be "
            "probabilities of classes or values: give link=metaloss.links.probabilities or "
            "link=metaloss.links.values"
        )
    if bool(((labels == 0) | (labels == 1)).all()):
        raise InputError(
            f"labels {list(labels.shape)} are all 0 or 1, so they may be several labels at once or "
            "values: give link=metaloss.links.multi_label or link=metaloss.links.values"
        )
    return values


def refuse_other_dimension(task_loss: TaskLoss, link: Link, outputs: Tensor) -> None:
    """Refuses one of torch's losses that looks for the classes elsewhere than the link does.

    Args:
        task_loss, link: of a learner.
        outputs: of a batch, [batch, ...].

    Raises:
        InputError: it does.
    """
    if not isinstance(link, Dense) or outputs.ndim < 3:
        return
    function = type(task_loss) if isinstance(task_loss, nn.Module) else task_loss
    known = _OF_LOSSES.get(function) if isinstance(function, Hashable) else None
    if known is probabilities and link.class_dim % outputs.ndim != 1:
        raise InputError(
            f"the link has the classes of outputs {list(outputs.shape)} in dimension "
            f"{link.class_dim}, and the task loss, torch's own, in dimension 1: give task_loss="
            f"lambda f, y: F.cross_entropy(f.movedim({link.class_dim}, 1), y)"
        )


@dataclass(frozen=True)
class Dense:
    """Classification of pixels, tokens or rows, some of which are ignored: `probabilities` of each.

    The rows that count, and what each weighs, are those of torch.nn.functional.cross_entropy with
    the same arguments; the ignored are not given to the loss at all.

    Args:
        ignore_index: the label of a row that does not count.
        weight: of each class.
        class_dim: the dimension of the outputs that has the classes: 1 as in torch's losses,
            [batch, C, ...]; -1 for sequences [batch, T, C].
    """

    ignore_index: int = -100
    weight: tuple[float, ...] | None = None
    class_dim: int = 1

    def __call__(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        rows = outputs.movedim(self.class_dim, -1)
        if rows.shape[:-1] != labels.shape:
            raise InputError(
                f"the model gives outputs {list(outputs.shape)} for labels {list(labels.shape)}: "
                f"with classes in dimension {self.class_dim} labels are {list(rows.shape[:-1])}"
            )
        counted = self.counted(labels)
        label = labels.flatten()[counted]
        found = probabilities(rows.flatten(0, -2)[counted], label)[:2]
        if self.weight is None:
            return found
        return *found, outputs.new_tensor(self.weight)[label]

    def counted(self, labels: Tensor) -> Tensor:
        """Whether each row counts, [rows]."""
        return labels.flatten() != self.ignore_index


@dataclass(frozen=True)
class Weighted:
    """Another link for labels that are a pair (labels, weights): one weight for each row.

    Args:
        link: of the labels.
    """

    link: Link = by_labels

    def __call__(self, outputs: Tensor, labels: tuple[Any, Tensor]) -> tuple[Tensor, ...]:
        labels_alone, weights = labels
        prediction, target, *own = self.link(outputs, labels_alone)
        rows = labels_alone.numel() if isinstance(self.link, Dense) else len(prediction)
        if weights.numel() != rows:
            raise InputError(
                f"there are {weights.numel()} weights for {rows} rows of outputs "
                f"{list(outputs.shape)}: one for each"
            )
        weights = weights.flatten()
        if isinstance(self.link, Dense):
            weights = weights[self.link.counted(labels_alone)]
        return prediction, target, weights * own[0] if own else weights


@dataclass(frozen=True)
class Classes:
    """Class indices, as a link hands them on: softmax over the classes, and one-hot targets.

    What the links here make of class indices, without a one-hot tensor in memory.

    Attributes:
        labels: [rows], integer; of a row that does not count, any class.
        weights: what each row weighs, [rows]; None: all the same.
        class_dim: the dimension of the outputs that has the classes.
    """

    labels: Tensor
    weights: Tensor | None
    class_dim: int = -1

    def rows(self, outputs: Tensor) -> Tensor:
        """[rows, C] of the outputs, or of a tensor of their shape."""
        if outputs.dim() == 2:
            return outputs
        return outputs.movedim(self.class_dim, -1).flatten(0, -2)

    def like(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """The inverse of `rows`: a tensor of the shape of `outputs`."""
        if outputs.dim() == 2:
            return rows
        shape = outputs.movedim(self.class_dim, -1).shape
        return rows.view(shape).movedim(-1, self.class_dim)


def checked(linked: Any) -> tuple[Tensor, ...]:
    """What a link gave, [rows, C] each and weights [rows], if it is what links give.

    Raises:
        InputError: it is not.
    """
    if not isinstance(linked, tuple) or len(linked) not in (2, 3):
        raise InputError(
            "a link gives (prediction, target), or (prediction, target, weights), and this one "
            f"gives a {type(linked).__name__}"
            + (f" of {len(linked)}" if isinstance(linked, (tuple, list)) else "")
        )
    return linked


def require_classes(link: Link, outputs: Tensor, labels: Any) -> None:
    """Asks whether all class indices are classes, on the CPU, where that waits for nothing.

    Args:
        link: any.
        outputs: [batch, C], or as the link takes them.
        labels: as the link takes them.

    Raises:
        InputError: one is not.
    """
    if link is probabilities and torch.is_tensor(labels) and not labels.is_floating_point():
        _counted(labels, outputs.shape[-1])


def classes(link: Link, outputs: Tensor, labels: Any) -> Classes | None:
    """The class indices behind a link's prediction and target; None where it has no such.

    Args:
        link: any.
        outputs: [batch, C], or as the link takes them.
        labels: as the link takes them.
    """
    if isinstance(link, Weighted) and isinstance(labels, (tuple, list)) and len(labels) == 2:
        found = classes(link.link, outputs, labels[0])
        weights = labels[1]
        if found is None or weights.numel() != found.labels.numel():
            return None
        own = found.weights
        weights = weights.flatten().to(outputs)
        return replace(found, weights=weights if own is None else weights * own)
    if not torch.is_tensor(labels) or labels.is_floating_point() or labels.dtype == torch.bool:
        return None
    if isinstance(link, Dense):
        if outputs.movedim(link.class_dim, -1).shape[:-1] != labels.shape:
            return None
        counted = link.counted(labels)
        label = labels.flatten().long().where(counted, 0)
        weights = counted.to(outputs)
        if link.weight is not None:
            weights = weights * outputs.new_tensor(link.weight)[label]
        return Classes(label, weights, link.class_dim)
    if link in (probabilities, by_labels) and labels.shape == outputs.shape[:1]:
        if outputs.ndim != 2:
            return None
        labels = labels.long()
        counts = _counted(labels, outputs.shape[1])
        if counts is None:
            return Classes(labels, None)
        return Classes(labels.where(counts, 0), counts.to(outputs))
    return None


#: Every link by its name, and the classes of those that take arguments.
LINKS: dict[str, Any] = {
    "probabilities": probabilities,
    "values": values,
    "multi_label": multi_label,
    "by_labels": by_labels,
    "dense": Dense,
    "weighted": Weighted,
}


def to_json(link: Link) -> str | dict[str, Any]:
    """A link as plain data: its name, or {"name": ..., argument: ...}.

    Raises:
        InputError: it has no name in LINKS.
    """
    for name, known in LINKS.items():
        if link is known:
            return name
        if isinstance(known, type) and isinstance(link, known):
            arguments = {field.name: getattr(link, field.name) for field in fields(known)}
            if "link" in arguments:
                arguments["link"] = to_json(arguments["link"])
            return {"name": name, **arguments}
    raise InputError(
        f"the link {getattr(link, '__name__', link)!r} has no name to be saved by · known: "
        f"{', '.join(LINKS)}"
    )


def from_json(data: str | dict[str, Any]) -> Link:
    """The link that `to_json` described.

    Raises:
        InputError: no link has this name, or it does not take these arguments.
    """
    arguments = {} if isinstance(data, str) else dict(data)
    name = data if isinstance(data, str) else arguments.pop("name", None)
    if name not in LINKS:
        near = did_you_mean(str(name), LINKS)
        raise InputError(f"no link is called {name!r}{near} · known: {', '.join(LINKS)}")
    if "link" in arguments:
        arguments["link"] = from_json(arguments["link"])
    for key, value in arguments.items():
        arguments[key] = tuple(value) if isinstance(value, list) else value
    link = LINKS[name]
    try:
        made: Link = link(**arguments) if isinstance(link, type) else link
    except TypeError as error:
        raise InputError(f"link {name!r}: {error}") from None
    return made


def _rows(values: Tensor) -> Tensor:
    """[batch, C] of [batch], [batch, C] or [batch, C, ...]."""
    if values.ndim < 2:
        return values.reshape(-1, 1)
    return values if values.ndim == 2 else values.movedim(1, -1).flatten(0, -2)
