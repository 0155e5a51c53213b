"""The paper pages, the bibliography and the published numbers agree with each other and with the code."""

import functools
import importlib
import operator
import re
from pathlib import Path

import pandas as pd
import pytest

from hrcf_lib.report import Report, claims, effects, overview
from hrcf_lib.report.records import MINI

PAPERS = Path(__file__).parents[2] / "papers"
TABLES = sorted((PAPERS / "published").glob("*.csv"))
EFFECTS = [(paper, effect) for paper in effects.PAPERS for effect in effects.planned(paper)]
INDEX = pd.read_csv(PAPERS / "published" / "index.csv").fillna("")
OWN = {"index", "claims_measured"} | {f"{name}_effects" for name in effects.PAPERS.values()}  # say what is compared

# Tables and figures of each paper, counted in its text. HRCF and OVML-VLP number tables in Roman numerals.
COUNTS = {"HRCF": (6, 7), "OVML-VLP": (3, 3), "BiAM": (8, 11), "TRM-ML": (6, 4), "semantic-aware": (4, 9)}
ROMAN = ("I", "II", "III", "IV", "V", "VI")

# Columns that hold words. Every other column of every file must be numeric.
TEXT_COLUMNS = {
    "against", "against_setting", "against_variant", "answer", "claim", "compare", "counted", "dataset", "features",
    "files", "gpu", "interval", "item", "label", "method", "metric", "model", "not_comparable", "note", "notebook",
    "numbers", "paper", "prompt", "reason", "row", "setting", "shows", "source", "source_table", "task",
    "trainable_params", "value", "variant", "where", "why",
}  # fmt: skip
NOT_PERCENT = re.compile(r"K_|.*_(M|G|GB|ms)$|ms_|seconds_|train_(minutes|hours)")  # numeric, but no percentage
MAY_BE_BLANK = re.compile(  # what the papers leave out, and what an effect needs only sometimes; <file>:<column>
    r":([PR]_(small|large)|text_encoder_M|note)$"
    r"|_effects.csv:(at|setting|against_setting|printed|printed_against|difference|direction|not_comparable)$"
    r"|_measured.csv:numbers$|index.csv:(files|reason|notebook|counted|printed|why)$"
    r"|single_positive_all.csv:\w+_(LL|SPLC)$"
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
    names += ["at"] if "at" in table else []
    keys = names or list(table.columns[:3])  # ablation tables are keyed by their 0/1 columns
    assert not table.duplicated(subset=keys).any(), f"two rows share {keys}"
    for name in table.columns:
        column = table[name]
        assert MAY_BE_BLANK.search(f"{path.name}:{name}") or not column.isna().any(), f"blank in {name}"
        if name in TEXT_COLUMNS or path.stem == "index":
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


WITH_AVERAGE = [
    "partial_labels_map", "semanticaware_table2_map", "semanticaware_table4_ablation", "trmml_table1_partial_labels",
    "trmml_table4_complete_regions",
]  # fmt: skip


@pytest.mark.parametrize("name", WITH_AVERAGE)
def test_average_over_proportions(name):
    table = pd.read_csv(PAPERS / "published" / f"{name}.csv")
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


def test_numbers_that_stand_in_two_files_are_the_same():
    """Two files hold a selection of rows for notebooks 13 and 14; BiAM's full method is in three of its tables."""
    read = lambda name: pd.read_csv(PAPERS / "published" / f"{name}.csv")
    for part, whole, keys in (
        ("trmml_table2_single_positive", read("trmml_table2_single_positive_all"), ["method"]),
        (None, read("trmml_table1_partial_labels").assign(source="TRM-ML"), ["source", "dataset", "method"]),
        (None, read("semanticaware_table2_map").assign(source="SemanticAware"), ["source", "dataset", "method"]),
    ):
        rows = read(part) if part else read("partial_labels_map").query("source in @whole.source")
        numbers = [column for column in rows.columns if column not in keys]
        both = rows.merge(whole, on=keys, how="left", suffixes=("", "_whole"))
        assert both[numbers].equals(both[[f"{column}_whole" for column in numbers]].set_axis(numbers, axis=1))
    blocks = read("biam_table3_blocks_nuswide").query("features == 'BiAM (RCB + SCB)'")
    main = read("biam_table1_nuswide").query("method == 'BiAM'")
    assert blocks[["mAP", "F1@3", "F1@5"]].to_numpy().tolist() == main[["mAP", "F1@3", "F1@5"]].to_numpy().tolist()
    assert read("biam_table4_attention_nuswide_zsl")["mAP"].max() == main["mAP"].max()


# --- every table and figure of the five papers


@pytest.mark.parametrize("paper", effects.PAPERS)
def test_every_table_and_figure_is_in_the_index(paper):
    tables, figures = COUNTS[paper]
    items = INDEX[INDEX["paper"] == paper]["item"].tolist()
    numbers = ROMAN[:tables] if paper in ("HRCF", "OVML-VLP") else range(1, tables + 1)
    wanted = [f"Table {n}" for n in numbers] + [f"Fig. {n}" for n in range(1, figures + 1)]
    assert [item for item in items if not item.startswith("Sec.")] == wanted


def test_an_item_has_its_numbers_or_the_reason_why_there_are_none():
    assert set(INDEX["paper"]) == set(effects.PAPERS) == set(COUNTS)
    assert INDEX["compare"].isin(overview.COMPARE).all()
    files, notebooks = (
        {path.stem for path in TABLES},
        {path.stem for path in (PAPERS.parent / "notebooks").glob("*.ipynb")},
    )
    for entry in INDEX.to_dict("records"):
        named = entry["files"].split()
        assert named or entry["reason"], entry
        assert set(named) <= files, entry
        only_text = all(name.endswith("_text_claims") for name in named)
        assert entry["reason"] or not only_text or entry["item"].startswith("Sec."), f"say why no numbers: {entry}"
        assert entry["notebook"] in notebooks or not entry["notebook"] and entry["compare"] != "direction", entry
        assert entry["why"] or entry["compare"] != "no", f"say why it is not comparable: {entry}"
        assert bool(entry["counted"]) == bool(entry["printed"]) == (entry["compare"] == "number"), entry
    held = {name for names in INDEX["files"] for name in names.split()}
    assert held | OWN == files, "a file of published numbers belongs to no table or figure"


@pytest.mark.parametrize("paper", effects.PAPERS)
def test_effects_and_claims_belong_to_an_item(paper):
    entries = {entry["item"]: entry for entry in overview.index(paper)}
    planned = effects.planned(paper)
    for effect in planned:
        (item,) = (item for item in entries if effects.belongs(effect.item, item))
        assert entries[item]["compare"] == "direction" or effect.not_comparable, effect
    said = pd.read_csv(PAPERS / "published" / f"{effects.PAPERS[paper]}_text_claims.csv")
    measured = pd.read_csv(PAPERS / "published" / "claims_measured.csv").query("paper == @paper")
    keys = ["where", "claim", "dataset"]
    assert measured[keys].to_numpy().tolist() == said[keys].to_numpy().tolist()
    labels = {effect.label for effect in planned}
    for row in measured.query("answer == 'effects'").dropna().to_dict("records"):
        assert set(row["numbers"].split("; ")) <= labels, row


# --- what is compared


@functools.cache
def of_file(name: str) -> pd.DataFrame:
    frame = pd.read_csv(PAPERS / "published" / f"{name}.csv")
    return frame.rename(columns={"F1_small": "F1@3", "F1_large": "F1@5"})


def printed_cells(paper: str, effect) -> list[float]:
    """The two cells of the paper's table that an effect names, from the files of its item."""
    (entry,) = (e for e in overview.index(paper) if effects.belongs(effect.item, e["item"]))
    return [next(cells(entry["files"].split(), effect, row)) for row in (effect.row, effect.against)]


def cells(files, effect, row):
    for file in files:
        frame = pd.read_csv(PAPERS / "published" / f"{file}.csv").rename(
            columns={"F1_small": "F1@3", "F1_large": "F1@5"}
        )
        for column, value in (("dataset", effect.dataset), ("task", effect.task)):
            frame = frame[frame[column] == value] if column in frame else frame
        column = effect.metric if pd.isna(effect.at) else f"{effect.at:.0f}"  # percent of labels known
        on = [name for name in frame if name in ("HCG", "RSA", "RSS", "finetune", "attention", "L_con")]
        names = next((name for name in ("method", "features", "prompt", "model") if name in frame), None)
        if on:
            found = frame[(frame[on] == [part in row.split(" + ") for part in on]).all(axis=1)]
        else:
            found = frame[frame[names] == row] if names else frame[:0]
        if len(found):
            yield found[column].item()


@pytest.mark.parametrize(
    ("paper", "effect"), EFFECTS, ids=[f"{p}, {e.item}: {e.label}, {e.task}, {e.metric}" for p, e in EFFECTS]
)
def test_an_effect_compares_two_cells_of_its_table(paper, effect):
    """Or numbers of a claim, or says a direction where its paper prints none."""
    both, alone = [effect.printed, effect.printed_against], [effect.difference]
    numbers = [n for n in both + alone if not pd.isna(n)]
    assert numbers in ([], both, alone), "two cells, or their difference alone"
    if not numbers:
        assert effect.direction in (1, -1)
        return
    assert pd.isna(effect.direction)
    (entry,) = (e for e in overview.index(paper) if effects.belongs(effect.item, e["item"]))
    if any(not name.endswith("_text_claims") for name in entry["files"].split()):
        assert printed_cells(paper, effect) == [effect.printed, effect.printed_against]
        return
    said = pd.read_csv(PAPERS / "published" / f"{effects.PAPERS[paper]}_text_claims.csv")
    said = " ".join(said[said["where"].str.contains(effect.item, regex=False)]["value"])
    assert all(f"{number:g}" in re.findall(r"[\d.]*\d", said.replace("82.0", "82")) for number in numbers)


def test_effects_and_claims_name_notebooks_and_answers_that_exist():
    notebooks = {path.stem for path in (PAPERS.parent / "notebooks").glob("*.ipynb")}
    assert {effect.notebook for _, effect in EFFECTS} <= notebooks
    assert {effect.interval for _, effect in EFFECTS} == {"bootstrap", "seeds"}
    measured = pd.read_csv(PAPERS / "published" / "claims_measured.csv")
    assert set(measured["answer"]) == {*claims.ANSWERS, "effects", "none", "not yet"}


# --- pages


def test_counts_of_the_readme_are_those_of_the_records(monkeypatch):
    monkeypatch.delenv("HRCF_SIZE", raising=False)
    counts = Report().summary()[f"ours ({MINI})"]
    kept = [name for name in counts.index if name != "all"]
    stated = {row[0]: list(map(int, row[1:])) for row in markdown_rows(README, "paper")}
    assert stated == {name: counts.loc[name].tolist() for name in kept}


def test_readme_describes_every_table_and_column():
    described = {name: row[3] for row in markdown_rows(README, "file") for name in re.findall(r"`([^`]+)`", row[0])}
    assert set(described) == {path.name for path in TABLES}
    for path in TABLES:
        text = described[path.name]
        if text.startswith("as ") or "{COCO" in text or "_sd" in text or "`10` ... `90`" in text:  # described in words
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


EQUATIONS_OF = {"hrcf": 21, "ovml_vlp": 10, "biam": 10, "trm_ml": 15, "semantic_aware": 14}  # printed in each paper


@pytest.mark.parametrize("page", EQUATIONS_OF)
def test_equation_table_covers_the_paper(page):
    """Each equation that the paper numbers has a line with the code that computes it."""
    text = (PAPERS / f"{page}.md").read_text(encoding="utf-8")
    lines = [line.split("|")[1] for line in text.splitlines() if re.match(r"\|.*`hrcf_lib/[\w/]+\.py:[\w.]+`", line)]
    numbers = set()
    for cell in lines:
        cell = re.sub(r"\$.*?\$|(Fig|Table|top)\S*.*", "", cell)
        for first, last in re.findall(r"\b(\d+)(?:-(\d+))?\b", cell):
            numbers |= set(range(int(first), int(last or first) + 1))
    assert set(range(1, EQUATIONS_OF[page] + 1)) <= numbers


def test_each_equation_of_hrcf_has_one_line():
    numbers = []
    for cell, *_ in EQUATIONS:
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", cell):
            numbers += range(int(first), int(last or first) + 1)
    assert sorted(numbers) == list(range(1, 22))
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
