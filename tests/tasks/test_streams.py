"""Streams: the same batches as from memory, whatever the number of workers; exact on resume."""

from __future__ import annotations

import gc
import json
import pickle
import random
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from PIL import Image

from metaloss import TASKS
from metaloss.errors import InputError
from metaloss.runs.evaluation import evaluate
from metaloss.tasks.preparation import streams
from metaloss.tasks.preparation.image_data import augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def workers():
    """How many processes read; the test's end puts the number back."""
    before = streams._workers
    yield streams.set_workers
    streams.set_workers(before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty random images of two classes, each of its own size."""
    folder = tmp_path_factory.mktemp("pictures")
    drawn = np.random.default_rng(0)
    for i in range(40):
        path = folder / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = drawn.integers(256, size=(9 + i % 3, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


AUGMENT = (("RandomResizedCrop", {"size": 8, "antialias": True}), ("RandomHorizontalFlip", {}))


def folder(path, **arguments):
    return TASKS["image_folder"](path=str(path), size=8, **arguments).load(path, generator())


#: What a user of timm's train script asks for, by the names of either library.
USUAL = {
    "crop": ("RandomResizedCrop", {"size": 8}),
    "jitter": ("ColorJitter", {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}),
    "rand_augment": ("RandAugment", {}),
    "aug_mix": ("AugMix", {}),
    "erasing": ("RandomErasing", {"p": 1.0}),
    "timm": ("timm", {}),
    "timm_rand_augment": ("timm", {"auto_augment": "rand-m9-mstd0.5-inc1", "scale": (0.5, 1.0)}),
    "timm_aug_mix": ("timm", {"auto_augment": "augmix-m5-w4-d2", "color_jitter": None}),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # timm's import
@pytest.mark.parametrize("name", USUAL)
def test_usual_transforms_follow_from_their_key_alone(name):
    """And leave torch's, numpy's and Python's generators as they were."""
    pictures = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    augment = augmentation([USUAL[name]])
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    made = [augment(picture, key) for key, picture in enumerate(pictures)]
    assert torch.get_rng_state().equal(before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    random.seed(1)
    again = [pickle.loads(pickle.dumps(augment))(p, key) for key, p in enumerate(pictures)]
    assert all(x.equal(y) for x, y in zip(made, again, strict=True))
    assert {(p.shape, p.dtype) for p in made} == {(pictures.shape[1:], torch.uint8)}
    assert not torch.stack(made).equal(pictures)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_timms_transforms_are_those_of_timm():
    from timm.data import create_transform
    from torchvision.transforms.v2 import functional

    arguments = USUAL["timm_rand_augment"][1]
    picture = torch.randint(256, (3, 12, 10), dtype=torch.uint8)
    torch.manual_seed(5)
    seed = int(torch.randint(1 << 32, ()))
    random.seed(seed)
    np.random.seed(seed)
    theirs = create_transform((3, 12, 10), is_training=True, normalize=False, **arguments)
    expected = theirs(functional.to_pil_image(picture))
    assert augmentation([("timm", arguments)])(picture, 5).equal(expected)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_a_stream_draws_what_memory_does(pictures, workers, count, augment):
    workers(count)
    streamed, kept = (
        folder(pictures, stream=stream, padding=1, flip=True, augment=augment)
        for stream in (True, False)
    )
    for split in ("train", "valid", "train"):
        one, other = generator(3), generator(3)
        for _ in range(7):
            (x, y), (same_x, same_y) = (
                d.draw(split, 5, g) for d, g in ((streamed, one), (kept, other))
            )
            assert x.equal(same_x) and y.equal(same_y)
        assert one.get_state().equal(other.get_state())
    for split in ("train", "valid", "test"):
        parts = zip(streamed.in_order(split, 4), kept.in_order(split, 4), strict=True)
        for (x, y), (same_x, same_y) in parts:
            assert x.equal(same_x) and y.equal(same_y)
        assert streamed.raw(split).equal(kept.raw(split))
    assert "as they are drawn" in "".join(streamed.notes)


def test_augmentation_is_of_its_key_alone(pictures, workers):
    """Not of the global generator, which it leaves alone, nor of the order in which it is asked."""
    workers(0)
    data = folder(pictures, stream=True, augment=AUGMENT)
    before = torch.get_rng_state()
    first, _ = data.draw("train", 6, generator(1))
    torch.manual_seed(99)
    again, _ = data.draw("train", 6, generator(1))
    other, _ = data.draw("train", 6, generator(2))
    assert first.equal(again) and not first.equal(other)
    torch.set_rng_state(before)
    data.draw("train", 6, generator(1))
    assert torch.get_rng_state().equal(before)


def test_a_generator_that_is_put_back_draws_the_same_again(pictures, workers):
    workers(2)
    data, stream = folder(pictures, stream=True, augment=AUGMENT), generator()
    data.draw("train", 4, stream)
    state = stream.get_state()
    batches = [data.draw("train", 4, stream)[0] for _ in range(3)]
    stream.set_state(state)
    for batch in batches:
        assert data.draw("train", 4, stream)[0].equal(batch)


@pytest.mark.parametrize("end", ["close", "no reference left"])
def test_processes_that_read_ahead_end_with_their_data(pictures, workers, end):
    """By no collector: one that ends them itself waits five seconds for each."""
    workers(2)
    before = set(active_children())
    gc.disable()
    try:
        data = folder(pictures, stream=True)
        data.draw("train", 4, generator())
        assert len(set(active_children()) - before) == 2
        if end == "close":
            data.close()
        else:
            del data
        assert set(active_children()) <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("images", [True, False])
def test_npy_files_stay_on_the_disk(tmp_path, workers, images):
    workers(0)
    drawn = np.random.default_rng(0)
    shape = (8, 8, 3) if images else (5,)
    for name, n in (("train", 30), ("test", 10)):
        x = drawn.integers(256, size=(n, *shape)).astype(np.uint8 if images else np.float64)
        np.save(tmp_path / f"x_{name}.npy", x if images else x + 1.7e9)
        np.save(tmp_path / f"y_{name}.npy", np.arange(n) % 3)
    streamed, kept = (
        TASKS["arrays"](path=str(tmp_path), stream=stream, flip=True).load(tmp_path, generator())
        for stream in (True, False)
    )
    for split in ("train", "valid", "test"):
        (x, y), (same_x, same_y) = (d.draw(split, 6, generator()) for d in (streamed, kept))
        assert x.equal(same_x) and y.equal(same_y)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))
    numbers = evaluate(model, streamed, "test")
    assert numbers == evaluate(model, kept, "test")
    source = streamed.splits["train"][0].source
    assert pickle.loads(pickle.dumps(source)).read(3).equal(source.read(3))


def test_what_cannot_be_streamed_says_so(pictures, tmp_path):
    np.savez(tmp_path / "x.npz", x_train=np.ones((4, 2)), y_train=np.arange(4) % 2,
             x_test=np.ones((4, 2)), y_test=np.arange(4) % 2)  # fmt: skip
    with pytest.raises(InputError, match="an .npz file of .* cannot be read by rows: save its arr"):
        TASKS["arrays"](path=str(tmp_path / "x.npz"), stream=True).load(tmp_path, generator())
    from metaloss.runs.lockstep import StackedData

    data = folder(pictures, stream=True)
    with pytest.raises(InputError, match="several seeds at once need examples that are in memory"):
        StackedData([data, data])


def test_unknown_transforms_are_named():
    for augment, message in (
        ((("RandomHorizontalFlop", {}),), "RandomHorizontalFlip"),
        ((("RandomCrop", {"sise": 3}),), "what RandomCrop takes"),
        ((("tim", {}),), "'timm', or a name in torchvision.transforms.v2"),
        ((("timm", {"auto_augment": "rand-x9"}),), "what timm takes"),
        ((("timm", {"re_prob": 0.2}),), r"give \('RandomErasing', \{'p': ...\}\) after"),
        (("RandomCrop",), "give a list, each item a list of 2"),
    ):
        with pytest.raises(InputError, match=message):
            TASKS["image_folder"](path="x", augment=augment)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_run_is_resumed_bit_for_bit_with_another_number_of_workers(train, pictures, tmp_path):
    """Killed after a checkpoint is the same as ended and gone on from: the last rows are equal."""
    bindings = [
        "Runner.task = @tasks.image_folder()", f"tasks.image_folder.path = '{pictures}'",
        "tasks.image_folder.size = 8", "tasks.image_folder.stream = True",
        "tasks.image_folder.augment = (('RandomHorizontalFlip', {}), ('timm', {}))",
        "tasks.image_folder.batch_size = 8", "Runner.steps = 12", "Runner.checkpoint_every = 5",
        "Runner.log_every = 1", "Runner.evaluate_every = 6",
        "Runner.backbone = @backbones.mlp", "backbones.mlp.hidden = (8,)",
    ]  # fmt: skip
    arguments = ["--gin_file=tasks/digits_mlp.gin", "--gin_file=methods/baseline.gin"]
    arguments += [f"--gin_param={binding}" for binding in bindings]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(*arguments, f"--output_dir={whole}", "--workers=0")[0] == 0
    from metaloss.runs.run import Run

    with pytest.MonkeyPatch.context() as patch:
        after = Run._log_step

        def stop(self, phase, step, result):
            self.stop = step == 7
            return after(self, phase, step, result)

        patch.setattr(Run, "_log_step", stop)
        assert train(*arguments, f"--output_dir={cut}", "--workers=2")[0] == 143
    assert train(*arguments, f"--output_dir={cut}", "--resume", "--workers=1")[0] == 0
    one, other = (
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (path / "metrics.jsonl").read_text().splitlines()
        ]
        for path in (whole, cut)
    )
    assert one == other
