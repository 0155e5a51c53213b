"""The environment is pinned, once, the same everywhere; the repository holds what it should and no more."""

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    *("notebooks", "hrcf_lib", "papers", "figures", "tests"),
    *("environment.yml", "README.md", "pyproject.toml", "LICENSE"),
}
# Put together from parts, so that this file does not hold what it looks for.
MACHINE_PATHS = ["/{}/".format(name) for name in ("work", "root")]  # noqa: UP032
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("pypi", "python", "org"),
        ("download", "pytorch", "org"),
        ("registry", "npmjs", "org"),
        ("deb", "debian", "org"),
        ("conda", "anaconda", "org"),
    )
]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def requirement_lines() -> list[str]:
    lines = (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def environment_lines() -> list[str]:
    (pip,) = [entry["pip"] for entry in environment()["dependencies"] if isinstance(entry, dict)]
    return pip


def pins(lines: list[str]) -> dict[str, str]:
    """{canonical name: version}. Every line must be `name==version`; a marker may follow; no name may come twice."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        name = canonicalize_name(requirement.name)
        assert specifier.operator == "==" and not specifier.version.endswith("*"), f"not an exact pin: {line}"
        assert not requirement.extras, f"extras in a pin: {line}"
        assert name not in found, f"{name} is pinned twice"
        found[name] = specifier.version
    return found


def dependencies() -> list[tuple[str, str]]:
    extras = project()["optional-dependencies"]
    return [("core", text) for text in project()["dependencies"]] + [
        (extra, text) for extra, texts in extras.items() for text in texts
    ]


def tracked() -> list[str]:
    """Files that git tracks; skips where this is no git checkout (an unpacked archive, say)."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    result = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if result.returncode:
        pytest.skip(f"git ls-files failed: {result.stderr.decode(errors='replace').strip()}")
    return [name for name in result.stdout.decode("utf-8").split("\0") if name]


@pytest.mark.parametrize("lines", [requirement_lines, environment_lines])
@pytest.mark.parametrize(("extra", "text"), dependencies())
def test_every_dependency_is_pinned_inside_its_range(extra, text, lines):
    requirement = Requirement(text)
    pinned = pins(lines())
    name = canonicalize_name(requirement.name)
    assert name in pinned, f"{text} ({extra}) is not pinned: run `python .ci/pin.py`"
    assert requirement.specifier.contains(pinned[name], prereleases=True), f"{name}=={pinned[name]} is outside {text}"


@pytest.mark.parametrize(("extra", "text"), dependencies())
def test_every_dependency_has_a_lower_bound(extra, text):
    operators = {specifier.operator for specifier in Requirement(text).specifier}
    assert operators & {">=", "~=", "=="}, f"{text} ({extra}) has no lower bound"


def test_environment_and_requirements_list_the_same_pins():
    assert environment_lines() == requirement_lines()


@pytest.mark.parametrize("name", [".ci/requirements.txt", "environment.yml"])
def test_pins_hold_no_url_hash_or_index(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for pattern in (r"://", r"\bfile:", r"--\w", r"sha256", r"^\s*-[a-z] ", r" @ ", r"\+cpu|\+cu\d"):
        assert not re.search(pattern, text, re.MULTILINE), f"{name} holds {pattern!r}"


def test_python_versions_agree():
    (python,) = [entry for entry in environment()["dependencies"] if str(entry).startswith("python=")]
    oldest = re.fullmatch(r">=(3\.\d+)", project()["requires-python"]).group(1)
    version = python.removeprefix("python=")
    assert SpecifierSet(project()["requires-python"]).contains(f"{version}.0")
    assert version == oldest, "the pins are made for the oldest Python we support: name it in environment.yml too"


def test_environment_is_named_for_the_project():
    assert environment()["name"] == project()["name"] == "hrcf"


def test_top_level_holds_nothing_else():
    top = {name.split("/")[0] for name in tracked()}
    assert not {name for name in top if not name.startswith(".")} - TOP_LEVEL


def test_no_lock_file_is_tracked():
    assert not [name for name in tracked() if Path(name).name in ("uv.lock", "poetry.lock", "Pipfile.lock")]


def test_no_machine_path_or_registry_host_is_tracked():
    found = []
    for name in tracked():
        path = ROOT / name
        if not path.is_file():  # deleted but not yet committed
            continue
        content = path.read_bytes()
        if b"\0" in content[:8192]:  # binary, as git judges it
            continue
        text = content.decode("utf-8", errors="replace")
        found += [f"{name}: {forbidden}" for forbidden in MACHINE_PATHS + REGISTRY_HOSTS if forbidden in text]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["torch", "torchvision", "open-clip-torch", "timm"])
def test_installed_versions_are_the_pinned_ones(name):
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")
    assert installed.split("+")[0] == pins(requirement_lines())[name]
