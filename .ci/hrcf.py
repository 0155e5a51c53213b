"""One command from a fresh checkout to a running notebook. Standard library only; Linux, macOS and Windows.

    python3 .ci/hrcf.py setup   make .venv with the pinned versions of .ci/requirements.txt
    python3 .ci/hrcf.py demo    the same, then run notebooks/00_quickstart.ipynb into runs/quickstart/
    python3 .ci/hrcf.py test    the same, then lint, layers, tests and every notebook at smoke size (what CI runs)

Nothing outside the environment's folder is installed or registered. HRCF_VENV=FOLDER puts the environment elsewhere.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (this file is also started by the Pythons that are too old)
    sys.exit(
        "hrcf: Python 3.11 or newer is needed, this is {}.{} ({}).\n"
        "Fix: install a newer one (python.org, your package manager, or `conda env create -f environment.yml`) and\n"
        "start this file with it, e.g. `python3.11 .ci/hrcf.py demo`.".format(*sys.version_info[:2], sys.executable)
    )

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / ".ci" / "requirements.txt"
QUICKSTART = ROOT / "notebooks" / "00_quickstart.ipynb"
VENV = Path(os.environ.get("HRCF_VENV") or ROOT / ".venv").expanduser().absolute()
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "hrcf.stamp"  # written last, so an interrupted set-up is taken up again
DISK_GB = 8  # torch with CUDA libraries unpacks to about 6 GB on Linux, far less elsewhere
INSTALLED = "from importlib.metadata import version as v; v('torch'), v('hrcf')"
STAGES = ("lint", "format", "layers", "tests", "notebooks")


def say(text: str = "") -> None:
    print(f"hrcf: {text}" if text else "", flush=True)


def stop(problem: str, fix: str, code: int = 1) -> None:
    print(f"hrcf: {problem}\nFix: {fix}", file=sys.stderr, flush=True)
    sys.exit(code)


def shown(path: Path) -> str:
    """A path as a reader of the repository would write it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def surroundings(**more: str) -> dict[str, str]:
    """Environment variables for what runs inside the venv: its programs and its Jupyter kernel come first."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "PYTHONPATH", "JUPYTER_PATH")}
    env |= {"VIRTUAL_ENV": str(VENV), "PATH": str(PYTHON.parent) + os.pathsep + env.get("PATH", "")}
    env |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONUTF8": "1"}
    return env | more


def call(*command: object, **more: str) -> int:
    """Run a Python module of the venv, output passed through; returns its exit code."""
    words = [str(word) for word in command]
    say("$ " + " ".join(["python", *words]))
    return subprocess.run([str(PYTHON), *words], cwd=ROOT, env=surroundings(**more)).returncode


def works(*words: str) -> bool:
    try:
        return subprocess.run([str(PYTHON), *words], capture_output=True, env=surroundings()).returncode == 0
    except OSError:
        return False


# -- setup -------------------------------------------------------------------------------------------------------------


def fingerprint() -> str:
    """What the environment depends on: the pins, and the checkout that is installed in editable form."""
    pins = hashlib.sha256(REQUIREMENTS.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    return f"requirements sha256 {pins}\ncheckout {ROOT}\n"


def create() -> None:
    """Make the venv, or keep the one that is there."""
    ours = (VENV / "pyvenv.cfg").exists()
    if works("-c", "import sys; sys.exit(sys.version_info < (3, 11))"):
        return say(f"environment {shown(VENV)} found")
    if VENV.exists() and any(VENV.iterdir()) and not ours:
        stop(f"{VENV} holds files but is not a Python environment.", "name another folder in HRCF_VENV, or empty it.")
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        version = "{}.{}".format(*sys.version_info[:2])
        stop(
            f"this Python ({sys.executable}) comes without the modules venv and ensurepip.",
            f"on Debian or Ubuntu `sudo apt install python{version}-venv`; elsewhere use a full Python {version}\n"
            "from python.org or conda (`conda env create -f environment.yml`).",
        )
    say(f"making {shown(VENV)} with Python {sys.version.split()[0]}")
    command = [sys.executable, "-m", "venv", *(["--clear"] if ours else []), str(VENV)]
    if subprocess.run(command).returncode:
        stop(f"could not make {VENV}.", "see the message above; delete that folder and try again.")
    (VENV / ".gitignore").write_text("*\n")


def setup() -> None:
    """Bring the environment to the pinned versions; at once if it has them."""
    start = time.monotonic()
    if not REQUIREMENTS.exists():
        stop(f"{REQUIREMENTS} is missing.", "check out the whole repository, or run `python .ci/pin.py`.")
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == wanted and works("-c", INSTALLED):
        return say(f"environment {shown(VENV)} is up to date")
    create()
    STAMP.unlink(missing_ok=True)
    free = shutil.disk_usage(VENV).free / 1e9
    if free < DISK_GB:
        say(f"warning: {free:.1f} GB free under {VENV}; up to {DISK_GB} GB may be needed")
    if not works("-m", "uv", "--version"):
        if not works("-m", "pip", "--version") and not works("-m", "ensurepip"):
            stop(f"{VENV} has no pip.", "delete that folder and try again, or name another in HRCF_VENV.")
        if call("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv<1"):
            stop("could not install uv.", "check the network or your pip settings, then run the same command again.")
    count = sum(1 for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line and line[0] != "#")
    say(f"installing {count} pinned packages: the first time this downloads a few GB, later a cache serves them")
    quiet = () if sys.stderr.isatty() else ("--quiet",)  # a person sees progress, a log is spared 180 lines
    install = ("-m", "uv", "pip", "install", *quiet, "--python", PYTHON)
    if call(*install, "-r", REQUIREMENTS.relative_to(ROOT)):
        stop("could not install the pinned packages.", "see the message above, then run the same command again.")
    if call(*install, "--no-deps", "--editable", "."):
        stop("could not install hrcf itself.", "see the message above; a whole checkout of the repository is needed.")
    STAMP.write_text(wanted, encoding="utf-8")
    say(f"environment {shown(VENV)} ready after {time.monotonic() - start:.0f} s")


# -- demo --------------------------------------------------------------------------------------------------------------


def written(since: float, skip: Path) -> list[Path]:
    """Files under runs/, figures/ and notebooks/ that are newer than `since` (seconds since the epoch)."""
    found = []
    for folder in ("runs", "figures", "notebooks"):
        for path in sorted((ROOT / folder).rglob("*")):
            checkpoint = ".ipynb_checkpoints" in path.parts
            if path.is_file() and path.stat().st_mtime >= since and path != skip and not checkpoint:
                found.append(path)
    return found


def demo(out: Path, rest: list[str]) -> int:
    """Run the quickstart from top to bottom and say where everything lies."""
    if not QUICKSTART.exists():
        stop(f"{shown(QUICKSTART)} is missing.", "check out the whole repository.")
    out.mkdir(parents=True, exist_ok=True)
    result = out / QUICKSTART.name
    start, clock = time.time(), time.monotonic()
    code = call(
        *("-m", "hrcf_lib.studies.notebooks", QUICKSTART.relative_to(ROOT), result, *rest),
    )
    took = f"{time.monotonic() - clock:.0f} s"
    if code:
        stop(f"the quickstart stopped after {took}.", f"the failing cell is marked in {shown(result)}.", code)
    files = written(start - 1, skip=result)  # some file systems keep whole seconds
    say()
    say(f"the quickstart ran in {took}")
    say(f"  executed notebook  {shown(result)}")
    for title, endings in (("figure", (".png", ".svg")), ("record", (".json",)), ("table", (".csv",))):
        for path in (path for path in files if path.suffix in endings):
            say(f"  {title:<17}  {shown(path)}")
    say(f"read on with: {shown(PYTHON.with_name('jupyter'))} lab notebooks")
    return 0


# -- test --------------------------------------------------------------------------------------------------------------


def stage(name: str) -> int:
    """One of STAGES; returns its exit code."""
    if name == "lint":
        return call("-m", "ruff", "check", ".")
    if name == "layers":
        command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
        return call("-c", command, "--no-logo", "--no-cache")
    if name == "format":
        return call("-m", "ruff", "format", "--check", ".")
    cores = os.cpu_count() or 1
    workers = min(cores, 4)  # a process with torch holds about 1 GB
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
    shared = ("-n", workers, "--max-worker-restart", 0, "--durations", 10)
    surround = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    if name == "tests":
        backend = os.environ.get("MPLBACKEND", "Agg")  # no window; notebooks keep the one of their kernel
        return call("-m", "pytest", "-q", "tests", *shared, "--dist", "worksteal", MPLBACKEND=backend, **surround)
    return call(
        *("-m", "pytest", "-q", "notebooks", "--nbval-lax", "--nbval-current-env"),
        *("--nbval-sanitize-with", "tests/nbval_sanitize.cfg", "--nbval-kernel-startup-timeout", 180),
        *("--nbval-cell-timeout", 900, *shared, "--dist", "loadfile"),  # one worker per notebook
        *("-p", "warm_kernels"),
        HRCF_SIZE="smoke",
        PYTHONPATH=str(ROOT / ".ci"),
        **surround,
    )


def test(names: list[str]) -> int:
    """Run the stages, all of them even where one fails, and sum up; the exit code is the first failed stage's."""
    first, lines = 0, []
    for name in names:
        say()
        say(f"=== {name} ===")
        clock = time.monotonic()
        code = stage(name)
        outcome = "ok" if code == 0 else f"FAILED (exit {code})"
        lines.append(f"  {name:<10} {outcome:<18} {time.monotonic() - clock:6.0f} s")
        first = first or code
    say()
    say("summary")
    for line in lines:
        say(line)
    return first


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="hrcf.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make the environment")
    demo_parser = commands.add_parser("demo", help="run the quickstart notebook; -p NAME VALUE sets a parameter")
    out = ROOT / "runs" / "quickstart"
    demo_parser.add_argument("--out", type=Path, default=out, help="folder of the executed copy")
    test_parser = commands.add_parser("test", help="lint, tests, notebooks")
    test_parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"some of {', '.join(STAGES)} (default: all)")
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command != "demo":
        parser.error(f"unknown: {' '.join(rest)}")
    unknown = [name for name in getattr(arguments, "stages", []) if name not in STAGES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    setup()
    if arguments.command == "demo":
        return demo(arguments.out.expanduser().absolute(), rest)
    if arguments.command == "test":
        return test(arguments.stages or list(STAGES))
    say(f"next: python3 .ci/hrcf.py demo, or {shown(PYTHON.with_name('jupyter'))} lab notebooks")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
