"""`Runner.compile_backbone`: the same training to rounding, resumed bit for bit."""

from __future__ import annotations

import pytest
import torch

from metaloss.errors import InputError, UnsupportedModelError
from tests.helpers import METHODS, assert_same_state, killed_when, rows, train

COMPILED = ("Runner.compile_backbone = True", "Runner.clip_norm = 0.5", "Runner.ema = 0.9")


@pytest.mark.full  # torch's compiler, 10 s and more
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_run_is_the_plain_one_and_resumes_bit_for_bit(method, tmp_path):
    """As in another process: what was compiled is compiled anew after the kill."""
    torch._dynamo.reset()
    assert train(tmp_path / "plain", method, COMPILED[1:]) == 0
    assert train(tmp_path / "whole", method, COMPILED) == 0
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    with killed_when(lambda state: state.steps == 9):
        train(tmp_path / "run", method, COMPILED, resume=True)
    torch._dynamo.reset()
    assert train(tmp_path / "run", method, COMPILED, resume=True) == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "run", tmp_path / "whole")
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "plain"), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, float):
                assert value == pytest.approx(other[name], rel=1e-3, abs=1e-5), (name, one, other)


def test_a_compiler_that_fails_is_told_in_a_line(tmp_path, monkeypatch):
    failure = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})

    def compiled(model, dynamic):
        def call(x):
            raise failure("no working C++ compiler was found")

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(UnsupportedModelError, match=r"cannot be compiled \(no working C\+\+"):
        train(tmp_path / "run", "baseline", COMPILED[:1])


@pytest.mark.parametrize(
    ("more", "flags", "reason"),
    [
        (("Runner.checkpointed = ('2',)",), {}, "Runner.checkpointed says what a pass keeps"),
        (
            ("meta_optimizers.online_one_step.engine = 'compiled'",),
            {},
            "engine 'compiled' compiles whole steps",
        ),
        ((), {"seed": (0, 1)}, "several seeds at once make their passes by torch.func.vmap"),
    ],
)
def test_what_does_not_go_together_is_told_in_a_line(more, flags, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        train(tmp_path / "run", "adalfl", (*COMPILED[:1], *more), **flags)
