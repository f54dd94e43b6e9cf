"""Images: prepared and augmented as torchvision does one at a time; uniform; from one generator."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.functional as V
from torchvision import transforms

from metaloss import TASKS
from metaloss.tasks.preparation.images import Images, by_channel

CIFAR = by_channel((0.4914, 0.4822, 0.4465)), by_channel((0.2470, 0.2435, 0.2616))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(n: int, height: int, width: int) -> torch.Tensor:
    """Images whose pixels hold their own row + 1 and column + 1; padding is 0."""
    rows = torch.arange(1, height + 1, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(1, width + 1, dtype=torch.uint8).expand(height, width)
    return torch.stack([rows, columns]).expand(n, 2, height, width).contiguous()


def windows(augmented: torch.Tensor, padding: int) -> torch.Tensor:
    """Top, left and flip of each augmented image of `coordinates`; [n, 3]."""
    at = augmented.shape[2] // 2, augmented.shape[3] // 2  # in no padding: sides >= 2 · padding + 2
    flipped = augmented[:, 1, at[0], at[1] - 1] > augmented[:, 1, at[0], at[1]]
    aligned = torch.where(flipped[:, None, None, None], augmented.flip(3), augmented)
    top = aligned[:, 0, at[0], at[1]].long() - 1 - at[0] + padding
    left = aligned[:, 1, at[0], at[1]].long() - 1 - at[1] + padding
    return torch.stack([top, left, flipped.long()], dim=1)


def test_prepared_is_torchvisions_normalize_bit_for_bit():
    stored = torch.randint(256, (5, 3, 9, 7), dtype=torch.uint8)
    images = Images(*CIFAR, padding=4, flip=True)
    normalize = transforms.Normalize(*(values.flatten().tolist() for values in CIFAR))
    one_by_one = [normalize(transforms.ToTensor()(x.permute(1, 2, 0).numpy())) for x in stored]
    assert images.prepare(stored).equal(torch.stack(one_by_one))


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (2, False), (0, True)])
def test_an_augmented_image_is_torchvisions_pad_crop_and_flip(padding, flip):
    images = Images(*CIFAR, padding, flip)
    code = coordinates(200, 12, 10)
    drawn = windows(images.augment(code, generator()), padding)
    stored = torch.randint(256, (200, 3, 12, 10), dtype=torch.uint8)
    augmented = images.augment(stored, generator())
    assert augmented.dtype == torch.uint8
    for image, result, (top, left, flipped) in zip(stored, augmented, drawn.tolist(), strict=True):
        expected = V.crop(V.pad(image, padding), top, left, 12, 10)
        assert result.equal(V.hflip(expected) if flipped else expected)
    assert len(drawn.unique(dim=0)) > 1  # each image has its own


def test_windows_and_sides_are_uniform_and_independent():
    """Each of the 81 · 2 choices: within 5 standard errors over 40,000 images."""
    images, n = Images(*CIFAR, padding=4, flip=True), 40_000
    top, left, flipped = windows(images.augment(coordinates(n, 10, 10), generator()), 4).unbind(1)
    counts = torch.bincount((top * 9 + left) * 2 + flipped, minlength=162)
    p = 1 / 162
    assert len(counts) == 162
    assert ((counts / n - p).abs() < 5 * (p * (1 - p) / n) ** 0.5).all()


def test_augmentation_draws_from_its_generator_alone():
    images = Images(*CIFAR, padding=4, flip=True)
    stored = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8)
    before = torch.get_rng_state()
    one, other = generator(), generator(1)
    first = images.augment(stored, one)
    assert first.equal(images.augment(stored, generator()))
    assert not first.equal(images.augment(stored, other))
    assert not first.equal(images.augment(stored, one))  # it has moved on
    assert torch.get_rng_state().equal(before)
    untouched = generator()
    assert Images(*CIFAR).augment(stored, untouched) is stored
    assert untouched.get_state().equal(generator().get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_cpus_windows():
    images = Images(*CIFAR, padding=4, flip=True)
    stored = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8)
    there = images.to(torch.device("cuda"))
    augmented = there.augment(stored.cuda(), generator())
    assert augmented.is_cuda and augmented.cpu().equal(images.augment(stored, generator()))
    torch.testing.assert_close(there.prepare(augmented).cpu(), images.prepare(augmented.cpu()))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_training_and_validation_are_augmented_and_evaluation_is_not(name, data_dir):
    data = TASKS[name](batch_size=8).load(data_dir, generator())
    plain = TASKS[name](batch_size=8, padding=0, flip=False).load(data_dir, generator())
    assert data.input_shape == (3, 32, 32) and data.splits["train"][0].dtype == torch.uint8
    for split in ("train", "valid"):
        (x, y), (bare, same) = (d.draw(split, 8, generator()) for d in (data, plain))
        assert y.equal(same) and not x.equal(bare)
        assert x.shape == (8, 3, 32, 32) and x.dtype == torch.float32
    for split, (stored, labels) in data.splits.items():
        batches = list(data.in_order(split, chunk=7))
        assert torch.cat([x for x, _ in batches]).equal(data.images.prepare(stored))
        assert torch.cat([y for _, y in batches]).equal(labels)


@pytest.mark.parametrize(("name", "train", "test"), [("cifar10", 200, 40), ("cifar100", 200, 200),
                                                     ("svhn", 100, 100)])  # fmt: skip
def test_the_official_files_are_read(name, train, test, data_dir):
    """Pixels and labels in order, as the loader gives them one at a time; a tenth is held out."""
    from torchvision import datasets

    one_by_one = {
        "cifar10": lambda: datasets.CIFAR10(data_dir, train=False),
        "cifar100": lambda: datasets.CIFAR100(data_dir, train=False),
        "svhn": lambda: datasets.SVHN(data_dir, split="test"),
    }[name]()
    data = TASKS[name]().load(data_dir, generator())
    sizes = {split: len(labels) for split, (_, labels) in data.splits.items()}
    assert sizes == {"train": train - train // 10, "valid": train // 10, "test": test}
    stored, labels = data.splits["test"]
    for i in (0, 1, test - 1):
        image, label = one_by_one[i]
        assert V.pil_to_tensor(image).equal(stored[i]) and labels[i] == label
    assert sorted(labels.unique().tolist()) == list(range(data.outputs))
