"""A learned loss from where it was saved, as the loss of another run."""

from __future__ import annotations

from metaloss.representations.base import REPRESENTATIONS, Representation


@REPRESENTATIONS.register("pretrained")
def pretrained(path: str, step: int | None = None) -> Representation:
    """The representation of a saved loss with its φ, which may go on learning.

    What a run makes of it is exported as that representation, and does not need the path again.

    Args:
        path: a run folder, or a folder that `LearnedLoss.save_pretrained` wrote.
        step: base step of its training; the latest recorded one up to it is taken. None takes φ as
            it was saved.

    Raises:
        RunFolderError, UnknownComponentError: it cannot be loaded, see `metaloss.load_loss`.
        InputError: the step was not recorded.
    """
    from metaloss.representations.saved.learned_loss import (
        load_loss,  # which is of representations itself
    )

    loss = load_loss(path)
    if step is not None:
        loss = loss.at(step)
    return loss.representation.requires_grad_()
