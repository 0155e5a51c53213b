"""The command line of the benchmark."""

import argparse
import sys
from pathlib import Path

from hrcf_lib import benchmark, results
from hrcf_lib.files import write_json


def main(words=None) -> int:
    """0 if every row came through, 1 if one failed, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m hrcf_lib.benchmark",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="write the rows here, as a JSON list")
    parser.add_argument("--rows", default=",".join(benchmark.ROWS), help="joined by commas; default: all")
    given = parser.parse_args(words)
    origin = results.origin()
    where = {key: origin[key] for key in ("date", "device", "native_bf16", "commit")}
    print("; ".join(f"{key} {value}" for key, value in where.items()), flush=True)
    rows = []

    def show(row: dict) -> None:
        print(benchmark.line(row), flush=True)
        rows.append(dict.fromkeys(benchmark.COLUMNS) | row | where)
        if given.out:
            write_json(given.out, rows)  # after each: a long run that is stopped leaves what it has

    try:
        benchmark.run(given.rows.split(","), show=show)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    return int(any(row["error"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
