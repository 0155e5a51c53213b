"""Asking for the earlier form of a method, and reading what was saved of it."""

import json

import pytest
import synthetic

from hrcf_lib import config as configs
from hrcf_lib import methods
from hrcf_lib.methods import registry

FORMS = {name: kind.Config.settings for name, kind in registry.FIRST.items()}


@pytest.mark.parametrize(("name", "form"), FORMS.items())
def test_settings_ask_for_the_earlier_form(name, form):
    config = methods.configure(name, synthetic.config(), settings=form)
    assert type(config) is registry.FIRST[name].Config and config.settings == form
    assert methods.configure(name, config, lr=0.5).settings == form, "a config of that form stays one"
    assert methods.as_before(name)["settings"] == form
    with pytest.raises(ValueError, match="settings = 'second': choose one of"):
        methods.configure(name, synthetic.config(), settings="second")


@pytest.mark.parametrize(("name", "form"), FORMS.items())
def test_what_was_saved_without_settings_is_of_the_earlier_form(name, form, tmp_path):
    config = methods.configure(name, synthetic.config(), settings=form)
    model = methods.for_config(
        config.replace(**({"categories": ("owl", "bus")} if hasattr(config, "categories") else {}))
    )
    path = model.save_pretrained(tmp_path) / "config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    del about["config"]["settings"]
    path.write_text(json.dumps(about), encoding="utf-8")
    assert type(methods.load(tmp_path)) is registry.FIRST[name]


def test_as_before_is_what_the_fields_state_of_saved_runs():
    for name in methods.names():
        changes = methods.as_before(name)
        config = methods.configure(name, synthetic.config(), **changes)
        before = configs.values_before(type(config))
        assert all(getattr(config, field) == before[field] for field in changes)
