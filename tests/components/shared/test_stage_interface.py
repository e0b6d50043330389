"""A stage's interface is read from its source, and what is asked of it is checked before anything runs."""

from __future__ import annotations

import importlib
import inspect
import math
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from components.shared.contracts import Between, In, Ins, OneOf, Out
from components.shared.runtime.stage_interface import Interface, Parameter, read, stages
from components.shared.runtime.work import Work

ALL = ["deploy", "evaluate", "gate", "ingest", "merge", "quantize", "reject", "resolve", "split", "train"]


def test_the_stages_are_the_folders_with_a_component() -> None:
    assert stages() == ALL


@pytest.mark.parametrize("stage", ALL)
def test_the_source_is_read_as_python_reads_it(stage: str) -> None:
    function = getattr(importlib.import_module(f"components.{stage}.{stage}"), stage)
    hints = get_type_hints(function, localns={"Work": Work}, include_extras=True)
    read_interface = read(stage)
    assert inspect.cleandoc(function.__doc__).startswith(read_interface.summary)
    inputs, outputs, takes_work = [], [], False
    parameters: dict[str, tuple[Any, ...]] = {}
    for name, argument in inspect.signature(function).parameters.items():
        hint = hints[name]
        if hint in (In, Ins):
            inputs.append(name)
            assert (name in read_interface.several) is (hint == Ins)
        elif hint == Out:
            outputs.append(name)
        elif hint is Work:
            takes_work = True
        elif isinstance(hint, type) and is_dataclass(hint):
            assert argument.kind is inspect.Parameter.KEYWORD_ONLY
            assert read_interface.records[name] == (hint.__module__, hint.__name__, tuple(f.name for f in fields(hint)))
            inner = get_type_hints(hint, include_extras=True)
            parameters |= {field.name: _seen(inner[field.name], _default(field)) for field in fields(hint)}
        else:
            assert argument.kind is inspect.Parameter.KEYWORD_ONLY
            parameters[name] = _seen(hint, argument.default)
    found = {name: (p.type, p.limit, p.choices, p.required, p.default) for name, p in read_interface.parameters.items()}
    assert list(read_interface.inputs) == inputs
    assert list(read_interface.outputs) == outputs
    assert read_interface.takes_work is takes_work
    assert {name: about[:4] for name, about in found.items()} == {name: about[:4] for name, about in parameters.items()}
    assert {n: a[4] for n, a in found.items() if not a[3]} == {n: a[4] for n, a in parameters.items() if not a[3]}


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _seen(hint: Any, default: Any) -> tuple[Any, ...]:
    limit, choices = None, None
    if get_origin(hint) is Annotated:
        hint, mark = get_args(hint)
        if isinstance(mark, Between):
            limit = (float(mark.low), float(mark.high))
        else:
            assert isinstance(mark, OneOf)
            choices = mark.values
    return get_origin(hint) or hint, limit, choices, default is inspect.Parameter.empty, default


@pytest.mark.parametrize("stage", ALL)
def test_every_parameter_says_what_it_is_for_and_its_default_is_allowed(stage: str) -> None:
    for parameter in read(stage).parameters.values():
        assert parameter.help, f"{stage}: {parameter.name} has no line in the docstring"
        if not parameter.required:
            assert parameter.check(parameter.default) == parameter.default


@pytest.mark.parametrize("stage", ALL)
def test_every_number_has_limits(stage: str) -> None:
    for parameter in read(stage).parameters.values():
        if parameter.type in (int, float):
            assert parameter.limit, f"{stage}: {parameter.name}"
            assert all(math.isfinite(end) for end in parameter.limit)


def test_an_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"There is no stage 'trian'. Did you mean 'train'"):
        read("trian")


@pytest.mark.parametrize("name", ["../shared", "shared", ""])
def test_what_is_no_stage_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="There is no stage"):
        read(name)


def test_settle_gives_what_was_asked_and_the_defaults_for_the_rest() -> None:
    settled = read("train").complete({"epochs": 3, "fit": "stretch"})
    assert settled["epochs"] == 3
    assert settled["fit"] == "stretch"
    assert settled["batch_size"] == read("train").parameters["batch_size"].default
    assert set(settled) == set(read("train").parameters)


def test_an_unknown_parameter_names_the_nearest_and_lists_the_others() -> None:
    with pytest.raises(
        ValueError, match=r"train has no parameter 'epcohs'. Did you mean 'epochs'\? Parameters: .*seed"
    ):
        read("train").complete({"epcohs": 3})


def test_a_parameter_without_default_must_be_given() -> None:
    with pytest.raises(ValueError, match="ingest requires the parameter source"):
        read("ingest").complete({"revision": "", "key_id": ""})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("epochs", 0, "epochs is 0; it must be from 1 to 1000"),
        ("epochs", 1001, "must be from 1 to 1000"),
        ("epochs", 2.5, "must be a whole number"),
        ("epochs", "2", "epochs is '2'; it must be a whole number"),
        ("epochs", True, "must be a whole number"),
        ("epochs", None, "must be a whole number"),
        ("epochs", math.inf, "must be a whole number"),
        ("epochs", math.nan, "must be a whole number"),
        ("learning_rate", math.nan, "must be a number"),
        ("learning_rate", math.inf, "must be from 1e-07 to 1"),
        ("learning_rate", "fast", "must be a number"),
        ("learning_rate", False, "must be a number"),
        ("fit", "pat", "must be one of pad, stretch. Did you mean 'pad'"),
        ("fit", 1, "must be a text"),
        ("architecture", ["small"], "must be a text"),
    ],
)
def test_a_wrong_value_is_refused_with_its_limit(name: str, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*") as refused:
        read("train").complete({name: value})
    assert sentence in str(refused.value)


def test_a_whole_number_that_a_pipeline_made_a_float_is_whole_again() -> None:
    settled = read("train").complete({"epochs": 3.0, "learning_rate": 1})
    assert (settled["epochs"], type(settled["epochs"])) == (3, int)
    assert (settled["learning_rate"], type(settled["learning_rate"])) == (1.0, float)


def test_a_number_may_be_written_as_yaml_reads_it_for_a_text() -> None:
    """YAML takes 1e-3, without a point, for a text."""
    assert read("train").complete({"learning_rate": "1e-3"})["learning_rate"] == 0.001


def test_lists_and_mappings_are_checked_to_be_that() -> None:
    given = {"source": "x", "revision": "", "key_id": ""}
    assert read("ingest").complete({**given, "classes": ["A"]})["classes"] == ["A"]
    with pytest.raises(ValueError, match="classes is 'A'; it must be a list"):
        read("ingest").complete({**given, "classes": "A"})
    with pytest.raises(ValueError, match=r"asked is \[\]; it must be a mapping"):
        read("resolve").parameters["asked"].check([])


def test_true_and_false_are_no_numbers_and_numbers_are_not_true_or_false() -> None:
    switch = Parameter("on", bool, False, None, None, "")
    assert switch.check(True) is True
    with pytest.raises(ValueError, match="on is 1; it must be true or false"):
        switch.check(1)


def test_a_settled_interface_is_the_same_object_each_time() -> None:
    assert isinstance(read("split"), Interface)
    assert read("split") is read("split")
