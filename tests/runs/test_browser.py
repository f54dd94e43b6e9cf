"""What a person sees: TensorBoard on a finished run, in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from metaloss.runs import launch
from tests.helpers import ROOT, drawn

#: Elements by a CSS selector, those in shadow roots too.
DEEP = """
const deep = (root, selector) => [...root.querySelectorAll(selector)].concat(
  ...[...root.querySelectorAll('*')].filter(e => e.shadowRoot).map(
    e => deep(e.shadowRoot, selector)));
"""

pytestmark = pytest.mark.full  # runs, a server and a browser for what few lines can break


def wait(browser, script: str, seconds: float = 60):
    """The value of a script's `return`, once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := browser.execute_script(DEEP + script)):
        assert time.monotonic() < deadline, f"not there: {script}"
        time.sleep(0.2)
    return value


@pytest.fixture(scope="module")
def board(browser, tmp_path_factory):
    """The address of a TensorBoard that tools/board.py started on two seeds of a run."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        with drawn():
            code = launch.train(
                gin_file=["quickstart.gin"],
                gin_param=[
                    "Runner.steps = 12",
                    "Runner.log_every = 2",
                    "Runner.evaluate_every = 3",
                    "Runner.figures = 12",
                    "meta_optimizers.task_fit.steps = 2",
                    "meta_optimizers.offline_unrolled.steps = 1",
                    "meta_optimizers.offline_unrolled.scale_steps = 2",
                    "backbones.mlp.hidden = (8,)",
                ],
                seed=seed,
                device="cpu",
                output_dir=str(folder / f"seed{seed}"),
            )
        assert code == 0
    tool = ROOT / "tools" / "board.py"
    with subprocess.Popen(
        [sys.executable, str(tool), str(folder), "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"http://\S+", line):
                break
        else:
            raise AssertionError("".join(lines))
        assert "_summary/digits_mlp/adalfl: mean of 2 seeds\n" in lines
        yield found[0]
        process.terminate()


def test_tensorboard_shows_the_loss_figure_and_the_animation(browser, board):
    browser.get(f"{board}#images")
    shown = wait(
        browser,
        """const cards = deep(document, 'tf-image-loader').map(card => ({
          tag: card.tag, image: deep(card.shadowRoot, 'img').find(i => i.naturalWidth > 100),
          steps: Math.max(0, ...deep(card.shadowRoot, 'paper-slider').map(s => s.max + 1))}));
        return cards.length == 4 && cards.every(card => card.image)
          && cards.map(({tag, image, steps}) => [tag, image.src, steps])""",
    )
    assert {tag for tag, _, _ in shown} == {"loss/animation", "loss/curves"}
    # TensorBoard's own default would show ten.
    assert {steps for tag, _, steps in shown if tag == "loss/curves"} == {12}
    animation = next(source for tag, source, _ in shown if tag == "loss/animation")
    kind = browser.execute_async_script(
        "const done = arguments[1]; fetch(arguments[0]).then(r => r.arrayBuffer())"
        ".then(b => done(String.fromCharCode(...new Uint8Array(b).slice(0, 6))))",
        animation,
    )
    assert kind == "GIF89a"


def test_tensorboard_lays_out_curves_and_indices(browser, board):
    browser.get(f"{board}#custom_scalars")
    titles = wait(
        browser,
        """const cards = deep(document, 'tf-custom-scalar-multi-line-chart-card')
          .concat(deep(document, 'tf-custom-scalar-margin-chart-card'));
        const drawn = deep(document, 'vz-line-chart2').length > 3;
        return cards.length > 3 && drawn && cards.map(card => card.title)""",
    )
    assert {"error_rate", "scale (5.5)", "base learning rate (5.5)"} <= set(titles)
    categories = wait(
        browser,
        "return deep(document, 'tf-category-paginated-view').map(e => e.category.name)",
    )
    assert {"learning curves and indices", "mean of 2 seeds"} <= set(categories)


def test_a_page_of_ours_opens(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<title>metaloss</title><p id=it>read</p>")
    browser.get(page.as_uri())
    assert browser.title == "metaloss"
    assert browser.find_element("id", "it").text == "read"
