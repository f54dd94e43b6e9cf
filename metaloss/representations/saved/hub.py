"""Learned losses on the Hugging Face hub, by its library's own mixin (extra `hub`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from metaloss.representations.saved.learned_loss import LearnedLoss, load_loss


class SharedLoss(ModelHubMixin, library_name="metaloss", tags=["learned-loss"]):
    """A learned loss as the mixin takes it: a repository is what `save_pretrained` writes.

    Args:
        loss: what is shared.
    """

    def __init__(self, loss: LearnedLoss) -> None:
        self.loss = loss

    def _save_pretrained(self, save_directory: Path) -> None:
        self.loss.save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **where: Any) -> SharedLoss:
        """The loss of a repository, or of a folder."""
        return cls(
            load_loss(model_id if Path(model_id).is_dir() else snapshot_download(model_id, **where))
        )
