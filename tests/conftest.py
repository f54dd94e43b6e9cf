"""Every test starts from the same seed, on one thread, with nothing bound in gin."""

import itertools
import shutil

import gin
import pytest
import torch

from metaloss.config.registry import REGISTRIES, Registry
from tests.helpers import tool

torch.set_num_threads(1)

NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def clean():
    gin.clear_config(clear_constants=True)
    torch.manual_seed(0)
    yield
    gin.clear_config(clear_constants=True)


@pytest.fixture
def kind():
    """A registry of its own kind: gin's registry cannot be emptied, so a name serves one test."""
    name = f"throwaway{next(NUMBERS)}"
    yield Registry(name)
    del REGISTRIES[name]


@pytest.fixture
def train(capsys):
    """Runs tools/train.py in this process: arguments -> exit code, standard error."""
    main = tool("train").main

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def refused(train, tmp_path):
    """Asserts that arguments give exit code 2 and no run folder; -> what follows "error: "."""

    def run(*arguments, files=("tasks/digits_mlp.gin", "methods/adalfl.gin")):
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
