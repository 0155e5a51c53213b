"""The paper pages, the bibliography and the published numbers agree with each other and with the code."""

import importlib
import operator
import re
from pathlib import Path

import pandas as pd
import pytest

from hrcf_lib.report import claims, effects

PAPERS = Path(__file__).parents[2] / "papers"
TABLES = sorted((PAPERS / "published").glob("*.csv"))
EFFECTS = [*effects.planned(), *effects.planned("partial_labels_effects")]

# Columns that hold words. Every other column of every file must be numeric.
TEXT_COLUMNS = {
    "against", "against_setting", "against_variant", "answer", "claim", "dataset", "features", "gpu", "interval",
    "item", "label", "method", "metric", "model", "note", "notebook", "numbers", "prompt", "row", "setting", "shows",
    "source", "source_table", "task", "trainable_params", "value", "variant", "where",
}  # fmt: skip
NOT_PERCENT = re.compile(r"K_|.*_M$|ms_|seconds_|train_minutes")  # numeric, but no percentage
MAY_BE_BLANK = re.compile(  # what the papers leave out, and what an effect needs only sometimes; <file>:<column>
    r":([PR]_(small|large)|text_encoder_M|note)$"
    r"|_effects.csv:(setting|against_setting|printed|printed_against|direction)$|_measured.csv:numbers$"
)

HALF_STEP = 0.05  # a value printed with one decimal is known to +- 0.05
F1_TOLERANCE = 0.25  # F1 from P and R that are each rounded

# As printed, no set of test images gives both K of this row: see papers/README.md.
INCONSISTENT = {("hrcf_table1_sota.csv", "Open Images v4", "Gen-MLZSL", "ZSL")}


def markdown_rows(text: str, first_header: str) -> list[list[str]]:
    """Cells of the table whose first header cell is ``first_header``, without its two head lines."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(rf"\|\s*{re.escape(first_header)}\s*\|", line))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return rows


README = (PAPERS / "README.md").read_text(encoding="utf-8")
PAGES = markdown_rows(README, "page")
EQUATIONS = markdown_rows((PAPERS / "hrcf.md").read_text(encoding="utf-8"), "equations")
CODE = [
    ref
    for page in sorted(PAPERS.glob("*.md"))
    for ref in re.findall(r"`(hrcf_lib/[\w/]+\.py:[\w.]+)`", page.read_text(encoding="utf-8"))
]


def bibliography() -> dict[str, str]:
    """Key -> body of each BibTeX entry."""
    text = (PAPERS / "references.bib").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("%"))
    assert text.count("{") == text.count("}"), "unbalanced braces in references.bib"
    entries = re.findall(r"@\w+\{([^,\s]+),(.*?)\n\}", text, flags=re.S)
    keys = [key for key, _ in entries]
    assert len(keys) == text.count("@"), "an entry of references.bib does not parse"
    assert len(set(keys)) == len(keys), "a key of references.bib occurs twice"
    return dict(entries)


def precision_recall_rows():
    """(file, row, [(K, P, R, F1) at the small and the large K]) for rows that print P and R."""
    for path in TABLES:
        table = pd.read_csv(path)
        for _, row in table.iterrows():
            if "P_small" in table:
                cells = [(row[f"K_{s}"], row[f"P_{s}"], row[f"R_{s}"], row[f"F1_{s}"]) for s in ("small", "large")]
            elif "P@3" in table:
                cells = [(k, row[f"P@{k}"], row[f"R@{k}"], row[f"F1@{k}"]) for k in (3, 5)]
            else:
                continue
            if not any(pd.isna(value) for cell in cells for value in cell):
                yield path.name, row, cells


# --- published numbers


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_published_table_is_clean(path):
    table = pd.read_csv(path)
    assert len(table) > 0
    assert not table.duplicated().any()
    assert not any(name.startswith("Unnamed") or name != name.strip() for name in table.columns)
    names = [name for name in table.columns if name in TEXT_COLUMNS - {"note", "value", "gpu", "source_table"}]
    keys = names or list(table.columns[:3])  # ablation tables are keyed by their 0/1 columns
    assert not table.duplicated(subset=keys).any(), f"two rows share {keys}"
    for name in table.columns:
        column = table[name]
        assert MAY_BE_BLANK.search(f"{path.name}:{name}") or not column.isna().any(), f"blank in {name}"
        if name in TEXT_COLUMNS:
            continue
        assert pd.api.types.is_numeric_dtype(column), f"{name} is not numeric"
        known = column.dropna()
        assert (known >= 0).all(), f"negative value in {name}"
        if not NOT_PERCENT.match(name):
            assert (known <= 100).all(), f"{name} is not a percentage"


def test_f1_follows_from_precision_and_recall():
    wrong, checked = [], 0
    for name, row, cells in precision_recall_rows():
        if isinstance(row.get("note"), str):
            continue
        for k, p, r, f1 in cells:
            checked += 1
            if abs(2 * p * r / (p + r) - f1) > F1_TOLERANCE:
                wrong.append((name, row.get("method", row.get("model")), k, p, r, f1))
    assert checked > 100
    assert not wrong


def test_both_k_imply_the_same_number_of_labels_an_image():
    """K P / R is the mean number of positives an image, whatever the method: the intervals at both K must meet."""
    wrong = set()
    for name, row, cells in precision_recall_rows():
        low = max(k * (p - HALF_STEP) / (r + HALF_STEP) for k, p, r, _ in cells)
        high = min(k * (p + HALF_STEP) / (r - HALF_STEP) for k, p, r, _ in cells)
        if low > high:
            wrong.add((name, row.get("dataset"), row.get("method", row.get("model")), row.get("task")))
    assert wrong == INCONSISTENT


@pytest.mark.parametrize("name", ["partial_labels_map.csv", "semanticaware_table4_ablation.csv"])
def test_average_over_proportions(name):
    table = pd.read_csv(PAPERS / "published" / name)
    proportions = [column for column in table.columns if column.isdigit()]
    error = (table[proportions].mean(axis=1) - table["avg"]).abs()
    assert (error <= 2 * HALF_STEP + 1e-9).all(), table[error > 2 * HALF_STEP]


def test_tables_of_one_paper_agree():
    """The full HRCF on NUS-WIDE, ZSL, is printed in five tables."""
    published = PAPERS / "published"
    main = pd.read_csv(published / "hrcf_table1_sota.csv").query(
        "method == 'HRCF' and dataset == 'NUS-WIDE' and task == 'ZSL'"
    )
    expected = tuple(main[["F1_small", "F1_large", "mAP"]].iloc[0])
    full = {
        "hrcf_table2_hcg_hsa.csv": "HCG == 1 and RSA == 1 and RSS == 1",
        "hrcf_table3_prompts.csv": "prompt == 'Learnable + Fixed'",
        "hrcf_table4_distillation.csv": "model == 'HRCF' and task == 'ZSL'",
        "hrcf_table5_preclip.csv": "model == 'HRCF' and task == 'ZSL'",
        "hrcf_table6_parameters.csv": "method == 'HRCF'",
    }
    for name, query in full.items():
        row = pd.read_csv(published / name).query(query)
        assert tuple(row[["F1@3", "F1@5", "mAP"]].iloc[0]) == expected, name


ELSEWHERE = {"CLIP-BiAM": "ovml_table2_clip_backbones_nuswide"}  # BiAM on CLIP's features, not in HRCF's Table I
PRINTED_AT = {  # item of an effects table -> the table that prints it, the column that names its rows
    "Table I": ("hrcf_table1_sota", "method"),
    "Table II": ("hrcf_table2_hcg_hsa", ["HCG", "RSA", "RSS"]),
    "Table III": ("hrcf_table3_prompts", "prompt"),
    "Table IV": ("hrcf_table4_distillation", "model"),
    "Table V": ("hrcf_table5_preclip", "model"),
    "semantic-aware, Table 4": ("semanticaware_table4_ablation", "method"),
    "TRM-ML, Table 1": ("partial_labels_map", "method"),
}


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda e: f"{e.item}: {e.label}, {e.task}, {e.metric}")
def test_an_effect_compares_two_cells_of_its_table(effect):
    """Or says a direction, where its paper prints no number."""
    if effect.item not in PRINTED_AT:
        assert effect.direction in (1, -1) and pd.isna(effect.printed) and pd.isna(effect.printed_against)
        return
    for row, printed in ((effect.row, effect.printed), (effect.against, effect.printed_against)):
        file, names = PRINTED_AT[effect.item]
        frame = pd.read_csv(PAPERS / "published" / f"{ELSEWHERE.get(row, file)}.csv")
        frame = frame.rename(columns={"F1_small": "F1@3", "F1_large": "F1@5"})
        for column, value in (("dataset", effect.dataset), ("task", effect.task)):
            frame = frame[frame[column] == value] if column in frame else frame
        column = effect.metric if effect.metric in frame else "10"  # percent of labels known
        if isinstance(names, list):
            found = frame[(frame[names] == [name in row.split(" + ") for name in names]).all(axis=1)]
        else:
            found = frame[frame[names] == row]
        assert found[column].item() == printed


def test_effects_and_claims_name_notebooks_and_answers_that_exist():
    notebooks = {path.stem for path in (PAPERS.parent / "notebooks").glob("*.ipynb")}
    items = pd.read_csv(PAPERS / "published" / "hrcf_items.csv")
    assert {effect.notebook for effect in EFFECTS} | set(items["notebook"]) <= notebooks
    assert {effect.interval for effect in EFFECTS} == {"bootstrap", "seeds"}
    said, measured = (
        pd.read_csv(PAPERS / "published" / f"hrcf_{name}.csv") for name in ("text_claims", "claims_measured")
    )
    assert measured[["where", "claim"]].equals(said[["where", "claim"]])
    assert set(measured["answer"]) == set(claims.ANSWERS)


# --- pages


def test_readme_describes_every_table_and_column():
    described = {row[0].strip("`"): row[3] for row in markdown_rows(README, "file")}
    assert set(described) == {path.name for path in TABLES}
    for path in TABLES:
        text = described[path.name]
        if text.startswith("as ") or "{COCO" in text or "`10` ... `90`" in text:  # described in words
            continue
        assert set(pd.read_csv(path, nrows=0).columns) == set(re.findall(r"`([^`]+)`", text)), path.name


@pytest.mark.parametrize("row", PAGES, ids=lambda row: row[0])
def test_page_exists_and_is_in_the_bibliography(row):
    page = PAPERS / re.fullmatch(r"\[(.+)\]\(\1\)", row[0]).group(1)
    key = row[3].strip("`")
    assert key in bibliography()
    assert f"`{key}`" in page.read_text(encoding="utf-8"), f"{page.name} does not name its key {key}"
    title = re.search(r"title\s*=\s*\{(.+)\}", bibliography()[key]).group(1)
    assert title.lower() == row[1].lower()


def test_every_page_is_indexed_and_every_entry_is_named():
    indexed = {re.match(r"\[(.+?)\]", row[0]).group(1) for row in PAGES}
    assert indexed == {path.name for path in PAPERS.glob("*.md")} - {"README.md"}
    assert {key for key in bibliography() if f"`{key}`" not in README} == set()


@pytest.mark.parametrize("key", bibliography())
def test_entry_has_what_a_reference_needs(key):
    fields = dict(re.findall(r"(\w+)\s*=\s*\{(.*)", bibliography()[key]))
    assert {"title", "author", "year"} <= set(fields)
    assert {"journal", "booktitle", "publisher"} & set(fields)
    assert re.fullmatch(r"\d{4}\},?", fields["year"])
    assert "doi" not in fields or fields["doi"].startswith("10.")


@pytest.mark.parametrize("page", sorted(PAPERS.glob("*.md")), ids=lambda path: path.name)
def test_links_and_tables_named_on_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (PAPERS / target).exists(), target
    for name in re.findall(r"`published/([^`*]+\.csv)`", text):
        assert (PAPERS / "published" / name).exists(), name


# --- equations -> code


def test_equation_table_covers_the_paper():
    numbers = []
    for cell, *_ in EQUATIONS:
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", cell):
            numbers += range(int(first), int(last or first) + 1)
    assert sorted(numbers) == list(range(1, 22))  # each of the 21 equations once
    assert all(re.search(r"`hrcf_lib/[\w/]+\.py:\w+`", row[2]) for row in EQUATIONS)


@pytest.mark.parametrize("reference", CODE)
def test_equation_points_to_code(reference):
    file, name = reference.split(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        pytest.fail(f"{file} has no {name}")
    assert callable(found) or isinstance(found, property)
