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
    try:
        frame = benchmark.run(given.rows.split(","), show=lambda text: print(text, flush=True))
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    if given.out:
        write_json(given.out, [row | where for row in results.plain(frame)])
    return int(frame["error"].notna().any())


if __name__ == "__main__":
    sys.exit(main())
