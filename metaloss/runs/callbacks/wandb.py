"""Weights & Biases."""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from metaloss.runs.callbacks.base import CALLBACKS, Look, Start
from metaloss.runs.callbacks.parts.numbers import bindings
from metaloss.runs.callbacks.parts.tracker import Tracker, imported, title
from metaloss.runs.metrics import Row


@CALLBACKS.register("wandb")
class Wandb(Tracker):
    """A run in Weights & Biases, of `pip install metaloss[wandb]`; the package keeps its own login.

    A resumed run goes on under its id. Offline, each process leaves `wandb/offline-run-...` in the
    run folder; `wandb sync` sends them, `--append` those of a resumed run.

    Args:
        project, entity: where it is listed.
        mode: "online", or "offline" for machines without a network.
        group: what its runs are gathered under; None: task, backbone and method.
        tags: words to find it by.
    """

    def __init__(
        self,
        project: str = "metaloss",
        entity: str | None = None,
        mode: Literal["online", "offline"] = "online",
        group: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._project = project
        self._entity = entity
        self._mode = mode
        self._group = group
        self._tags = tags
        self._run: Any = None

    def open(self, start: Start, identity: str | None) -> str:
        self._wandb = imported("wandb", "wandb")
        group, name = title(start)
        identity = identity or uuid.uuid4().hex[:16]
        self._run = self._wandb.init(
            project=self._project,
            entity=self._entity,
            mode=self._mode,
            id=identity,
            resume="allow" if self._mode == "online" else None,
            dir=start.folder.absolute(),  # its process keeps the folder that it was started in
            name=name,
            group=self._group or group,
            job_type=start.names["method"],
            tags=list(self._tags),
            config={**bindings(start.config), "seed": start.seed},
            reinit="create_new",  # a process may hold several seeds
            settings=self._wandb.Settings(console="off", silent=True),
        )
        for phase in ("", "initialization/"):
            self._run.define_metric(f"{phase}step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("initialization/*", step_metric="initialization/step")
        return identity

    def tell(self, numbers: Mapping[str, float], phase: str, row: Row) -> None:
        self._run.log({**numbers, f"{phase}step": row["step"]})

    def warn(self, trouble: str) -> None:
        self._run.summary["warning"] = trouble

    def look(self, look: Look) -> None:
        from PIL import Image

        shown = {t: self._wandb.Image(Image.open(io.BytesIO(c))) for t, c in look.images.items()}
        if shown:
            self._run.log({**shown, "step": look.step})

    def end(self, result: Mapping[str, Any]) -> None:
        for name in ("status", "health", "select", "best_step"):
            self._run.summary[name] = result[name]

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
