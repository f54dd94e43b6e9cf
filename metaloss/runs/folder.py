"""The run folder: what a run leaves on disk, and who may write there."""

from __future__ import annotations

import hashlib
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import ndiff
from pathlib import Path
from typing import Any

import numpy as np

from metaloss.errors import RunFolderError
from metaloss.machine import lock, sealed
from metaloss.machine.files import read_json, remove_partial, write_atomically, write_json, writing

ENDED = ("finished", "diverged")  #: of a run that has ended by itself


class RunFolder:
    """One run's folder.

    It holds `command.txt` (a line per start), `config.gin` (complete), `meta.json` (seed, versions,
    machine), `metrics.jsonl`, `result.json`, `test_errors.npz` (of each test example),
    `checkpoint.pt` and the one before it, TensorBoard events, `model.json`, its weights and
    `README.md` (see `runs.trained.saved_model`), `loss/` (the exported learned loss),
    `figures/`, `.lock` (see `machine.lock`), `log.txt` where a sweep started the run, and of
    trackers a `NAME.tracked` each, and what they keep themselves, such as `wandb/`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.gin"
        self.meta = path / "meta.json"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.checkpoint = path / "checkpoint.pt"
        self.errors = path / "test_errors.npz"
        self.model = path / "model.json"
        self.loss = path / "loss"
        self.figures = path / "figures"
        self.lock = path / ".lock"
        self.log = path / "log.txt"

    def check(self, config: str, seed: int, *, resume: bool) -> dict[str, Any] | None:
        """Whether a run may write here; changes nothing.

        Args:
            config: the complete configuration.
            resume: whether a run that is there already may be continued.

        Returns:
            The result, if this run is there and has ended by itself ("finished" or "diverged").

        Raises:
            RunFolderError: another run is there, or this one and `resume` is not set.
        """
        if not self.config.exists():
            before = sealed.previous(self.checkpoint)
            for path in (
                self.metrics, self.checkpoint, before, self.result, self.errors, self.model,
                self.loss, self.figures,
            ):  # fmt: skip
                if path.exists():
                    raise RunFolderError(
                        f"{path} is in the way: there is no config.gin beside it to say which run "
                        "it belongs to; give another --output_dir"
                    )
            return None
        result = read_json(self.result) if self.result.is_file() else {"status": "unfinished"}
        if not resume:
            test = f", test {result['metric']} {result['test']}" if result.get("test") else ""
            raise RunFolderError(
                f"{self.path} holds a run already ({result['status']}{test}): --resume goes on "
                "with it, another --output_dir leaves it alone"
            )
        there = self.config.read_text("utf-8", errors="replace")
        if there != config:
            lines = ndiff(there.splitlines(), config.splitlines())
            changed = [line for line in lines if line.startswith(("- ", "+ "))]
            if all(line.startswith("+ ") for line in changed):
                if result["status"] in ENDED:
                    return result
                raise RunFolderError(self._of_an_earlier_version(changed))
            raise RunFolderError(
                f"{self.path} holds a run of another configuration, so --resume cannot go on with "
                f"it (- there, + asked): {' · '.join(changed[:2])}"
            )
        if self.seed() != seed:
            raise RunFolderError(
                f"{self.path} holds a run with seed {self.seed()}, not {seed}: give that --seed, "
                "or another --output_dir"
            )
        return result if result["status"] in ENDED else None

    def _of_an_earlier_version(self, lines: Sequence[str]) -> str:
        """What is said of an unfinished run whose configuration lacks today's lines."""
        commit = self.provenance()["git_commit"]
        lacks = ", ".join(line.removeprefix("+ ") for line in lines[:2])
        return (
            f"{self.path} holds an unfinished run of an earlier version, whose config.gin lacks "
            f"{lacks}: --resume of that version goes on with it"
            f"{f' (git commit {commit[:7]})' if commit else ''}"
        )

    def seed(self) -> int:
        """The seed of the run that is there.

        Raises:
            RunFolderError: meta.json is missing or damaged.
        """
        seed = read_json(self.meta).get("seed")
        if not isinstance(seed, int):
            raise RunFolderError(f"{self.meta} names no seed")
        return seed

    def plugins(self) -> list[str]:
        """What `--plugin` named when the run began; none where that cannot be read."""
        try:
            return list(read_json(self.meta).get("plugins", ()))
        except RunFolderError:  # whoever needs the notes says so
            return []

    def data_dir(self) -> str | None:
        """The folder of data sets that the run began with, if it is still there."""
        try:
            found = read_json(self.meta).get("data_dir")
        except RunFolderError:
            return None
        return found if found is not None and Path(found).is_dir() else None

    def keep_errors(self, errors: np.ndarray, labels: np.ndarray) -> None:
        """Writes the metric of each test example, with a hash that tells which they are.

        Args:
            errors, labels: of the examples, in order, [n, ...].

        Raises:
            RunFolderError: it cannot be written.
        """
        digest = hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()
        content = io.BytesIO()
        np.savez(content, errors=errors, examples=f"{len(errors)} {digest}")
        write_atomically(self.errors, lambda path: path.write_bytes(content.getvalue()))

    def provenance(self) -> dict[str, Any]:
        """What identifies the run that is there: its configuration's hash, and its code."""
        meta = read_json(self.meta) if self.meta.is_file() else {}
        config = self.config.read_bytes() if self.config.is_file() else b""
        return {
            "config_sha256": hashlib.sha256(config).hexdigest(),
            "git_commit": meta.get("git_commit"),
        }

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder, and within it no other process may do so; `check` is true until then.

        Raises:
            HeldError: another process is at work here.
            RunFolderError: the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written to: {error}") from error
        with lock.holding(self.lock):
            yield

    def begin(self, config: str, meta: dict[str, Any]) -> None:
        """Makes the held folder a run's, without a killed process's leavings; notes the command.

        Raises:
            RunFolderError: the folder cannot be written to.
        """
        for folder in (self.path, self.loss, self.figures):
            remove_partial(folder)
        commands = self.path / "command.txt"
        with writing(commands), commands.open("a") as file:
            file.write(shlex.join(sys.argv) + "\n")
        if not self.config.is_file():
            write_json(self.meta, meta)
            write_atomically(self.config, lambda path: path.write_text(config, "utf-8"))


def plugins_there(folder: Path) -> list[str]:
    """The plugins of the run in a folder, or of those in its seedN folders."""
    runs = [RunFolder(folder), *map(RunFolder, sorted(folder.glob("seed*")))]
    return list(dict.fromkeys(name for run in runs for name in run.plugins()))


def found_there(folder: Path, seeds: Sequence[int]) -> tuple[list[str], list[int]]:
    """The configuration and the seeds of the run in a folder, or of those in its seedN folders.

    Args:
        seeds: those that are asked for; all, if there is none.

    Raises:
        RunFolderError: they are not there.
    """
    there = RunFolder(folder)
    if there.config.is_file():
        return [str(there.config)], list(seeds) or [there.seed()]
    names = [path.parent.name.removeprefix("seed") for path in folder.glob("seed*/config.gin")]
    found = sorted(int(name) for name in names if re.fullmatch(r"-?\d+", name))
    if not found:
        raise RunFolderError(f"{folder} holds no run to go on with: give --gin_file")
    for seed in seeds:
        if seed not in found:
            known = ", ".join(map(str, found))
            raise RunFolderError(f"{folder} holds no run of seed {seed} · known: {known}")
    return [str(RunFolder(folder / f"seed{found[0]}").config)], list(seeds) or found
