"""The command line of the report."""

import argparse
from pathlib import Path

from hrcf_lib import report
from hrcf_lib.engine.files import file_argument
from hrcf_lib.report.export import export
from hrcf_lib.studies import records


def main(words=None) -> None:
    """Write the HTML file; bad input ends the command with one line that says what to fix."""
    parser = argparse.ArgumentParser(
        prog="python -m hrcf_lib.report",
        description=report.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--records", type=Path, default=records.STORED, help="folder of records; default: the repository's"
    )
    parser.add_argument("--nus-wide", default="", metavar="FOLDER", help="records of preset nus_wide")
    parser.add_argument("--out", type=file_argument, default=Path("runs/report.html"), help="default: runs/report.html")
    given = parser.parse_args(words)
    try:
        print(export(given.out, given.records, given.nus_wide))
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
