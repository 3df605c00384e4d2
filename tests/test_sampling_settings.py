"""Which place's settings are in force, and the forms in which callers may give them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pyrllama.core import Sampling
from pyrllama.errors import SettingError
from pyrllama.sampling_ranges import stage_names
from pyrllama.sampling_settings import SamplingSettings, Source, resolve


def settings(values: dict[str, Any]) -> SamplingSettings:
    return cast("SamplingSettings", values)


def test_a_request_goes_before_a_flag_before_the_model_before_the_default() -> None:
    resolved = resolve(
        model={"temperature": 0.1, "top_k": 11, "top_p": 0.11},
        flags={"temperature": 0.2, "top_k": 22},
        request={"temperature": 0.3},
    )
    assert resolved.sampling == Sampling(temperature=0.3, top_k=22, top_p=0.11)
    assert resolved.sources["temperature"] == Source.REQUEST
    assert resolved.sources["top_k"] == Source.FLAG
    assert resolved.sources["top_p"] == Source.MODEL
    assert resolved.sources["min_p"] == Source.DEFAULT


def test_a_default_that_is_set_goes_before_the_model() -> None:
    resolved = resolve(model={"top_k": 50}, flags={"top_k": 20})
    assert resolved.sampling.top_k == 20
    assert resolved.sources["top_k"] == Source.FLAG


def test_nothing_set_is_the_default() -> None:
    assert resolve().sampling == Sampling()
    assert set(resolve().sources.values()) == {Source.DEFAULT}


def test_every_field_is_a_setting() -> None:
    assert set(SamplingSettings.__annotations__) == set(Sampling.__dataclass_fields__)


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("logit_bias", {3: 1, 4: -2.5}, ((3, 1.0), (4, -2.5))),
        ("logit_bias", [[3, 1]], ((3, 1.0),)),
        ("banned_tokens", [1, 2], (1, 2)),
        ("dry_sequence_breakers", ["\n"], ("\n",)),
        ("dry_sequence_breakers", "###", ("###",)),
        ("samplers", "top-k;temp", ("top_k", "temperature")),
        ("samplers", ["nucleus", "typical_p"], ("top_p", "typ_p")),
        ("samplers", None, None),
        ("samplers", [], ()),
    ],
)
def test_forms(name: str, given: Any, kept: Any) -> None:
    assert getattr(resolve(request=settings({name: given})).sampling, name) == kept


@pytest.mark.parametrize(
    ("name", "given"),
    [("logit_bias", {"x": 1}), ("logit_bias", 5), ("banned_tokens", 7), ("samplers", "top_q")],
)
def test_forms_that_cannot_be_read(name: str, given: Any) -> None:
    with pytest.raises(SettingError, match=f"^{name} is "):
        resolve(request=settings({name: given}))


def test_a_setting_that_there_is_not() -> None:
    with pytest.raises(TypeError, match="no setting 'temprature'"):
        resolve(request=settings({"temprature": 1}))


def test_the_model_is_named_where_its_setting_is_bad() -> None:
    with pytest.raises(SettingError, match=r"top_p in the model's own .*--no-model-sampling"):
        resolve(model={"top_p": 7})
    assert resolve(model={"top_p": 7}, flags={"top_p": 0.5}).sampling.top_p == 0.5


@pytest.mark.parametrize("value", [0, -1])
def test_models_files_say_no_top_k_in_two_ways(value: int) -> None:
    assert resolve(model={"top_k": value}).sampling.top_k == 0
    with pytest.raises(SettingError):
        resolve(flags={"top_k": -1})


def test_an_endless_value_is_cut() -> None:
    with pytest.raises(SettingError) as caught:
        resolve(model={"temperature": "x" * 10_000})
    assert len(str(caught.value)) < 400


def test_names_of_stages() -> None:
    assert stage_names("Top-K; temp ;;min_p") == ("top_k", "temperature", "min_p")
    assert stage_names("") == ()
