"""A model of fully_shard in two processes is the whole model in one; what cannot be sharded."""

from __future__ import annotations

import re

import pytest
import torch

from tests.problem import sharded
from tests.runs.test_distributed import ends, start

#: Two processes, and minutes of them on a busy machine.
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    root = tmp_path_factory.mktemp("sharded")
    for code, said in ends(start("-m", "tests.problem.sharded", root)):
        assert code == 0, said
    return [torch.load(root / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", sharded.CASES)
def test_two_processes_with_a_part_each_are_one_with_the_whole(case, found):
    """θ, buffers, φ, α and all losses over 20 steps of uneven batches, in uneven shards."""
    expected = sharded.compute(case)
    first, second = (results["cases"][case] for results in found)
    for name, value in expected.items():
        if torch.is_tensor(value):
            assert first[name].equal(second[name]), name
            assert torch.allclose(first[name], value, rtol=1e-9, atol=1e-9), name
    assert not expected["metrics"][0].equal(expected["metrics"][-1])
    for name in ("cosine_theta", "ratio_theta") if expected["numbers"] else ():
        assert first["numbers"][name] == pytest.approx(expected["numbers"][name])


def test_the_engine_is_forward_mode_and_another_with_a_reason(found):
    chosen = {name: results["engine"] for name, results in found[0]["cases"].items()}
    others = {"difference": "LogitDifference", "no forward mode": "LogitDifference"}
    assert chosen == {name: others.get(name, "Exact") for name in sharded.CASES}
    told = {name: results["told"] for name, results in found[0]["cases"].items() if results["told"]}
    ((name, (line,)),) = told.items()
    assert name == "no forward mode"
    assert line.startswith("the meta-gradient is taken by engine 'logit_difference': 'exact' does ")


def test_a_checkpoint_of_shards_goes_on_bit_for_bit(found):
    for results in found:
        straight, resumed = results["interrupted"]
        assert straight.keys() == resumed.keys()
        assert all(straight[n].equal(resumed[n]) for n in straight if n != "engine")


def test_what_cannot_be_sharded_is_refused_by_name(found):
    beginnings = (
        "the model's parameter '0.bias' is whole in each process and others are sharded: ",
        "the model has parameters in parts (DTensor), but is none of fully_shard itself: ",
        "the model's parameter '0.weight' is placed (Replicate(), Shard(dim=0)) on a mesh of (2, ",
        "the model has parameters in parts (DTensor), but is none of fully_shard itself: ",
        "the model's parameter '0.weight' is placed (_StridedShard(dim=0, sf=2), ",
        "engine 'sweep' needs the whole model in each process, and it is sharded by fully_shard: ",
        "a gradient_transform <function",
        "the model is sharded by fully_shard, and an initialisation goes back through several ",
        "cuda_graphs: the collectives of fully_shard are in no recorded step",
        "fully_shard makes the passes in torch.bfloat16 on cpu, and θ is torch.float32 on cpu: ",
        "the learned loss looks at θ itself, and of a model of fully_shard each process has a part",
    )
    for results in found:
        for line, beginning in zip(results["refusals"], beginnings, strict=True):
            assert re.match(re.escape(beginning), line) and "\n" not in line
