"""Table II: all eight combinations in order, and the steps of the paper."""

import itertools

import pandas as pd
import pytest

from hrcf_lib import config
from hrcf_lib.studies import records, table2


def test_rows_are_all_combinations_and_four_are_the_papers():
    keys = list(itertools.product(table2.VARIANTS, ("", table2.WITHOUT_RSS)))
    mixed = pd.DataFrame({"mAP": range(8)}, index=pd.MultiIndex.from_tuples(keys)).sample(frac=1, random_state=0)
    table = table2.in_order(mixed)
    assert table.index.names == ["HCG", "RSA", "RSS", "in the paper"] and len(table) == 8
    assert table.loc[(1, 1, 1, "yes"), "mAP"] == keys.index(("HRCF", ""))
    assert table.loc[(0, 1, 0, ""), "mAP"] == keys.index(("without HCG", "without RSS"))
    printed = [row[:3] for row in table.index if row[3]]
    assert printed == list(
        records.published("hrcf_table2_hcg_hsa")[["HCG", "RSA", "RSS"]].itertuples(index=False, name=None)
    )


@pytest.mark.parametrize(("metric", "steps"), [("mAP", (0.2, 1.2, 0.5)), ("F1@3", (2.5, 1.9, 0.1))])
def test_steps_of_the_paper(metric, steps):
    assert list(table2.paper_steps(metric).values()) == pytest.approx(steps, abs=1e-9)
    assert set(table2.paper_steps(metric)) < set(table2.STEPS)


def test_every_pair_is_of_something_that_is_run_and_changes_one_thing():
    pairs = [*table2.STEPS.values(), *table2.STEPS_AS_PRINTED.values(), *table2.FORMS.values()]
    pairs = [[(side, "") if isinstance(side, str) else side for side in pair] for pair in pairs]
    asked = {side for pair in pairs for side in pair}
    assert {v for v, _ in asked} == set(table2.VARIANTS) and {s for _, s in asked} == set(table2.SETTINGS)
    of = lambda side: config.mini().replace(**table2.VARIANTS[side[0]] | table2.SETTINGS[side[1]]).changes()
    assert all(len(of(a).items() ^ of(b).items()) == 1 for a, b in pairs)
    sides = [side for pair in table2.STEPS_AS_PRINTED.values() for side in pair]
    assert all(setting.startswith(table2.PRINTED) for _, setting in sides)


def test_short_variants_are_configs_of_their_own():
    short = [repr(config.mini_short().replace(**changes)) for changes in table2.SHORT.values()]
    assert len(set(short)) == len(short)
