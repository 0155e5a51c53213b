"""Tables of the report under their titles, in a notebook; long ones folded, so that a reader can go past them."""

from IPython.display import Markdown, display

from hrcf_lib.figures.tables import folded as fold
from hrcf_lib.report import show


def section(tables: dict, *titles: str, folded: bool = False) -> None:
    """Display some of ``Report.tables()``, each under its title; ``folded`` shows the title alone until it is clicked.

    Raises ``KeyError`` for a title that is not there.
    """
    for title in titles:
        styled = show(tables[title], title)
        if folded:
            display(fold(styled, title))
        else:
            display(Markdown(f"**{title}**"), styled)
