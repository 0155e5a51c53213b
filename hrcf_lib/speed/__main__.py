"""The command line of the speed table."""

import argparse
import sys

from hrcf_lib.engine.files import file_argument, write_json
from hrcf_lib.speed import table
from hrcf_lib.studies import records


def main(words=None) -> int:
    """Returns 0 if every row worked, 1 if one failed; exits with 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m hrcf_lib.speed",
        description=table.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=file_argument, help="write the rows here, as a JSON list")
    parser.add_argument("--rows", default=",".join(table.ROWS), help="joined by commas; default: all")
    given = parser.parse_args(words)
    origin = records.origin()
    where = {key: origin[key] for key in ("date", "device", "native_bf16", "commit")}
    print("; ".join(f"{key} {value}" for key, value in where.items()), flush=True)
    rows = []

    def show(row: dict) -> None:
        print(table.line(row), flush=True)
        rows.append(dict.fromkeys(table.COLUMNS) | row | where)
        if given.out:
            write_json(given.out, rows)  # after each row, so that a run that is stopped leaves its rows

    try:
        table.run(given.rows.split(","), show=show)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    return int(any(row["error"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
