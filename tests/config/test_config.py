"""Configurations: a text that is a fixed point, unread bindings, values held to annotations."""

from collections.abc import Callable, Sequence, Sized
from typing import Annotated, Any, Literal, Protocol

import pytest
from annotated_types import Le

from metaloss.config.arguments import (
    Decay,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Share,
    describe,
    fits,
    nearest,
)
from metaloss.config.configuration import load
from metaloss.config.gin_files import CONFIG_DIR, find
from metaloss.errors import ConfigError

DIGITS = ["tasks/digits_mlp.gin", "methods/adalfl_letter.gin"]
RUN = (
    "Runner.task = @tasks.digits()\nRunner.backbone = @backbones.mlp\n"
    "Runner.base_optimizer = @base_optimizers.sgd\nRunner.steps = 1\nbase_optimizers.sgd.lr = 0.1\n"
)


class Unchecked(Protocol):
    """A class that isinstance cannot ask about."""

    size: int


def reload(text, tmp_path):
    path = tmp_path / "config.gin"
    path.write_text(text, encoding="utf-8")
    return load([path])


@pytest.fixture
def anything(kind):
    """A loss that takes any value, to be put into a run; -> the gin text that does so."""
    from metaloss import REPRESENTATIONS

    @kind.register("anything")
    class Anything(REPRESENTATIONS["squared_error"]):
        """Squared error."""

        def __init__(self, value: Any = None, limit: float = float("inf"), nan=float("nan")):
            super().__init__()
            self.value = value
            self.limit = limit

    return f"{RUN}Runner.representation = @{kind.kind}.anything()\n{kind.kind}.anything.value = "


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e999", float("inf")),
        ("-1e999", -float("inf")),
        ("[1, (2.5,), [], (), {}]", [1, (2.5,), [], (), {}]),
        ("{'a': [None, True], 2: 1e999}", {"a": [None, True], 2: float("inf")}),
        ("'it\\'s \"quoted\"\\n 50 % # @no \\\\'", 'it\'s "quoted"\n 50 % # @no \\'),
        ("'one ' 'two'", "one two"),
        ("'φ'", "φ"),
        ("None", None),
        ("-1e-30", -1e-30),
        ("10_000", 10000),
        ("%SIZE\nSIZE = [%HALF, 4]\nHALF = 2", [2, 4]),
    ],
)
def test_the_text_loads_back_to_itself_and_to_the_same_values(anything, written, value, tmp_path):
    first = load([], [anything + written])
    second = reload(first.text, tmp_path)
    assert second.text == first.text
    assert second.unread == ()
    assert first.build().representation.value == value
    assert second.build().representation.value == value
    assert second.build().representation.limit == float("inf")


def test_a_value_is_built_anew_each_time(anything):
    parsed = load([], [anything + "[1]"])
    parsed.build().representation.value.append(2)
    assert parsed.build().representation.value == [1]


def test_the_text_of_scoped_components_loads_back_to_itself(tmp_path):
    first = load(["tasks/digits_mlp.gin", "methods/meta_lr_letter.gin"])
    assert "offline/meta_optimizers.meta_lr.meta_lr = 0.001\n" in first.text
    assert "online/meta_optimizers.meta_lr.meta_lr = 1e-05\n" in first.text
    second = reload(first.text, tmp_path)
    assert (second.text, second.unread) == (first.text, ())
    plan = second.build()
    assert (plan.initialization.meta_lr, plan.adaptation.meta_lr) == (1e-3, 1e-5)


def test_the_text_still_loads_after_a_namesake_is_registered(kind, tmp_path):
    text = load(DIGITS).text
    kind.register("nn")(lambda: None)
    kind.register("Runner")(lambda: None)
    assert reload(text, tmp_path).text == text


def test_references_nest_and_inherit_the_scope(kind, tmp_path):
    from metaloss import REPRESENTATIONS

    squared = REPRESENTATIONS["squared_error"]

    @kind.register("part")
    class Part(squared):
        """A part."""

        def __init__(self, size: int = 1):
            super().__init__()
            self.size = size

    @kind.register("sum")
    class Sum(squared):
        """A sum of parts."""

        def __init__(self, parts: Sequence[squared]):
            super().__init__()
            self.parts = list(parts)

    k = kind.kind
    parsed = load(
        [],
        [
            f"{RUN}Runner.representation = @a/{k}.sum()\n"
            f"a/{k}.sum.parts = [@{k}.part(), @b/{k}.part()]\n"
            f"a/{k}.part.size = 2\nb/{k}.part.size = 3\n"
        ],
    )
    assert [part.size for part in parsed.build().representation.parts] == [2, 3]
    again = reload(parsed.text, tmp_path)
    assert again.text == parsed.text
    assert [part.size for part in again.build().representation.parts] == [2, 3]
    assert parsed.unread == ()
    with pytest.raises(ConfigError, match=rf"^@{k}.sum\(\) refers to itself · in --gin_param"):
        load([], [f"{RUN}Runner.representation = @{k}.sum()\n{k}.sum.parts = [@{k}.sum()]"])


def test_the_block_form_and_includes_are_read(tmp_path):
    (tmp_path / "sizes.gin").write_text("backbones.mlp:\n    hidden = (3,)\n")
    (tmp_path / "main.gin").write_text("include 'tasks/digits_mlp.gin'\ninclude 'sizes.gin'\n")
    text = load([tmp_path / "main.gin"]).text
    assert "backbones.mlp.hidden = (3,)\n" in text
    assert "base_optimizers.sgd.lr = 0.01\n" in text


def test_later_files_and_bindings_win(tmp_path):
    (tmp_path / "a.gin").write_text("Runner.steps = 7\nRunner.log_every = 7\n")
    text = load([*DIGITS, tmp_path / "a.gin"], ["Runner.steps = 8"]).text
    assert "Runner.steps = 8\nRunner." in text
    assert "Runner.log_every = 7\n" in text


def test_shipped_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(["gin_configs/quickstart.gin"]).text == load([CONFIG_DIR / "quickstart.gin"]).text


def test_an_import_is_kept_in_the_text(tmp_path, monkeypatch):
    (tmp_path / "imported_by_gin.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    first = load(DIGITS, ["import imported_by_gin"])
    assert first.text.startswith("import imported_by_gin\n\nRunner.task = @tasks.digits()\n")
    assert reload(first.text, tmp_path).text == first.text


@pytest.mark.parametrize(
    ("binding", "unread"),
    [
        ("typo/representations.nn.hidden = (3,)", "typo/representations.nn.hidden"),
        ("meta_optimizers.meta_lr.meta_lr = 1.0", "meta_optimizers.meta_lr.meta_lr"),
        ("steps = 3", "macro steps (no dot, so no parameter)"),
        ("scope/Runner.steps = 3", "scope/Runner.steps"),
    ],
)
def test_what_nobody_reads_is_reported_with_its_place(binding, unread):
    assert load(DIGITS, [binding]).unread == (f"{unread} in --gin_param {binding!r}",)


def test_a_binding_that_two_scopes_hide_is_reported():
    files = ["tasks/digits_mlp.gin", "methods/meta_lr_letter.gin"]
    hidden = load(files, ["meta_optimizers.meta_lr.meta_lr = 1.0"])
    assert len(hidden.unread) == 1
    assert load(files, ["meta_optimizers.meta_lr.every = 2"]).unread == ()


def test_the_leftovers_of_another_method_are_reported_with_file_and_line():
    file = CONFIG_DIR / "methods" / "ml3_letter.gin"
    expected = tuple(
        f"{line.split(' = ')[0]} in {file}:{number}"
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if line.startswith("meta_optimizers.")
    )
    assert len(expected) > 4
    files = ["tasks/digits_mlp.gin", "methods/ml3_letter.gin", "methods/baseline.gin"]
    assert load(files).unread == expected


@pytest.mark.parametrize(
    ("value", "hint", "fit"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        ("1", float, False),
        (True, bool, True),
        (1, bool, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (True, Literal[1], False),
        ([1, 2], Sequence[int], True),
        ((1, "2"), Sequence[int], False),
        ("12", Sequence[str], False),
        ([0.9, 1], tuple[float, float], True),
        ([0.9], tuple[float, float], False),
        ((1, 2, 3), tuple[int, ...], True),
        (None, int | None, True),
        ("x", int | None, False),
        ({"a": 1}, dict[str, Any], True),
        ([], dict[str, Any], False),
        (object(), Any, True),
        (3, "not understood", True),
        (3, Sized, False),
        (3, Unchecked, True),
        (1, PositiveInt, True),
        (0, PositiveInt, False),
        (1.0, PositiveInt, False),
        (True, PositiveInt, False),
        (10**400, PositiveInt, True),
        (0, PositiveFloat, False),
        (1e-9, PositiveFloat, True),
        (float("inf"), PositiveFloat, False),
        (float("nan"), FiniteFloat, False),
        (float("inf"), float, True),
        (-3, FiniteFloat, True),
        (0, Share, False),
        (1, Share, False),
        (1, Probability, True),
        (1, Decay, False),
        (None, PositiveInt | None, True),
        (0, PositiveInt | None, False),
        ((1, 2), Sequence[PositiveInt], True),
        ((1, 0), Sequence[PositiveInt], False),
        (3, Annotated[int, "a remark"], True),
        (print, Callable[..., Any], True),
        ("print", Callable[..., Any], False),
    ],
)
def test_values_are_held_against_annotations(value, hint, fit):
    assert fits(value, hint) is fit


def test_annotations_are_described_in_the_words_of_gin():
    assert describe(int | None) == "an integer or None"
    assert describe(Sequence[int]) == "a list, each item an integer"
    assert describe(tuple[float, float]) == "a list of 2: a number, a number"
    assert describe(PositiveInt | None) == "an integer of at least 1 or None"
    assert describe(Sequence[Share]) == "a list, each item a number above 0 and below 1"
    assert describe(Annotated[float, Le(2.5)]) == "a number at most 2.5"
    assert describe(Annotated[int, "a remark"]) == "an integer"
    assert describe(Callable[..., int]) == "a function that gives an integer"
    choice = Literal["valid", "train"] | None
    assert describe(choice) == "one of 'valid', 'train' or None"
    assert nearest(choice, "vald") == "; did you mean 'valid'?"
    assert nearest(choice, 3) == nearest(int, "vald") == ""


def test_loading_leaves_gin_as_it_was():
    import gin

    load(DIGITS)
    assert gin.config_str() == ""
    assert not gin.config_is_locked()
    assert find("quickstart.gin") == CONFIG_DIR / "quickstart.gin"
