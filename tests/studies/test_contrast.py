"""Table III of OVML-VLP as configs, and how alike the masks of a picture's labels are."""

import doctest

import pytest
import synthetic
import torch
from torch.nn import functional as F

from hrcf_lib import config, methods
from hrcf_lib.studies import contrast


def test_rows_of_table_3():
    rows = contrast.table3(config.mini_short(), {"ovml_vlp": {"lr": 0.5, "contrastive": 0.1}})
    assert list(rows) == ["CLIP-ML", "CLIP, fine-tuned", "attention", "attention, L_con"]
    assert [row.method for row in rows.values()] == ["pre_clip", "clip_ft", "ovml_vlp", "ovml_vlp"]
    assert rows["CLIP-ML"].similarity == "cosine"
    assert [rows[name].contrastive for name in ("attention", "attention, L_con")] == [0.0, 0.1]
    assert [row.lr == 0.5 for row in rows.values()] == [False, False, True, True]
    assert rows["attention"].replace(contrastive=0.1) == rows["attention, L_con"], "nothing else differs"
    assert contrast.table3(config.nus_wide())["attention, L_con"].contrastive == 1.0, "the paper's weight"


def test_likeness_pair_by_pair():
    g = torch.Generator().manual_seed(0)
    masks, present = torch.rand(4, 5, 9, generator=g), torch.rand(4, 5, generator=g) < 0.6
    present[0], present[1] = False, torch.arange(5) == 2
    found = contrast.likeness(masks, present)
    assert found[:2].isnan().all() and not found[2:].isnan().any()
    for i in (2, 3):
        own = [masks[i, k] for k in range(5) if present[i, k]]
        pairs = [F.cosine_similarity(a, b, dim=0) for n, a in enumerate(own) for b in own[:n]]
        torch.testing.assert_close(found[i], sum(pairs) / len(pairs))
    with pytest.raises(ValueError, match=r"masks \(4, 5, 9\) and present \(4, 4\): give"):
        contrast.likeness(masks, present[:, 1:])


def test_likeness_of_a_models_masks():
    model = methods.build("ovml_vlp", synthetic.config(), pretrained=False).eval()
    data = synthetic.features()
    torch.nn.init.zeros_(model.attention.query.weight)
    assert contrast.mask_likeness(model, data, batch=3) == pytest.approx(1.0, abs=1e-5), "all labels look everywhere"
    torch.nn.init.normal_(model.attention.query.weight, std=3)
    values = [contrast.mask_likeness(model, data, batch=b) for b in (3, 10)]
    assert 0 < values[0] < 0.99 and values[0] == pytest.approx(values[1], rel=1e-5)
    with pytest.raises(ValueError, match="MKT has no attention masks .its map_kind is 'scores'.: give OVML-VLP"):
        contrast.mask_likeness(methods.build("mkt", synthetic.config(), pretrained=False), data)
    data.labels[:] = -1
    with pytest.raises(ValueError, match="no picture has two labels of ZSL"):
        contrast.mask_likeness(model, data, "ZSL")


def test_doctests():
    result = doctest.testmod(contrast)
    assert result.attempted and not result.failed
