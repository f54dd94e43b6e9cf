"""Learned losses outside of their runs: called as torch's losses are, saved, loaded, replayed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaloss import links
from metaloss.config.arguments import PositiveInt, checked
from metaloss.errors import InputError
from metaloss.links import Link
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts import network
from metaloss.representations.saved import folder as loss_folder
from metaloss.representations.saved.card import learned_on
from metaloss.representations.saved.trajectory import Trajectory, flat

Reduction = Literal["mean", "sum", "none"]


@checked()
class LearnedLoss(nn.Module):
    """A representation with its link, called as torch's losses are: `loss(outputs, labels)`.

    Under autocast and for outputs in half precision it computes in float32, as torch's losses do.

    Args:
        representation: M_φ; shared, not copied.
        link: how outputs and labels become prediction and target.
        trajectory: φ over the training, where it was recorded.
        step: base step that φ is of, where it is known.
        provenance: where the loss comes from; plain data.
        reduction: of the losses of the examples: their "mean", their "sum", or "none".

    Raises:
        ConfigError: another reduction.
    """

    def __init__(
        self,
        representation: Representation,
        link: Link = links.by_labels,
        *,
        trajectory: Trajectory | None = None,
        step: int | None = None,
        provenance: Mapping[str, Any] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.representation = representation
        self.link = link
        self.trajectory = trajectory
        self.step = step
        self.provenance = dict(provenance or {})
        self.reduction = reduction

    def forward(self, outputs: Tensor, labels: Any) -> Tensor:
        """The reduced loss of the batch, a scalar; with "none" that of each row, [rows].

        A row's loss is the mean over its C outputs, in regression as in classification. Rows are
        examples, but where the link says otherwise: pixels, say, without those that are ignored. If
        it gives them weights, "mean" is the weighted mean, as of torch's losses.

        Args:
            outputs: [batch, C], or what else the link takes; logits in classification.
            labels: class indices [batch], values [batch, C] in regression, or what else the link
                takes.
        """
        with network.without_autocast(outputs.device):
            outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
            if self.link is links.by_labels:
                self.link = links.decided(None, self.representation.of_classes, outputs, labels)
            prediction, target, *weights = self.link(outputs, labels)
            losses: Tensor = self.representation(prediction, target)
        if self.reduction == "mean":
            return links.mean(losses, *weights)
        losses = weights[0] * losses if weights else losses
        return losses.sum() if self.reduction == "sum" else losses

    def record(self, step: int) -> None:
        """Keeps φ as it is now, after so many base steps, for `at` and `schedule`."""
        there = {} if self.trajectory is None else self.trajectory.samples
        self.trajectory = Trajectory.of({**there, step: flat(self.representation)})
        self.step = step

    def at(self, step: int) -> LearnedLoss:
        """The loss as it was after a number of base steps, a copy.

        It is that of the latest recorded step up to `step`; its own `step` says which.

        Raises:
            InputError: nothing was recorded, or not over that step.
        """
        recorded = _recording(self, f"step {step}")
        if not recorded.first <= step <= recorded.last:
            raise InputError(
                f"step {step} is not in what was recorded: steps {recorded.first} to "
                f"{recorded.last}, {len(recorded.steps)} of them"
            )
        index = recorded.index(step)
        past = copy.deepcopy(self)
        past._become(recorded, index)
        return past

    def _become(self, recorded: Trajectory, index: int) -> None:
        """Takes the φ at an index, and the progress there, if the loss looks at it."""
        recorded.write(index, self.representation)
        self.step = int(recorded.steps[index])
        if isinstance(self.representation, Representation):
            self.representation.observe(self.step, None)

    def schedule(self, steps: int | None = None) -> ScheduledLoss:
        """The loss as it changed, to replay over a new training, see `ScheduledLoss`."""
        return ScheduledLoss(self, steps)

    def save_pretrained(self, folder: str | Path, **provenance: Any) -> None:
        """Writes the loss into a folder, for `load_loss`: JSON and safetensors, never pickle.

        Args:
            folder: is made if need be; a loss that is there is replaced.
            provenance: plain data to keep with it, such as task, backbone, seed and classes.

        Raises:
            InputError: the link is one's own, or something is not plain data.
            RunFolderError: the folder cannot be written to.
        """
        saved = loss_folder.SavedLoss(
            self.representation,
            self.link,
            self.step,
            self.trajectory,
            {**self.provenance, **provenance},
        )
        loss_folder.write(Path(folder), saved)

    def push_to_hub(self, name: str, **how: Any) -> str:
        """Shares what `save_pretrained` writes on the Hugging Face hub; the commit's URL.

        Args:
            name: of the repository, as "me/my-loss"; it is made if need be.
            how: see `huggingface_hub.ModelHubMixin.push_to_hub`, such as `private`, `token`.

        Raises:
            InputError: huggingface_hub is not installed, or see `save_pretrained`.
        """
        url: str = _shared()(self).push_to_hub(name, **how)
        return url

    @classmethod
    def from_pretrained(cls, name: str, **where: Any) -> LearnedLoss:
        """A loss that `push_to_hub` has shared; its parameters need no gradient.

        Args:
            name: of the repository, as "me/my-loss"; or a folder.
            where: see `huggingface_hub.ModelHubMixin.from_pretrained`, such as `revision`,
                `cache_dir`, `local_files_only`.

        Raises:
            InputError: huggingface_hub is not installed, or see `load_loss`.
        """
        loss: LearnedLoss = _shared().from_pretrained(name, **where).loss
        return loss

    @property
    def summary(self) -> str:
        """What it is and where it comes from, in a line."""
        words = [
            REPRESENTATIONS.name_of(self.representation),
            learned_on(self.provenance),
            "" if self.step is None else f"step {self.step:,}",
        ]
        return ", ".join(filter(None, words))

    def extra_repr(self) -> str:
        count = sum(p.numel() for p in self.representation.parameters())
        link = getattr(self.link, "__name__", repr(self.link))
        return f"{self.summary}; {count:,} parameters, link={link}, reduction={self.reduction}"


@checked()
class ScheduledLoss(nn.Module):
    """An adaptive loss, replayed over a new training as it changed over its own.

    Its `step` comes after the optimizer's, as a scheduler's does::

        loss = metaloss.load_loss("runs/lenet5").schedule(steps=len(loader))
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss(model(inputs), labels).backward()
            optimizer.step()
            loss.step()

    Its `state_dict` holds the step it is at.

    Args:
        loss: a loss with its trajectory; it is left alone.
        steps: base steps of the new training, which the recording is stretched or squeezed to;
            None replays step by step. After its end the loss stays as it is.

    Attributes:
        steps_made: base steps made so far.

    Raises:
        InputError: nothing was recorded, or `steps` is no number of steps.
    """

    def __init__(self, loss: LearnedLoss, steps: PositiveInt | None = None) -> None:
        super().__init__()
        self._recorded = _recording(loss, "a schedule")
        self.steps = steps
        self.loss = copy.deepcopy(loss)
        self._index = -1  # of the φ that the loss has
        self._go_to(0)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss as it is at this step, a scalar but for "none", see `LearnedLoss`."""
        reduced: Tensor = self.loss(outputs, labels)
        return reduced

    def step(self) -> None:
        """Goes on to the next base step."""
        self._go_to(self.steps_made + 1)

    def _go_to(self, step: int) -> None:
        self.steps_made = step
        index = self._recorded.index(step, self.steps)
        if index != self._index:  # else nothing is sent to a GPU
            self.loss._become(self._recorded, index)
            self._index = index

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps_made)

    def set_extra_state(self, state: Tensor) -> None:
        self._go_to(int(state))

    def extra_repr(self) -> str:
        over = self._recorded.last if self.steps is None else self.steps
        return f"step {self.steps_made:,} of {over:,}"


def load_loss(folder: str | Path, reduction: Reduction = "mean") -> LearnedLoss:
    """The learned loss of a run, of `LearnedLoss.save_pretrained`, or of the zoo that ships.

    Its parameters need no gradient, so that nobody's optimizer takes them along; `requires_grad_()`
    lets them learn again.

    Args:
        folder: a run folder, or its `loss`; or a loss of the zoo by its name, as
            "zoo:mnist_lenet5".
        reduction: see `LearnedLoss`.

    Raises:
        InputError: no loss of the zoo has this name.
        RunFolderError: there is none, a file is damaged, or its format is newer.
        UnknownComponentError: no component has the representation's name: a plugin is missing.
        ConfigError: another reduction.
    """
    saved = loss_folder.read(folder)
    loss = LearnedLoss(
        saved.representation,
        saved.link,
        trajectory=saved.trajectory,
        step=saved.step,
        provenance=saved.provenance,
        reduction=reduction,
    )
    return loss.requires_grad_(False)


def _shared() -> Any:
    """What takes a loss to the hub and back."""
    try:
        from metaloss.representations.saved.hub import SharedLoss
    except ImportError:
        raise InputError("the hub needs huggingface_hub: install metaloss[hub]") from None
    return SharedLoss


def _recording(loss: LearnedLoss, what: str) -> Trajectory:
    """The loss's trajectory.

    Raises:
        InputError: it has none.
    """
    if loss.trajectory is None:
        kept = "" if loss.step is None else f", but for step {loss.step}"
        raise InputError(f"{what}: nothing was recorded of how the loss changed{kept}")
    return loss.trajectory
