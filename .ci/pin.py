"""Write the exact versions of the whole environment: .ci/requirements.txt and environment.yml, from pyproject.toml.

    python .ci/pin.py             after editing pyproject.toml: pins that still fit stay as they are
    python .ci/pin.py --upgrade   take the newest versions that fit

One version per package, for Linux, macOS and Windows and every Python that pyproject.toml admits. Needs uv: the one
that `python3 .ci/hrcf.py setup` put into .venv, or any other on the path.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / ".ci" / "requirements.txt"
ENVIRONMENT = ROOT / "environment.yml"

NOTE = "# Written by .ci/pin.py from pyproject.toml: change that and run `python .ci/pin.py`, never this file.\n"


def uv() -> list[str]:
    """The command that runs uv: this interpreter's, else the repository's .venv, else the one on the path."""
    if subprocess.run([sys.executable, "-m", "uv", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "uv"]
    for name in (ROOT / ".venv" / "bin" / "uv", ROOT / ".venv" / "Scripts" / "uv.exe", shutil.which("uv")):
        if name and Path(name).exists():
            return [str(name)]
    sys.exit("pin: uv not found. Run `python3 .ci/hrcf.py setup` (it installs uv into .venv), or `pip install uv`.")


def resolve(python: str, upgrade: bool) -> list[str]:
    """Pins such as `numpy==2.4.6` or `triton==3.9.0 ; sys_platform == 'linux'`, sorted by name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "requirements.txt"
        if REQUIREMENTS.exists() and not upgrade:
            shutil.copy(REQUIREMENTS, out)  # uv prefers the versions it finds in its output file
        command = [*uv(), "pip", "compile", "pyproject.toml", "--universal", "--python-version", python]
        command += ["--all-extras", "--fork-strategy", "fewest", "--no-annotate", "--no-header"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--quiet", "--output-file", str(out)]
        result = subprocess.run(command, cwd=ROOT, env={**os.environ, "UV_NO_PROGRESS": "1"})
        if result.returncode:
            sys.exit(f"pin: uv could not find versions that fit pyproject.toml (exit {result.returncode}); see above.")
        return [line for line in out.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def environment(pins: list[str], python: str) -> str:
    """environment.yml: conda brings Python and pip, pip brings the same pins."""
    head = f"name: hrcf\nchannels:\n  - conda-forge\ndependencies:\n  - python={python}\n  - pip\n  - pip:\n"
    return NOTE + head + "".join(f"      - {pin}\n" for pin in pins)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="newest versions that fit, instead of the pins at hand")
    arguments = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python = re.fullmatch(r">=(3\.\d+)", project["requires-python"]).group(1)  # the oldest Python we support
    pins = resolve(python, arguments.upgrade)
    REQUIREMENTS.write_text(NOTE + "\n".join(pins) + "\n", encoding="utf-8", newline="\n")
    ENVIRONMENT.write_text(environment(pins, python), encoding="utf-8", newline="\n")
    print(f"pin: {len(pins)} pins in {REQUIREMENTS.relative_to(ROOT)} and {ENVIRONMENT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
