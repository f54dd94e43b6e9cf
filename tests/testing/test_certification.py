"""Certification: what holds, what is found to be wrong, and that its page is current."""

from __future__ import annotations

import re

import pytest

from metaloss import BACKBONES, BASE_OPTIMIZERS, ENGINES, REPRESENTATIONS
from metaloss.engines.base import Hypergradient
from metaloss.engines.exact import Exact
from metaloss.testing.certification import certify, grid, report
from tests.helpers import ROOT, thinned, tool

check_gradients = tool("check_gradients")
PAGE = (ROOT / "docs" / "certification.md").read_text()


@pytest.mark.full  # each is held to its step by check_base_optimizer in the small run
def test_every_optimizer_is_certified_on_a_small_model():
    found = list(grid.certificates(losses=["nn"], backbones=["mlp"]))
    assert {c.case.optimizer for c in found} == set(grid.OPTIMIZERS)
    assert [report.line(c) for c in found if not c.holds] == []


#: A network, one with kinks, one that looks at a whole row, and one of closed form.
FEW = ("nn", "nn (ReLU, Softplus)", "class_set (attention)", "taylor (3)")


@pytest.mark.parametrize(
    "loss", thinned(((loss,) for loss in grid.LOSSES), keep=lambda loss: loss in FEW)
)
def test_every_learned_loss_is_certified_with_batch_norm_and_dropout(loss):
    found = list(
        grid.certificates(["exact"], optimizers=["adam"], losses=[loss], backbones=["wide_resnet"])
    )
    assert len(found) == 2
    assert [report.line(c) for c in found if not c.holds] == []


class Halved(Exact):
    """Off by a factor, as torch's own differentiable SGD is with momentum."""

    def hypergradient(self, problem, meta, train, draw_objective):
        found = super().hypergradient(problem, meta, train, draw_objective)
        return Hypergradient(
            found.learned_loss, found.task_loss, [0.5 * g for g in found.phi], found.alpha
        )


class Deaf(Exact):
    """Without a gradient of the learning rate."""

    def hypergradient(self, problem, meta, train, draw_objective):
        found = super().hypergradient(problem, meta, train, draw_objective)
        return Hypergradient(found.learned_loss, found.task_loss, found.phi, None)


def test_a_wrong_gradient_is_found():
    case = grid.built_in_case("sgd", "nn", "mlp")
    assert certify.certify(case, Exact(), 2, 1).holds
    halved = certify.certify(case, Halved(), 2, 1)
    assert not halved.holds
    assert halved.reference == pytest.approx(0.5)
    assert halved.difference > 0.1
    deaf = certify.certify(case, Deaf(), 2, 1)
    assert not deaf.holds and deaf.alpha == pytest.approx(1.0)


@pytest.mark.full  # certifies a part of the grid
def test_the_tool_exits_with_1_on_a_miss(monkeypatch, capsys):
    monkeypatch.setitem(ENGINES._components, "exact", Halved)
    files = ["--gin_file=tasks/digits_mlp.gin", "--gin_file=methods/adalfl_letter.gin"]
    small = ["--gin_param=backbones.mlp.hidden = (8,)", "--engine=exact"]
    assert check_gradients.main([*files, *small]) == 1
    out = capsys.readouterr().out
    assert out.count("MISSED") == 2 and "0 of 2 certificates hold" in out


def test_the_tool_certifies_a_run_and_writes_a_page(tmp_path, capsys):
    files = ["--gin_file=tasks/digits_mlp.gin", "--gin_file=methods/adalfl_letter.gin"]
    small = ["--gin_param=backbones.mlp.hidden = (8,)", f"--markdown={tmp_path / 'page.md'}"]
    assert check_gradients.main([*files, *small]) == 0
    assert "4 of 4 certificates hold" in capsys.readouterr().out
    assert "| `sgd` |" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone=mpl"], "--backbone = 'mpl' is unknown; did you mean 'mlp'?"),
        (["--engine=exakt"], "no 'exakt' in engines; did you mean 'exact'?"),
        (
            ["--gin_file=tasks/digits_mlp.gin", "--gin_file=methods/baseline.gin"],
            "this run has no learned loss (Runner.representation = None)",
        ),
    ],
)
def test_what_cannot_be_certified_is_one_line(arguments, message, capsys):
    assert check_gradients.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def table(title: str) -> dict[str, list[str]]:
    """Rows of the page's table by their first word."""
    text = PAGE.split(f"## By {title}\n\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in rows}


def built_in(registry) -> set[str]:
    """The names that no plugin of another test has entered."""
    return {name for name, c in registry.items() if c.__module__.startswith("metaloss.")}


def learnable() -> set[str]:
    """The built-in losses with parameters; `pretrained` makes one of the others."""
    return {
        name for name in built_in(REPRESENTATIONS) - {"pretrained"}
        if any(p.requires_grad for p in REPRESENTATIONS[name]().parameters())
    }  # fmt: skip


def test_the_page_has_no_gap():
    assert {name for name, _ in grid.LOSSES.values()} == learnable()
    assert {*grid.OPTIMIZERS, *grid.WITHOUT_GRADIENT} == built_in(BASE_OPTIMIZERS)
    assert set(grid.MODELS) == built_in(BACKBONES)
    assert list(table("optimizer")) == list(grid.OPTIMIZERS)
    assert list(table("learned loss")) == list(grid.LOSSES)
    assert list(table("backbone")) == list(grid.MODELS)
    named = set(re.findall(r"`(\w+)`", PAGE)) | {"auto"}  # which is one of the others
    assert built_in(ENGINES) <= named | {engine for engine, _, _ in grid.WAYS}


def test_the_page_holds_nothing_above_its_bounds():
    count, missed = re.search(r"(\d+) certificates, (\d+) missed", PAGE).groups()
    assert int(count) > 1000 and missed == "0"
    assert report.INTRODUCTION in PAGE and report.LIMITS in PAGE
    engines = list(dict.fromkeys(engine for engine, _, _ in grid.WAYS))
    for title in ("optimizer", "learned loss", "backbone"):
        for word, cells in table(title).items():
            assert len(cells) == 2 * len(engines)
            for engine, reference, difference in zip(engines, cells[::2], cells[1::2], strict=True):
                if reference == "—":
                    assert title == "backbone", "an engine was left out"
                    continue
                bound = 1e-5 if engine == "logit_difference" else 1e-8
                assert float(reference) <= bound, (title, word, engine)
                assert float(difference) <= 1e-5, (title, word, engine)
