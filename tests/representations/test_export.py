"""Learned losses outside of their runs, and the numbers that representations give."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaloss
from metaloss import LearnedLoss, links, load_loss
from metaloss.config.registry import UnknownComponentError
from metaloss.errors import ConfigError, InputError, RunFolderError
from metaloss.representations.saved import folder as loss_folder
from metaloss.representations.saved.trajectory import Trajectory, flat
from tests.helpers import FORMAT_1

STEPS = [0, 1, 4, 20]


def made(name="nn", link=links.probabilities, recorded=STEPS, **arguments) -> LearnedLoss:
    """A loss whose φ was s times that at the end, at the step s · 20."""
    loss = metaloss.REPRESENTATIONS[name](**arguments)
    phi = flat(loss)
    trajectory = None
    if recorded:
        trajectory = Trajectory(
            torch.tensor(recorded), torch.stack([phi * (step / recorded[-1]) for step in recorded])
        )
    return LearnedLoss(loss, link, trajectory=trajectory, step=20)


# --- called as torch's losses are ---


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_are_torchs(reduction):
    logits, labels = torch.randn(5, 4), torch.randint(4, (5,))
    loss = LearnedLoss(
        metaloss.REPRESENTATIONS["cross_entropy"](), links.probabilities, reduction=reduction
    )
    torch.testing.assert_close(
        loss(logits, labels), F.cross_entropy(logits, labels, reduction=reduction)
    )
    values = torch.randn(5, 1)
    squared = LearnedLoss(
        metaloss.REPRESENTATIONS["squared_error"](), links.values, reduction=reduction
    )
    expected = F.mse_loss(logits[:, :1], values, reduction=reduction)
    torch.testing.assert_close(
        squared(logits[:, :1], values), expected.squeeze(-1) if reduction == "none" else expected
    )


def test_an_unknown_reduction_names_the_known():
    message = "reduction = 'avg': give one of 'mean', 'sum', 'none'"
    with pytest.raises(ConfigError, match=message):
        load_loss(FORMAT_1, reduction="avg")


@pytest.mark.parametrize("name", ["nn", "taylor", "cross_entropy", "scale_shape", "terms"])
def test_in_half_precision_it_computes_in_float32(name):
    loss = LearnedLoss(metaloss.REPRESENTATIONS[name](), links.probabilities)
    logits, labels = torch.randn(5, 4).bfloat16().requires_grad_(), torch.randint(4, (5,))
    expected = loss(logits.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        within = loss(logits, labels)
        within.backward()
    assert within.dtype == torch.float32 and within.equal(expected)
    assert loss(logits, labels).equal(expected)
    assert logits.grad.dtype == torch.bfloat16 and logits.grad.isfinite().all()


def test_it_works_where_its_model_is():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    device = "cuda"
    loss = load_loss(FORMAT_1).to(device)
    outputs = torch.randn(4, 3, device=device)
    labels = torch.zeros(4, dtype=torch.int64, device=device)
    schedule = load_loss(FORMAT_1).schedule().to(device)
    schedule.step()
    for one in (loss, loss.at(4), schedule):
        value = one(outputs, labels)
        assert (value.device.type, value.shape) == (device, ())


def test_copies_and_pickles_are_the_same_loss():
    loss = load_loss(FORMAT_1, reduction="none")
    outputs, labels = torch.randn(4, 3), torch.randint(3, (4,))
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(outputs, labels).equal(loss(outputs, labels))
        assert other.at(4)(outputs, labels).equal(loss.at(4)(outputs, labels))
        assert repr(other) == repr(loss)
    formula = LearnedLoss(metaloss.REPRESENTATIONS["terms"](), links.probabilities)
    assert pickle.loads(pickle.dumps(formula))(outputs, labels).equal(formula(outputs, labels))


@pytest.mark.full  # torch compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it
def test_a_compiled_loss_is_the_same_loss():
    loss = load_loss(FORMAT_1)
    compiled = torch.compile(loss, backend="eager")
    outputs, labels = torch.randn(4, 3, requires_grad=True), torch.randint(3, (4,))
    (expected,) = torch.autograd.grad(loss(outputs, labels), outputs)
    (found,) = torch.autograd.grad(compiled(outputs, labels), outputs)
    assert found.equal(expected)


def test_it_says_what_it_is():
    assert repr(load_loss(FORMAT_1)).splitlines()[1] == (
        "  nn, digits + mlp, adalfl, seed 0, step 20; 24 parameters, link=probabilities, "
        "reduction=mean"
    )
    assert repr(load_loss(FORMAT_1).schedule(100)).splitlines()[1] == "  step 0 of 100"


def test_nobodys_optimizer_takes_a_loaded_loss_along():
    loss = load_loss(FORMAT_1)
    outputs = torch.randn(4, 3, requires_grad=True)
    loss(outputs, torch.randint(3, (4,))).backward()
    assert not any(p.requires_grad for p in loss.parameters())
    assert all(p.grad is None for p in loss.parameters())
    assert all(p.requires_grad for p in loss.requires_grad_().parameters())


def test_loading_draws_nothing_random():
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    load_loss(FORMAT_1)
    assert torch.randn(2).equal(expected)


# --- at a step, and replayed ---


@pytest.mark.parametrize(("step", "recorded"), [(0, 0), (1, 1), (3, 1), (4, 4), (19, 4), (20, 20)])
def test_a_step_is_the_latest_recorded_up_to_it(step, recorded):
    loss = made(hidden=(8,))
    past = loss.at(step)
    assert past.step == recorded
    torch.testing.assert_close(flat(past.representation), flat(loss.representation) * recorded / 20)
    assert flat(loss.representation).equal(flat(loss.at(20).representation))


def test_a_step_that_was_not_recorded_names_the_range():
    message = "step {} is not in what was recorded: steps 1 to 20, 3 of them"
    for step in (-1, 0, 21):
        with pytest.raises(InputError, match=message.format(step)):
            made(recorded=[1, 4, 20]).at(step)
    with pytest.raises(InputError, match="step 4: nothing was recorded of how the loss changed"):
        made(recorded=None).at(4)
    with pytest.raises(InputError, match="a schedule: nothing was recorded"):
        made(recorded=None).schedule()


def test_a_schedule_is_the_loss_of_each_step():
    loss = made(hidden=(8,))
    schedule = loss.schedule()
    outputs, labels = torch.randn(4, 3), torch.randint(3, (4,))
    for step in range(25):
        assert schedule.steps_made == step
        expected = loss.at(min(step, 20))
        assert schedule(outputs, labels).equal(expected(outputs, labels))
        assert schedule.loss.step == expected.step
        schedule.step()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (5, [0, 4, 4, 4, 4, 20, 20]),
        (10, [0, 1, 4, 4, 4, 4, 4, 4, 4, 4, 20]),
        (60, [0, 0, 0, 1] + [1] * 8 + [4] * 48 + [20]),
        (1, [0, 20, 20]),
    ],
)
def test_a_schedule_stretches_to_another_number_of_steps(steps, expected):
    schedule, seen = made().schedule(steps), []
    for _ in expected:
        seen.append(schedule.loss.step)
        schedule.step()
    assert seen == expected


def test_a_schedule_goes_on_where_it_was_saved():
    first, second = made(hidden=(8,)).schedule(50), None
    for _ in range(30):
        first.step()
    torch.manual_seed(0)
    second = made(hidden=(8,)).schedule(50)
    second.load_state_dict(first.state_dict())
    assert all(torch.is_tensor(value) for value in first.state_dict().values())
    for _ in range(25):
        assert (second.steps_made, second.loss.step) == (first.steps_made, first.loss.step)
        assert flat(second).equal(flat(first))
        first.step(), second.step()


def test_a_schedule_needs_a_number_of_steps():
    with pytest.raises(ConfigError, match="steps = 0: give an integer of at least 1"):
        made().schedule(0)


# --- saved and loaded ---


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nn", {"hidden": (6, 5), "activation": "relu", "output": "softplus"}),
        ("taylor", {"order": 2}),
        ("scale_shape", {"of": "taylor", "limit": 2.0}),
        ("terms", {"terms": ("y*log(f)", "f^2"), "coefficients": (-1.0, 0.5)}),
        ("cross_entropy", {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_loss_loads_back(tmp_path, name, arguments, dtype):
    loss = made(name, **arguments).to(dtype)
    loss.trajectory = Trajectory(loss.trajectory.steps, loss.trajectory.phi.to(dtype))
    loss.save_pretrained(tmp_path / "loss", seed=3)
    for place in (tmp_path, tmp_path / "loss", str(tmp_path)):  # the run's folder, or its own
        loaded = load_loss(place)
        outputs, labels = torch.randn(4, 3, dtype=dtype), torch.randint(3, (4,))
        assert loaded(outputs, labels).equal(loss(outputs, labels))
        assert loaded(outputs, labels).dtype == dtype
        again, there = loaded.representation.arguments(), loss.representation.arguments()
        assert json.dumps(again) == json.dumps(there)
        assert loaded.trajectory.steps.equal(loss.trajectory.steps)
        assert loaded.trajectory.phi.equal(loss.trajectory.phi)
        assert (loaded.step, loaded.provenance) == (20, {"seed": 3})
        assert loaded.link is links.probabilities
    config = json.loads((tmp_path / "loss" / "config.json").read_text())
    assert config["format"] == 2 and config["versions"]["torch"]
    assert config["origin"]["module"] == f"metaloss.representations.{name}"
    loaded.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors", "trajectory.safetensors", "README.md"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "loss" / file).read_bytes()


def test_format_1_is_read():
    """As the version before wrote it: the loss of logits (2, 0, -1) was printed then."""
    loss = load_loss(FORMAT_1)
    value = loss(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]))
    assert value.item() == pytest.approx(1.0933873653411865, rel=1e-6)
    assert (loss.step, loss.at(7).step, loss.provenance["classes"]) == (20, 4, 10)


def test_a_loss_saved_over_another_leaves_nothing_of_it(tmp_path):
    made().save_pretrained(tmp_path)
    made("taylor", recorded=None).save_pretrained(tmp_path)
    assert load_loss(tmp_path).trajectory is None


def test_the_card_says_what_it_is(tmp_path):
    made().save_pretrained(tmp_path, task="mnist", backbone="lenet5", method="adalfl", seed=7)
    card = (tmp_path / "README.md").read_text()
    assert (
        "`nn` with 1,720 parameters φ, learned on mnist + lenet5, adalfl, seed 7, as it was at "
        "step 20." in card
    )
    assert "φ is recorded at 4 steps, from 0 to 20" in card
    assert "Classification: softmax probabilities and one-hot targets" in card
    assert "| `hidden` | (40, 40) |" in card and "| seed | 7 |" in card


def test_a_loss_of_ones_own_loop(tmp_path):
    model = nn.Linear(4, 3)
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(8,))
    learner = metaloss.AdaLFL(
        model, torch.optim.SGD(model.parameters(), lr=0.1), loss, meta_lr=0.01
    )
    learned = learner.learned_loss()
    batches = [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(6)]
    learned.record(0)
    phi = {0: flat(loss)}
    for step, batch in enumerate(batches, start=1):
        learner.step(batch)
        if step % 3 == 0:
            learned.record(step)
            phi[step] = flat(loss)
    learned.save_pretrained(tmp_path / "mine", task="my task", classes=3)
    loaded = load_loss(tmp_path / "mine")
    assert loaded.trajectory.steps.tolist() == [0, 3, 6]
    assert all(flat(loaded.at(step).representation).equal(phi[step]) for step in phi)
    assert not phi[0].equal(phi[6])
    assert loaded.link is links.probabilities  # that of the task loss, torch's cross-entropy
    assert loaded.provenance == {"task": "my task", "classes": 3}
    assert loaded(*batches[0][:1], batches[0][1]).shape == ()
    baseline = metaloss.AdaLFL(
        model, torch.optim.SGD(model.parameters(), lr=0.1), None, meta_lr=None
    )
    with pytest.raises(InputError, match="there is no learned loss: the learner descends the task"):
        baseline.learned_loss()


def test_a_run_says_where_its_loss_is_from(train, tmp_path):
    code, stderr = train(
        "--gin_file=tasks/digits_mlp.gin", "--gin_file=transfer/adapt.gin",
        f"--gin_param=LOSS = {str(FORMAT_1)!r}", "--gin_param=Runner.steps = 3",
        "--gin_param=backbones.mlp.hidden = (4,)", "--seed=5", f"--output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, stderr
    loss = load_loss(tmp_path / "run")
    known = {"task": "digits", "backbone": "mlp", "method": "adapt", "seed": 5, "classes": 10}
    assert known.items() <= loss.provenance.items()
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert loss.provenance["git_commit"] == meta["git_commit"]
    assert len(loss.provenance["config_sha256"]) == 64
    # The loss that it started from is not needed any more, nor its path.
    assert json.loads((tmp_path / "run/loss/config.json").read_text())["representation"] == "nn"
    assert not flat(loss.representation).equal(flat(load_loss(FORMAT_1).representation))
    assert flat(loss.at(0).representation).equal(flat(load_loss(FORMAT_1).representation))


CALLED = {
    "python": lambda loss, outputs, labels: loss(outputs, labels),
    "torch_export": lambda loss, outputs, labels: torch.export.export(
        loss, (outputs, labels.clamp_min(0))
    ).module()(outputs, labels),
    "traced": lambda loss, outputs, labels: torch.jit.trace(
        loss, (outputs, labels.clamp_min(0)), check_trace=False
    )(outputs, labels),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", CALLED)
@pytest.mark.parametrize("link", [links.by_labels, links.probabilities, links.Dense()])
def test_the_label_that_does_not_count_is_that_of_torch(tmp_path, link, form, reduction):
    """Saved and loaded, and in each form it is given away in; by labels it has not seen."""
    LearnedLoss(metaloss.REPRESENTATIONS["cross_entropy"](), link).save_pretrained(tmp_path)
    outputs, labels = torch.randn(6, 4), torch.tensor([0, -100, 3, 1, -100, 2])
    found = CALLED[form](load_loss(tmp_path, reduction=reduction), outputs, labels)
    expected = F.cross_entropy(outputs, labels, reduction=reduction)
    if reduction == "none" and isinstance(link, links.Dense):  # its rows are those that count
        expected = expected[labels != -100]
    torch.testing.assert_close(found, expected)


@pytest.mark.full  # torch.onnx translates for seconds
@pytest.mark.filterwarnings("ignore")
def test_the_label_that_does_not_count_in_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    loss = LearnedLoss(metaloss.REPRESENTATIONS["nn"](), links.probabilities)
    outputs, labels = torch.randn(6, 4), torch.tensor([0, -100, 3, 1, -100, 2])
    path = tmp_path / "loss.onnx"
    torch.onnx.export(loss, (outputs, labels.clamp_min(0)), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (outputs.numpy(), labels.numpy()), strict=True)))
    kept = labels != -100
    torch.testing.assert_close(torch.as_tensor(found), loss(outputs[kept], labels[kept]).detach())


@pytest.mark.parametrize(
    ("task_loss", "link"),
    [
        (F.cross_entropy, links.probabilities),
        (nn.CrossEntropyLoss(ignore_index=255), links.Dense(ignore_index=255)),
        (functools.partial(F.cross_entropy, ignore_index=9), links.Dense(ignore_index=9)),
        (F.binary_cross_entropy_with_logits, links.multi_label),
        (nn.MSELoss(), links.values),
        (lambda outputs, labels: outputs.sum(), links.by_labels),
    ],
)
def test_a_loss_that_is_asked_for_before_the_first_batch_knows_its_labels(task_loss, link):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["nn"](), task_loss)
    assert learner.learned_loss().link == link


@pytest.mark.full  # a process that imports torch
def test_a_loss_is_loaded_in_a_process_that_knows_nothing_of_its_run(tmp_path):
    shutil.copytree(FORMAT_1, tmp_path / "elsewhere")
    code = (  # of two rows, of which one does not count
        "import torch, metaloss; loss = metaloss.load_loss('elsewhere');"
        "print(loss(torch.tensor([[2.0, 0.0, -1.0]] * 2), torch.tensor([0, -100])).item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert float(done.stdout) == pytest.approx(1.0933873653411865, rel=1e-6), done.stderr


# --- what cannot be saved or loaded ---


def test_a_loss_that_cannot_be_saved_says_why(tmp_path):
    def mine(outputs, labels):
        return outputs, labels

    message = "the link 'mine' has no name to be saved by · known: probabilities, values, "
    with pytest.raises(InputError, match=message):
        LearnedLoss(metaloss.REPRESENTATIONS["taylor"](), mine).save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match="arguments and provenance: Object of type Tensor is not"):
        made().save_pretrained(tmp_path / "b", weights=torch.ones(2))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file cannot be written to"):
        made().save_pretrained(tmp_path / "file")


def test_where_there_is_no_loss(tmp_path):
    message = f"there is no learned loss in {tmp_path}: no config.json, nor loss/config.json"
    with pytest.raises(RunFolderError) as caught:
        load_loss(tmp_path)
    assert str(caught.value) == message
    (tmp_path / "config.gin").write_text("")
    with pytest.raises(RunFolderError) as caught:
        load_loss(tmp_path)
    assert (
        str(caught.value)
        == f"{message} · it is a run that learned none, or has not exported it yet"
    )


@pytest.fixture
def saved(tmp_path):
    """A saved loss, and what a changed config.json of it gives."""
    made("taylor", links.values).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())

    def refusal(**changes):
        path.write_text(json.dumps({**config, **changes}))
        with pytest.raises(InputError) as caught:
            load_loss(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(str(tmp_path), "DIR")

    return refusal


def test_configs_that_are_newer_damaged_or_foreign(saved):
    newer = saved(format=3)
    assert newer.startswith("DIR/config.json has format 3, of a newer metaloss; this one, version ")
    assert newer.endswith(", reads formats up to 2")
    foreign = "DIR/config.json is not that of a learned loss: it has no format of one"
    for format in (None, "2", 0, True):
        assert saved(format=format) == foreign
    assert saved(arguments=[1]) == "DIR/config.json is damaged: arguments = [1]"
    assert saved(step="x") == "DIR/config.json is damaged: step = 'x'"
    assert saved(link="value") == (
        "DIR/config.json: no link is called 'value'; did you mean 'values'? · known: "
        "probabilities, values, multi_label, by_labels, dense, weighted"
    )
    refused = "DIR/config.json: representations.taylor refuses its arguments: "
    assert saved(arguments={"order": 1}).startswith(f"{refused}representations.taylor.order = 1: ")
    assert saved(arguments={"size": 1}).startswith(refused)
    assert saved(representation="pretrained", arguments={"path": "DIR"}) == (
        "DIR/config.json: 'pretrained' is no class of losses, but a recipe for them"
    )
    assert saved(arguments={"order": 2}).startswith("DIR/model.safetensors does not fit: Error")


def test_an_unknown_representation_names_its_plugin(saved):
    def missing(**origin):
        message = saved(representation="tailor", origin=origin)
        head = "DIR/config.json: no 'tailor' in representations; did you mean 'taylor'? · known: "
        assert message.startswith(head)
        return message.rpartition(" · ")[2]

    assert missing(module="my_pkg.losses", distribution="my-pkg", version="1.2") == (
        "it was saved from my_pkg.losses of my-pkg 1.2: load it by --plugin=my_pkg.losses, or by "
        "metaloss.load_plugins(['my_pkg.losses'])"
    )
    assert missing(module="mine.py", distribution=None, version=None) == (
        "it was saved from the plugin mine.py: load it by --plugin=mine.py, or by "
        "metaloss.load_plugins(['mine.py'])"
    )
    assert missing(
        module="metaloss.representations.tailor", distribution="metaloss", version="9"
    ) == ("it was saved by metaloss 9, which has it")
    assert missing().startswith("known: ")
    with pytest.raises(UnknownComponentError):
        raise UnknownComponentError("as it is")


def test_the_origin_of_a_plugin_is_found(tmp_path, monkeypatch):
    """Of a file, and of an installed package with an entry point, as pip lays it down."""
    from metaloss.config import origins, plugins

    code = """
import metaloss
@metaloss.REPRESENTATIONS.register({name!r})
class Own(metaloss.REPRESENTATIONS["squared_error"]):
    'One of our own.'
"""
    (tmp_path / "own_file.py").write_text(code.format(name="own_file"))
    plugins.load_file(tmp_path / "own_file.py")
    site = tmp_path / "site"
    (site / "own_pkg").mkdir(parents=True)
    (site / "own_pkg" / "__init__.py").write_text("")
    (site / "own_pkg" / "losses.py").write_text(code.format(name="own_pkg"))
    info = site / "own_distribution-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-distribution\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[metaloss.plugins]\nown = own_pkg.losses\n")
    monkeypatch.syspath_prepend(str(site))
    origins.origin_of.cache_clear()
    plugins.load_all([], folder=None)
    found = {}
    for name in ("own_file", "own_pkg"):
        made(name, links.values, recorded=None).save_pretrained(tmp_path / name)
        found[name] = json.loads((tmp_path / name / "config.json").read_text())["origin"]
        assert load_loss(tmp_path / name).summary == f"{name}, step 20"
    assert found == {
        "own_file": {"module": "own_file.py", "distribution": None, "version": None},
        "own_pkg": {
            "module": "own_pkg.losses",
            "distribution": "own-distribution",
            "version": "1.2",
        },
    }


@pytest.mark.parametrize("name", ["model.safetensors", "trajectory.safetensors"])
def test_tensors_that_are_damaged_or_foreign(tmp_path, name):
    from safetensors.torch import save_file

    loss = made("taylor", links.values)
    loss.save_pretrained(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-7], "cannot be read"),
        (b"", "cannot be read"),
        (b"not tensors at all", "cannot be read"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "is damaged: its checksum does not match"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(RunFolderError, match=f"{name} {message}") as caught:
            load_loss(tmp_path)
        assert "\n" not in str(caught.value)
    save_file({"other": torch.ones(2)}, path)
    with pytest.raises(RunFolderError, match=f"{name} (does not fit|holds no trajectory)"):
        load_loss(tmp_path)
    path.unlink()
    if name == "model.safetensors":
        with pytest.raises(RunFolderError, match="model.safetensors cannot be read"):
            load_loss(tmp_path)
    else:
        assert load_loss(tmp_path).trajectory is None


def test_a_trajectory_of_another_loss_is_found(tmp_path):
    made("taylor").save_pretrained(tmp_path / "a")
    made("taylor", order=2).save_pretrained(tmp_path / "b")
    shutil.copy(tmp_path / "b/trajectory.safetensors", tmp_path / "a")
    message = "trajectory.safetensors does not fit: its φ has 5 numbers, the loss 8"
    with pytest.raises(RunFolderError, match=message):
        load_loss(tmp_path / "a")
    empty = Trajectory(torch.tensor([4, 4]), torch.zeros(2, 8))
    loss = made("taylor")
    loss.trajectory = empty
    loss.save_pretrained(tmp_path / "c")
    with pytest.raises(RunFolderError, match="holds no trajectory: steps"):
        load_loss(tmp_path / "c")


# --- the numbers of representations ---


@pytest.mark.parametrize("name", ["model.safetensors", "trajectory.safetensors"])
def test_a_damaged_export_is_refused_or_harmless(tmp_path, name):
    """A bit of every byte: the format has no checksum of its own."""
    loss = metaloss.REPRESENTATIONS["taylor"]()
    trajectory = Trajectory(torch.tensor([0, 3]), torch.stack([flat(loss), flat(loss) + 1]))
    LearnedLoss(loss, links.values, trajectory=trajectory).save_pretrained(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    values = content.rindex(b"}") + 1
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            if name.startswith("model"):
                assert flat(load_loss(tmp_path).representation).equal(flat(loss))
            else:
                found = loss_folder.read_trajectory(tmp_path)
                assert found.steps.equal(trajectory.steps) and found.phi.equal(trajectory.phi)
            assert at < values  # in the header, a word that says nothing of the values
        except RunFolderError as error:
            assert "\n" not in str(error)


def test_a_flipped_bit_of_phi_is_named(tmp_path):
    LearnedLoss(metaloss.REPRESENTATIONS["taylor"](), links.values).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFolderError) as caught:
        load_loss(tmp_path)
    assert str(caught.value) == f"{path} is damaged: its checksum does not match"


def test_weights_of_another_program_need_no_checksum(tmp_path):
    from safetensors.torch import save_file

    loss = metaloss.REPRESENTATIONS["taylor"]()
    LearnedLoss(loss, links.values).save_pretrained(tmp_path)
    save_file(loss.state_dict(), tmp_path / "model.safetensors")
    assert flat(load_loss(tmp_path).representation).equal(flat(loss))


def test_the_network_is_the_papers():
    """Eqs. 3, 4 and 12 by hand for one hidden unit: ℓ = w₂·φ(w₀f + w₁y), the mean over outputs."""
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(1,))
    with torch.no_grad():
        loss.layers[0].weight.copy_(torch.tensor([[2.0, -1.0]]))
        loss.layers[1].weight.fill_(3.0)
    prediction, target = torch.tensor([[0.3, 0.7]]), torch.tensor([[1.0, 0.0]])

    def phi(x: float) -> float:
        return math.log1p(math.exp(10 * x)) / 10 * 0.99 + 0.01 * x

    expected = 3 * (phi(2 * 0.3 - 1) + phi(2 * 0.7)) / 2
    assert loss(prediction, target).item() == pytest.approx(expected, rel=1e-6)


def test_smooth_leaky_relu_far_from_zero():
    loss = metaloss.REPRESENTATIONS["nn"](hidden=(1,)).double()
    with torch.no_grad():
        loss.layers[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
        loss.layers[1].weight.fill_(1.0)
    far = torch.tensor([[-1e4], [1e4]], dtype=torch.float64, requires_grad=True)
    values = loss(far, torch.zeros(2, 1, dtype=torch.float64))
    assert values.tolist() == pytest.approx([-100.0, 1e4])
    (slope,) = torch.autograd.grad(values.sum(), far, create_graph=True)
    assert slope.flatten().tolist() == pytest.approx([0.01, 1.0])
    (curvature,) = torch.autograd.grad(slope.sum(), far)
    assert curvature.isfinite().all()


def test_taylor_by_hand():
    """With x = target - c₀ = 0.9, y = f - c₁ = 0.3: 1..6 times y, y²/2, y³/6, xy, xy²/2, x²y/2."""
    loss = metaloss.REPRESENTATIONS["taylor"](order=3).double()
    with torch.no_grad():
        loss.centre.copy_(torch.tensor([0.1, 0.2]))
        loss.coefficients.copy_(torch.arange(1.0, 7.0))
    x, y = 0.9, 0.3
    expected = y + y**2 + 3 * y**3 / 6 + 4 * x * y + 5 * x * y**2 / 2 + 6 * x**2 * y / 2
    value = loss(torch.tensor([[0.5]]).double(), torch.tensor([[1.0]]).double())
    assert value.item() == pytest.approx(expected)


def test_handcrafted_losses_are_torchs():
    logits, labels = torch.randn(5, 4), torch.randint(4, (5,))
    own = metaloss.REPRESENTATIONS["cross_entropy"]()(*links.probabilities(logits, labels))
    torch.testing.assert_close(own, F.cross_entropy(logits, labels, reduction="none"))
    values = metaloss.REPRESENTATIONS["squared_error"]()(*links.values(logits, logits + 2))
    torch.testing.assert_close(values, torch.full((5,), 4.0))
