r"""The report as one self-contained HTML file: no script, style, font or picture from elsewhere."""

import re
import tempfile
from pathlib import Path

from nbconvert import HTMLExporter

from hrcf_lib.engine.files import write_text
from hrcf_lib.studies.notebooks import run_notebook
from hrcf_lib.studies.records import REPOSITORY, STORED

TITLE = "HRCF: every result beside the paper's"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #888; }
img { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; }
code { background: #f3f3f3; }
.anchor-link { display: none; }
@media print { body { max-width: none; margin: 0; font-size: 10pt; }
  table { font-size: 7pt; }
  tr { break-inside: avoid; } }
"""
FETCHED = re.compile(
    r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//[^>]*>|url\(\s*[\"']?https?:",
    re.I,
)


def export(out: str | Path, records: str | Path = "", nus_wide: str | Path = "") -> Path:
    r"""Run the notebook of the report on these records and write it, without its code, to the HTML file ``out``.

    The stored notebook, figures and record stay as they are. Returns ``out``. Raises ``FileNotFoundError`` where the
    library is installed without its repository, ``NotADirectoryError`` for a folder that does not exist, and the errors
    of ``run_notebook``.
    """
    notebook = REPOSITORY / "notebooks" / "12_report.ipynb"
    records = Path(records or STORED)
    for folder in filter(None, (records, nus_wide)):
        if not Path(folder).is_dir():
            raise NotADirectoryError(f"{folder} is not a folder of records: give the one that holds <notebook>.json")
    given = {"records": str(records.resolve())}
    given |= {"nus_wide_records": str(Path(nus_wide).resolve())} if nus_wide else {}
    with tempfile.TemporaryDirectory() as folder:
        done = run_notebook(notebook, Path(folder) / notebook.name, given)
        text = html(done)
    write_text(out, text)
    return Path(out)


def html(notebook: str | Path) -> str:
    """An executed notebook as one HTML page, without its code. Raises ``ValueError`` if it needs a network."""
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True, embed_images=True)
    body, _ = exporter.from_filename(str(notebook))
    if found := FETCHED.search(body):
        raise ValueError(f"{notebook}: {found[0][:80]} would be fetched from the network: embed it")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{TITLE}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )
