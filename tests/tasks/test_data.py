"""Splits, batches and streams."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaloss import TASKS
from metaloss.errors import ConfigError, DataError
from metaloss.machine import seeding
from metaloss.runs.evaluation import evaluate
from metaloss.tasks.base import CLASSIFICATION, REGRESSION, Data, draw_indices
from metaloss.tasks.mnist import read_idx
from metaloss.tasks.preparation.splits import hold_out

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("ci")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(n=st.integers(1, 30_000), batch_size=st.integers(1, 200), seed=st.integers(0, 99))
def test_a_batch_is_distinct_and_in_range(n, batch_size, seed):
    index = draw_indices(n, batch_size, generator(seed))
    assert len(index) == len(set(index.tolist())) == min(n, batch_size)
    assert index.min() >= 0 and index.max() < n


@pytest.mark.parametrize("n", [20, 400])  # by permutation, by rejection
def test_batches_are_uniform(n):
    """Each index is drawn 4/n of the time: within 5 standard errors over 20,000 draws."""
    draws, stream = 20_000, generator()
    counts = torch.zeros(n)
    for _ in range(draws):
        counts[draw_indices(n, 4, stream)] += 1
    p = 4 / n
    assert ((counts / draws - p).abs() < 5 * (p * (1 - p) / draws) ** 0.5).all()


@given(
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
)
def test_holding_out_takes_the_same_share_of_every_class(counts, fraction, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    kept, held = hold_out(labels, fraction, generator(seed))
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert len(held) == max(1, round(fraction * len(labels)))
    for c, count in enumerate(counts):
        assert abs(int((labels[held] == c).sum()) - fraction * count) <= 1.5


def test_holding_out_of_values_is_not_stratified():
    kept, held = hold_out(torch.rand(50, 1), 0.1, generator())
    assert (len(kept), len(held)) == (45, 5)
    assert not set(kept.tolist()) & set(held.tolist())


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_mnist_and_its_kin_have_the_papers_split(name, data_dir):
    data = TASKS[name]().load(data_dir, generator())
    sizes = {name: len(x) for name, (x, _) in data.splits.items()}
    assert sizes == {"train": 54_000, "valid": 6_000, "test": 10_000}
    assert data.input_shape == (1, 28, 28) and data.outputs == 10


def test_regression_is_standardised_by_the_training_rows(data_dir):
    for name, features in (("crime", 100), ("california", 8), ("diabetes", 10)):
        data = TASKS[name]().load(data_dir, generator())
        inputs, _ = data.splits["train"]
        assert inputs.shape[1] == features
        torch.testing.assert_close(inputs.mean(0), torch.zeros(features), atol=1e-5, rtol=0)
        deviation = inputs.std(0, correction=0)
        torch.testing.assert_close(deviation, torch.ones(features), atol=1e-5, rtol=0)
        targets = torch.cat([y for _, y in data.splits.values()])
        assert targets.min() == 0 and targets.max() == 1


def test_the_test_split_is_the_same_under_every_seed():
    for name in ("digits", "diabetes"):
        one, other = (TASKS[name]().load(Path(), generator(seed)) for seed in (0, 1))
        assert one.splits["test"][1].equal(other.splits["test"][1])
        assert not one.splits["valid"][1].equal(other.splits["valid"][1])


def test_california_has_sklearns_features(tmp_path, data_dir):
    """AveRooms, AveBedrms and AveOccup are ratios to households, the target in 100,000 dollars."""
    from metaloss.tasks.california import read

    inputs, target = read(data_dir)
    row = np.loadtxt(data_dir / "CaliforniaHousing" / "cal_housing.data", delimiter=",")[7]
    longitude, latitude, age, rooms, bedrooms, people, households, income, value = row
    expected = [
        income, age, rooms / households, bedrooms / households, people, people / households,
        latitude, longitude,
    ]  # fmt: skip
    np.testing.assert_allclose(inputs[7], expected)
    assert target[7] == value / 100_000


def test_california_is_downloaded_by_its_checksum(tmp_path, data_dir, monkeypatch):
    """The archive is checked before anything of it is read or kept."""
    from metaloss.tasks import california

    source = data_dir / "CaliforniaHousing" / "cal_housing.data"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(source, "CaliforniaHousing/cal_housing.data")
    content = packed.getvalue()
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(content))
    with pytest.raises(DataError, match="its SHA-256 is .*, not aaa5c9a6"):
        california.read(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(california, "SHA256", hashlib.sha256(content).hexdigest())
    for one, other in zip(california.read(tmp_path), california.read(data_dir), strict=True):
        np.testing.assert_array_equal(one, other)
    path = tmp_path / "CaliforniaHousing" / "cal_housing.data"
    assert path.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "header", "no gzip"])
def test_a_damaged_idx_file_is_refused(tmp_path, damage):
    header = np.array([0x0801, 6], dtype=">i4").tobytes()
    content = gzip.compress(header + bytes(6))
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    assert read_idx(path, (6,)).tolist() == [0] * 6
    path.write_bytes(
        {
            "cut": content[:-5],
            "header": gzip.compress(header + bytes(5)),
            "no gzip": b"<html>not found</html>",
        }[damage]
    )
    with pytest.raises(DataError, match="labels.gz"):
        read_idx(path, (6,))


def test_task_arguments_are_checked():
    with pytest.raises(ConfigError, match="batch_size"):
        TASKS["digits"](batch_size=0)
    with pytest.raises(ConfigError, match="valid_fraction"):
        TASKS["digits"](valid_fraction=1.0)


def test_streams_are_independent_and_leave_the_global_generator_alone():
    one, same, other = (seeding.stream(s, n) for s, n in ((0, "a"), (0, "a"), (0, "b")))
    draws = [torch.rand(4, generator=g) for g in (one, same, other)]
    assert draws[0].equal(draws[1]) and not draws[0].equal(draws[2])
    before = torch.get_rng_state()
    with seeding.drawing_from(one):
        first = torch.rand(3)
    with seeding.drawing_from(one):
        second = torch.rand(3)
    assert torch.get_rng_state().equal(before) and not first.equal(second)
    assert torch.rand(3, generator=one).shape == (3,)


def test_replaying_repeats_a_draw_and_moves_nothing():
    device = torch.device("cpu")
    state = seeding.global_state(device)
    drawn = torch.rand(5)
    after = torch.get_rng_state()
    with seeding.replaying(state, device):
        assert torch.rand(5).equal(drawn)
    assert torch.get_rng_state().equal(after)


def test_evaluation_by_hand():
    """Outputs 1, 2 against labels 1, 4: squared errors 0 and 4."""
    model = torch.nn.Dropout(0.9)  # the identity in eval mode
    split = (torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
    data = Data({"valid": split}, 1, REGRESSION)
    assert evaluate(model, data, "valid") == {"loss": 2.0, "mse": 2.0}
    assert evaluate(model, data, "valid", limit=1) == {"loss": 0.0, "mse": 0.0}
    assert model.training
    logits = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    data = Data({"one": (logits, labels), "nan": (logits * torch.nan, labels)}, 2, CLASSIFICATION)
    assert evaluate(model, data, "one")["error_rate"] == 0.25
    assert np.isnan(evaluate(model, data, "nan")["error_rate"])
