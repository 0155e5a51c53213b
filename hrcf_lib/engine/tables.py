"""Reading tables of text, with commas or tabs between their cells: every fault is named with its line."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from hrcf_lib.engine.messages import list_some

SIGNS = {",": "commas between cells", ";": "semicolons between cells", "\t": "tabs between cells"}
FIX = "put cells that hold a comma in double quotes"


class Rows(list):
    """(line, cells) of each row that is not blank; ``header`` are the cells of the first."""

    def __init__(self, path: Path, header: list[str], rows):
        super().__init__(rows)
        self.path, self.header = path, header

    def place(self, clean: Callable[[str], str], *names: str) -> int | None:
        """The column that has one of these names, whatever its case; None if there is none.

        ``clean`` takes white space off a cell. Raises ``ValueError`` for several such columns.
        """
        places = [i for i, cell in enumerate(self.header) if clean(cell).lower() in names]
        if len(places) > 1:
            twice = " and ".join(repr(self.header[i]) for i in places)
            raise ValueError(
                f"{self.path} has the columns {twice}, of which one is read: leave one, or rename the others"
            )
        return places[0] if places else None


def read_table(path: Path, delimiter: str = ",", fix: str = FIX) -> Rows:
    """The rows of a table in UTF-8, whose first row names its columns.

    Empty cells at the end of a row, and of the first, do not count. Raises ``ValueError`` for text that is not UTF-8, a
    quotation mark that is not closed, another sign between the cells, a first row that comes again, and rows of another
    length, naming their lines; ``fix`` says what to do.
    """
    found: list[tuple[int, list[str]]] = []
    reader = None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                found.append((reader.line_num, row))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a CSV in UTF-8 ({error}); save it as one") from error
    except csv.Error as error:
        first = found[-1][0] + 1 if found else 1
        place = f"line {first}" if reader.line_num <= first else f"line {first} to {reader.line_num}"
        raise ValueError(
            f"{path}, {place}: {error}: a quotation mark is not closed, or stands alone; write two for one in a cell"
        ) from error
    found = [(line, row) for line, row in found if any(cell.strip() for cell in row)]
    header = found[0][1] if found else []
    while header and not header[-1].strip():
        header.pop()
    if len(header) == 1 and (other := next((sign for sign in SIGNS if sign in header[0] and sign != delimiter), None)):
        raise ValueError(f"{path}: its first line, {header[0]!r:.60}, has {SIGNS[other]}: write {SIGNS[delimiter]}")
    rows = [(line, _fitted(row, len(header))) for line, row in found[1:]]
    if wrong := [f"line {line} has {len(row)} cells" for line, row in rows if len(row) != len(header)]:
        first = f" of the first line ({delimiter.join(header)!r:.60})"
        raise ValueError(f"{path}: {list_some(wrong)} instead of {len(header)}{first}; {fix}")
    if again := [f"line {line}" for line, row in rows if _plain(row) == _plain(header)]:
        raise ValueError(f"{path}: {list_some(again)} repeats the first line, which names the columns: leave it out")
    if broken := [f"line {line}" for line, row in rows if any("\0" in cell for cell in row)]:
        raise ValueError(f"{path}: {list_some(broken)} holds bytes of 0, as in UTF-16: save it as a CSV in UTF-8")
    return Rows(path, header, rows)


def _plain(row: Sequence[str]) -> list[str]:
    return [cell.strip().lower() for cell in row]


def _fitted(row: Sequence[str], width: int) -> list[str]:
    """The row without empty cells beyond ``width``."""
    return list(row) if any(cell.strip() for cell in row[width:]) else list(row[:width])
