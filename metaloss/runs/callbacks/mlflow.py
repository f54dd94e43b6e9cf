"""MLflow."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

from metaloss.runs.callbacks.base import CALLBACKS, Look, Start
from metaloss.runs.callbacks.parts.numbers import bindings
from metaloss.runs.callbacks.parts.tracker import Tracker, imported, title
from metaloss.runs.metrics import Row


@CALLBACKS.register("mlflow")
class MLflow(Tracker):
    """A run in MLflow, of `pip install metaloss[mlflow]`; a resumed run goes on under its id.

    Args:
        experiment: what it is listed under; made if it is not there.
        tracking_uri: a server, or by the whole package `mlflow` a file, as "sqlite:///mlflow.db";
            None: MLflow's own, which $MLFLOW_TRACKING_URI says.
    """

    def __init__(self, experiment: str = "metaloss", tracking_uri: str | None = None) -> None:
        super().__init__()
        self._experiment = experiment
        self._uri = tracking_uri
        self._client: Any = None
        self._id = ""
        self._status = "KILLED"  # until it ends by itself

    def open(self, start: Start, identity: str | None) -> str:
        mlflow = imported("mlflow", "mlflow")
        # Not MLflow's active run, of which a process has one; it may hold several seeds.
        client = self._client = mlflow.MlflowClient(self._uri)
        if identity is not None:
            self._id = identity
            client.update_run(identity, status="RUNNING")
            return identity
        found = client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else client.create_experiment(self._experiment)
        group, name = title(start)
        tags = {**start.names, "group": group, "seed": str(start.seed)}
        self._id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        for parameter, value in {**bindings(start.config), "seed": start.seed}.items():
            client.log_param(self._id, parameter, str(value)[:LONGEST], synchronous=True)
        return self._id

    def tell(self, numbers: Mapping[str, float], phase: str, row: Row) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(tag, float(value), now, row["step"]) for tag, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def warn(self, trouble: str) -> None:
        self._client.set_tag(self._id, "warning", trouble)

    def look(self, look: Look) -> None:
        from PIL import Image

        for tag, content in look.images.items():
            image = Image.open(io.BytesIO(content))
            self._client.log_image(self._id, image, key=tag.replace("/", "_"), step=look.step)

    def end(self, result: Mapping[str, Any]) -> None:
        self._client.set_tag(self._id, "health", str(result["health"]))
        self._status = "FINISHED" if result["status"] == "finished" else "FAILED"

    def close(self) -> None:
        if self._client is not None and self._id:
            self._client.set_terminated(self._id, self._status)
            self._client = None


LONGEST = 6000  #: characters of a parameter that MLflow keeps
