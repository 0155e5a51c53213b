"""Long tables in a notebook: folded, so that a reader can go past them."""

from html import escape

from IPython.display import HTML


def folded(table, title: str) -> HTML:
    """A table under its title, which alone is shown until it is clicked; for ``display``.

    ``table`` is a frame, shown as pandas shows one, with all rows; or a ``Styler``.
    """
    frame = getattr(table, "data", table)
    html = table.to_html() if hasattr(table, "data") else table.to_html(max_rows=len(table))
    return HTML(f"<details><summary><b>{escape(title)}</b> ({len(frame)} rows)</summary>{html}</details>")
