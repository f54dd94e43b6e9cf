"""The contract of launchers."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from metaloss.experiments.launchers.base import Job, Launcher
from metaloss.experiments.launchers.parts.process import END
from metaloss.testing.base import require

#: Prints a word and ends with an exit code.
PROGRAM = "import sys; print(sys.argv[1]); sys.exit(int(sys.argv[2]))"


def check_launcher(launcher: Launcher) -> None:
    """Holds a launcher to the contract of `launchers.base`; starts three processes.

    Args:
        launcher: on this machine.
    """
    codes = {"first": 0, "fails": 3, "last": 0}
    with tempfile.TemporaryDirectory() as folder:
        jobs = {
            name: Job(
                name,
                (sys.executable, "-c", PROGRAM, name, str(code)),
                str(Path(folder, name, "log.txt")),
            )
            for name, code in codes.items()
        }
        ended = [(job.name, code) for job, code in launcher.launch(iter(jobs.values()))]
        require(sorted(ended) == sorted(codes.items()), f"gives {ended} for {codes}")
        for name, code in codes.items():
            lines = Path(jobs[name].log).read_text().splitlines()
            require(lines[1:] == [name, f"{END}{code}"], f"leaves {lines} in the log of {name!r}")
        require(list(launcher.launch(iter(()))) == [], "gives something for no jobs")
    require(launcher.threads >= 1 and launcher.parallel >= 1, "has no threads or runs nothing")
