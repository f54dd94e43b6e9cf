"""Every test starts from the same seed, with nothing bound in gin, and draws no pictures unasked.

pytest gets three options of its own: --threads, --reverse and --budget. CONTRIBUTING.md says when
they are used.
"""

import itertools
import math
import os
import shutil

import gin
import pytest
import torch

from metaloss.config.registry import REGISTRIES, Registry
from metaloss.runs.precision import _float32
from tests import helpers
from tests.helpers import tool

SLOWEST = 25  #: tests that are listed with --budget
NUMBERS = itertools.count()


def pytest_addoption(parser):
    group = parser.getgroup("metaloss")
    group.addoption("--threads", type=int, default=1, help="of torch, in every worker (default: 1)")
    group.addoption("--reverse", action="store_true", help="runs the last test first")
    group.addoption(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="lists what cost the most CPU time, and fails if one test took more than this",
    )


def pytest_configure(config):
    torch.set_num_threads(config.getoption("threads"))
    config.pluginmanager.register(Costs(config.getoption("budget")))


def pytest_collection_modifyitems(config, items):
    if config.getoption("reverse"):
        items.reverse()


class Costs:
    """What each test cost: CPU time, since a busy machine stretches that of the clock.

    It is that of the process and of the children it has waited for. A fixture of many tests is
    listed by itself, and has no budget.
    """

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self.seconds: dict[str, float] = {}

    @staticmethod
    def clock() -> float:
        """CPU seconds so far."""
        return sum(os.times()[:4])

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item):
        self.began, self.shared = self.clock(), {}
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        began = self.clock()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                name = f"fixture {fixturedef.argname} of {fixturedef.baseid}"
                self.shared[name] = self.clock() - began

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item):
        try:
            return (yield)
        finally:
            own = self.clock() - self.began - sum(self.shared.values())
            item.user_properties.append(("cpu", {item.nodeid: own, **self.shared}))

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            for name, seconds in dict(report.user_properties).get("cpu", {}).items():
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @property
    def dear(self) -> list[str]:
        """The tests above the budget."""
        return [
            name
            for name, seconds in self.seconds.items()
            if seconds > (self.budget or math.inf) and not name.startswith("fixture ")
        ]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if self.dear and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.budget is None:
            return
        total = sum(self.seconds.values())
        terminalreporter.section(f"{total:.0f} CPU seconds, and what cost the most")
        for test in sorted(self.seconds, key=self.seconds.get, reverse=True)[:SLOWEST]:
            above = f"  FAILED: above {self.budget:g} s" if test in self.dear else ""
            terminalreporter.write_line(f"{self.seconds[test]:7.2f} s  {test}{above}")


@pytest.fixture(scope="session", autouse=True)
def sketching():
    """A run draws one small picture in place of its figures, which take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, sketch in helpers.SKETCHES:
            patch.setattr(module, name, sketch)
        yield


@pytest.fixture(autouse=True)
def drawing(request):
    """A test marked `pictures` draws as runs do; a fixture of wider scope enters `drawn` itself."""
    if request.node.get_closest_marker("pictures"):
        with helpers.drawn():
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def clean():
    gin.clear_config(clear_constants=True)
    torch.manual_seed(0)
    yield
    gin.clear_config(clear_constants=True)


@pytest.fixture(scope="session")
def precision():
    """How torch computes in float32 where the first test begins."""
    return _float32()


@pytest.fixture(autouse=True)
def process_left(precision):
    """A test that leaves torch's settings changed fails itself, and not one that comes later."""
    yield
    assert _float32() == precision


@pytest.fixture
def kind():
    """A registry of its own kind, of which gin keeps nothing: a namesake would stay ambiguous."""
    name = f"throwaway{next(NUMBERS)}"
    yield Registry(name)
    del REGISTRIES[name]
    registered = gin.config._REGISTRY
    for selector in [
        selector for selector, _ in registered.items() if selector.startswith(f"{name}.")
    ]:
        registered.pop(selector)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def command(capsys):
    """Runs a tool in this process: name, arguments -> exit code, standard output and error."""

    def run(name, *arguments):
        code = tool(name).main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def train(command):
    """Runs tools/train.py in this process: arguments -> exit code, standard error."""

    def run(*arguments):
        code, _, stderr = command("train", *arguments)
        return code, stderr

    return run


@pytest.fixture
def refused(train, tmp_path):
    """Asserts that arguments give exit code 2 and no run folder; -> what follows "error: "."""

    def run(*arguments, files=("tasks/digits_mlp.gin", "methods/adalfl_letter.gin")):
        files = [f"--gin_file={file}" for file in files]
        before = set(tmp_path.rglob("*"))
        code, stderr = train(*files, f"--output_dir={tmp_path / 'run'}", *arguments)
        line = stderr.splitlines()[-1]
        assert code == 2
        assert set(tmp_path.rglob("*")) == before
        assert line.startswith("error: ")
        assert all(other.startswith("warning: ") for other in stderr.splitlines()[:-1])
        return line.removeprefix("error: ")

    return run


@pytest.fixture(scope="module")
def few_examples(tmp_path_factory):
    """Data sets of some dozens of examples, and loaders that expect as many; -> their folder."""
    from metaloss.tasks import california, crime, mnist
    from tests.small_data import write_all

    folder = tmp_path_factory.mktemp("few")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "FILES", {"train": ("train", 50), "test": ("t10k", 50)})
        patch.setattr(california, "ROWS", 50)
        patch.setattr(crime, "ROWS", 50)
        write_all(folder, patch, photographs=5)
        yield folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder of small data sets in the on-disk format of the real ones."""
    from tests.small_data import write_all

    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        write_all(folder, patch)
        yield folder


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium (a selenium driver), for what only a real browser can tell."""
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1500,1200"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()
