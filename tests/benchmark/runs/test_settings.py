"""Settings: packaged files load, overrides apply, and every kind of mistake is named."""

import re

import msgspec
import pytest

from sdpo.benchmark.runs import settings
from sdpo.benchmark.runs.settings import SettingsError, load
from sdpo.cli.mbpp_run import QUICK, overrides


def test_packaged_configurations_load_and_say_what_they_are():
    found = settings.available()
    assert {"grpo", "sdpo", "sdpo-audit", "hybrid", "trl", "sdpo-rl", "published"} <= set(found)
    for name, path in found.items():
        assert load(name).train["max_steps"] >= 1
        assert path.read_text(encoding="utf-8").startswith("# ")


def test_base_and_overrides(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "sdpo"\n[train]\nmax_steps = 7\n', encoding="utf-8")
    found = load(str(file), ["train.learning_rate=1e-4", "model.name=a/b"], {"seed": 5})
    assert found.train["max_steps"] == 7
    assert found.train["learning_rate"] == 1e-4
    assert found.train["num_generations"] == load("grpo").train["num_generations"]
    assert (found.model.name, found.seed) == ("a/b", 5)
    assert settings.digest(found) != settings.digest(load("sdpo"))
    stored = msgspec.to_builtins(load("sdpo"))
    assert settings.differences(stored, load("sdpo", ["seed=9"])) == ["seed: 1 there, 9 now"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.num_generations=7", "does not divide the 64 rows"),
        ("train.num_generations=1", "at least 2 attempts"),
        ("train.max_steps=few", "train.max_steps is 'few': Expected `int`, got `str`"),
        ("model.dtype=float8", "model.dtype is 'float8', it must be one of float32, bfloat16"),
        ("eval=7", "[eval] must be a section"),
        ("sed=3", "sed is not a setting; did you mean 'seed'"),
        ("eval.evry=3", "eval.evry is not a setting; did you mean 'every'"),
        ("nowhere.x=3", "no section 'nowhere'"),
        ("seed", "write section.key=value"),
        ("seed=many", "seed is 'many': Expected `int`, got `str`"),
        ("method=ppo", "it must be one of grpo"),
        ("eval.every=0", "eval.every is 0: Expected `int` >= 1"),
        ("train.output_dir=x", "train.output_dir is set by --out"),
        ("data.prompt=Solve it", "must contain {text}"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        load("grpo", [override])


def test_a_configuration_that_is_not_there():
    with pytest.raises(SettingsError, match="no configuration 'sdop'; did you mean 'sdpo'"):
        load("sdop")


def test_everything_wrong_is_in_one_message():
    with pytest.raises(SettingsError) as error:
        load("grpo", ["method=ppo", "train.num_generations=7", "eval.every=0"])
    assert all(word in str(error.value) for word in ("ppo", "64 rows", "eval.every"))


def test_no_settings_are_shared_between_loads():
    load("sdpo").train["max_steps"] = -1
    assert load("sdpo").train["max_steps"] > 0


def test_what_is_set_by_name_rules_over_quick():
    given = overrides(["train.max_steps=3"], quick=True)
    assert load("sdpo", given).train["max_steps"] == 3
    assert load("sdpo", given).eval.limit == QUICK["eval.limit"]
    assert overrides(None, quick=False) == []
