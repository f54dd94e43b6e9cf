"""Registries: one name for Python and gin, and errors that name both sides."""

import pickle
import re

import gin
import pytest
import torch

from metaloss import BACKBONES, DESCENTS, REPRESENTATIONS
from metaloss.config.arguments import PositiveInt, annotations_of, parameters_of
from metaloss.config.catalogue import catalogue
from metaloss.config.configuration import load
from metaloss.config.registry import FAILED_PLUGINS, REGISTRIES, Registry, UnknownComponentError
from metaloss.errors import ArgumentError, ConfigError, InputError


def test_a_component_is_the_plain_class_and_known_to_gin_by_the_same_words(kind):
    class Thing:
        def __init__(self, size=1):
            self.size = size

    assert kind.register("thing")(Thing) is Thing
    assert kind["thing"] is Thing
    assert (list(kind), len(kind), "thing" in kind) == (["thing"], 1, True)
    gin.bind_parameter(f"{kind.kind}.thing.size", 3)
    assert gin.get_configurable(f"{kind.kind}.thing")().size == 3
    assert Thing().size == 1  # a direct call is never configured


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownComponentError) as caught:
        DESCENTS["sdg"]  # of a kind that no plugin in plugins/ adds to
    assert str(caught.value) == (
        "no 'sdg' in descents; did you mean 'sgd'? · known: adam, natural, rmsprop, sgd"
    )
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ConfigError)


def test_unknown_name_tells_which_plugins_failed(kind, monkeypatch):
    monkeypatch.setitem(FAILED_PLUGINS, "broken.py", "ImportError: no luck")
    with pytest.raises(UnknownComponentError) as caught:
        kind["thing"]
    assert str(caught.value) == (
        f"no 'thing' in {kind.kind} · known: none · plugin 'broken.py' did not load: "
        "ImportError: no luck"
    )


def test_a_taken_name_names_both_parties(kind):
    @kind.register("thing")
    def first():
        """The first."""

    def second():
        """The second."""

    message = rf"^{kind.kind}\.thing is taken by .*\.first; .*\.second needs another name$"
    with pytest.raises(ConfigError, match=message):
        kind.register("thing")(second)
    assert kind["thing"] is first


def test_a_reloaded_component_replaces_its_old_self_in_python_and_in_gin(kind):
    def define(size):
        class Thing:
            def __init__(self):
                self.size = size

        return kind.register("thing")(Thing)

    define(1)
    new = define(2)
    assert kind["thing"] is new
    assert gin.get_configurable(f"{kind.kind}.thing")().size == 2


def test_a_subclass_goes_by_its_own_name(kind):
    """An export would else be of the class it is derived from."""

    @kind.register("parent")
    class Parent:
        pass

    @kind.register("child")
    class Child(Parent):
        pass

    class Unregistered(Parent):
        pass

    names = [kind.name_of(one) for one in (Parent, Child, Parent(), Child(), Unregistered())]
    assert names == ["parent", "child", "parent", "child", "parent"]


def test_a_function_that_returns_one_of_the_kind_is_a_component(kind):
    class Base:
        pass

    def good() -> Base:
        return Base()

    def bad() -> int:
        return 1

    # Annotations are looked up in the module, where local classes are not.
    good.__annotations__ = {"return": Base}
    strict = Registry(f"{kind.kind}_strict", Base)
    try:
        assert strict.register("good")(good) is strict["good"]
        for function in (bad, lambda: Base()):
            with pytest.raises(TypeError, match="must be a subclass of .*Base; got <function"):
                strict.register("bad")(function)
    finally:
        del REGISTRIES[strict.kind]


def test_a_component_of_the_wrong_class_is_refused():
    message = "representations.wrong must be a subclass of .*Representation; got <class 'int'>"
    with pytest.raises(TypeError, match=message):
        REPRESENTATIONS.register("wrong")(int)
    assert "wrong" not in REPRESENTATIONS


def test_a_recipe_must_take_what_the_run_gives():
    def backbone(input_shape):
        """Forgets the outputs."""

    message = "backbones.wrong must take the parameters input_shape, outputs; .* lacks outputs"
    with pytest.raises(TypeError, match=message):
        BACKBONES.register("wrong")(backbone)
    assert "wrong" not in BACKBONES


def test_name_of_knows_classes_instances_and_configured_recipes():
    plan = load(["quickstart.gin"]).build()
    assert BACKBONES.name_of(plan.backbone) == "mlp"
    assert REPRESENTATIONS.name_of(plan.representation) == "nn"
    assert REPRESENTATIONS.name_of(REPRESENTATIONS["taylor"]) == "taylor"
    assert REPRESENTATIONS.name_of(len) == "len"


def test_every_component_has_its_file_and_a_description():
    for kind in ("representations", "meta_optimizers", "backbones", "tasks", "base_optimizers"):
        for name, component in REGISTRIES[kind].items():
            if component.__module__.startswith("metaloss."):
                assert component.__module__ == f"metaloss.{kind}.{name}"
            assert re.match(r"\S", component.__doc__ or "")


def test_the_catalogue_shows_parameters_with_defaults():
    assert catalogue(["base_optimizers.sg*"]) == (
        "@base_optimizers.sgd\n"
        "    SGD with momentum, Nesterov momentum and weight decay (torch.optim.SGD).\n"
        "    base_optimizers.sgd.lr (required)\n"
        "    base_optimizers.sgd.momentum = 0.0\n"
        "    base_optimizers.sgd.dampening = 0.0\n"
        "    base_optimizers.sgd.weight_decay = 0.0\n"
        "    base_optimizers.sgd.nesterov = False\n"
        "    base_optimizers.sgd.maximize = False\n"
    )


def test_the_catalogue_lists_a_kind_and_everything_by_default():
    lines = catalogue(["tasks"]).splitlines()
    names = [line for line in lines if line.startswith("@")]
    assert names == [f"@tasks.{name}()" for name in REGISTRIES["tasks"]]
    assert all(f"@{kind}." in catalogue([]) for kind in REGISTRIES if REGISTRIES[kind])


def test_the_catalogue_suggests_the_nearest_pattern():
    with pytest.raises(InputError, match="^no component matches 'taks'; did you mean 'tasks'?"):
        catalogue(["taks"])


def test_a_registry_is_listed_by_its_kind(kind):
    assert REGISTRIES[kind.kind] is kind
    assert isinstance(kind, Registry)


def test_the_annotations_of_every_component_can_be_read():
    """One that cannot, such as a name imported for type checkers alone, would check nothing."""
    for kind, registry in REGISTRIES.items():
        for name, component in registry.items():
            named = parameters_of(component)
            annotated = set(annotations_of(component)) & set(named)
            assert annotated == set(named), f"{kind}.{name}"


def test_a_call_in_python_is_held_against_the_annotations(kind):
    @kind.register("thing")
    class Thing:
        def __init__(self, size: PositiveInt = 1, *rest: int, other: "Later | None" = None) -> None:
            self.size = size

    class Later:
        """An annotation may name what is defined later; one that cannot be read asks nothing."""

    assert Thing(2, 3).size == 2
    with pytest.raises(TypeError, match=r"Thing.__init__\(\) got an unexpected keyword argument"):
        Thing(sizes=3)


def test_the_name_in_an_error_is_that_of_what_was_called(kind):
    """A subclass and a recipe pass arguments on; who reads the error knows the outermost."""

    @kind.register("parent")
    class Parent:
        def __init__(self, size: PositiveInt, limit: PositiveInt = 9) -> None:
            if size > limit:
                raise ArgumentError("size", size, f"at most {limit}")

    @kind.register("child")
    class Child(Parent):
        """Inherits the constructor."""

    @kind.register("recipe")
    def recipe(size: int) -> Parent:
        return Parent(size, limit=3)

    @kind.register("other")
    def other(large: int) -> Parent:
        return Parent(large)

    for call, message in (
        (lambda: Parent(10), f"{kind.kind}.parent.size = 10: give at most 9"),
        (lambda: Child(10), f"{kind.kind}.child.size = 10: give at most 9"),
        (lambda: Child("x"), f"{kind.kind}.child.size = 'x': give an integer of at least 1"),
        (lambda: recipe(4), f"{kind.kind}.recipe.size = 4: give at most 3"),
        (lambda: recipe(0), f"{kind.kind}.recipe.size = 0: give an integer of at least 1"),
        (lambda: other(0), f"{kind.kind}.parent.size = 0: give an integer of at least 1"),
    ):
        with pytest.raises(ArgumentError) as caught:
            call()
        assert str(caught.value) == message


def test_an_error_is_one_line_whatever_the_value(kind):
    @kind.register("thing")
    def thing(size: PositiveInt):
        """A thing."""

    with pytest.raises(ArgumentError) as caught:
        thing(torch.zeros(100, 100))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.argument) == (ArgumentError, "size")
