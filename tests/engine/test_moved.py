"""Modules of earlier versions: importing one, or running its command, says where it is now."""

import importlib
import subprocess
import sys
from importlib.util import find_spec

import pytest

from hrcf_lib.engine import moved

COMMANDS = {  # `python -m` of earlier versions -> now
    "hrcf_lib.fit": "hrcf_lib.studies.one_run",
    "hrcf_lib.notebook": "hrcf_lib.studies.notebooks",
    "hrcf_lib.batch": "hrcf_lib.studies.batch",
    "hrcf_lib.calibration": "hrcf_lib.apply.calibration",
    "hrcf_lib.onnx_export": "hrcf_lib.apply.onnx",
    "hrcf_lib.benchmark": "hrcf_lib.speed",
    "hrcf_lib.dry_run": "hrcf_lib.speed.dry_run",
}


@pytest.mark.parametrize(("old", "new"), sorted(moved.table().items()))
def test_the_new_place_is_there_and_the_old_one_names_it(old, new):
    for name in new.split(" and "):
        assert find_spec(name), f"{name} is no module"
    with pytest.raises(ModuleNotFoundError, match=f"{old} has moved: it is {new} now"):
        importlib.import_module(old)


def test_commands_of_before_say_where_they_are_now():
    found = {old: moved.table()[old] for old in COMMANDS}
    assert found == COMMANDS
    done = subprocess.run([sys.executable, "-m", "hrcf_lib.fit", "mini"], capture_output=True, text=True)
    assert done.returncode and "hrcf_lib.fit has moved: it is hrcf_lib.studies.one_run now" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_that_never_was_is_plainly_unknown():
    with pytest.raises(ModuleNotFoundError, match="No module named 'hrcf_lib.nothing'"):
        importlib.import_module("hrcf_lib.nothing")
