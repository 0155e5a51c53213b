"""The tiny CLIP that MKT's golden arrays were made with: its weights, and our towers around them."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch

from hrcf_lib.engine.weights import load_into
from hrcf_lib.vlp import VLP

FOLDER = Path(__file__).parent / "golden"
NAMES = json.loads((FOLDER / "mkt_prompt_text_names.json").read_text(encoding="utf-8"))
CONFIG = {  # as an open_clip model config; heads = width / 64
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 56, "layers": 3, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def arrays(name: str) -> dict[str, torch.Tensor]:
    """All arrays of a golden file."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def state() -> dict[str, torch.Tensor]:
    """Weights in open_clip's layout; the rows of the token table that no golden text uses are zero."""
    both = arrays("clip_tiny_visual_state") | arrays("clip_tiny_text_state")
    rows, values = both.pop("token_embedding.rows_idx").long(), both.pop("token_embedding.rows")
    both["token_embedding.weight"] = torch.zeros(49408, 64).index_copy(0, rows, values)
    return both


def vlp() -> VLP:
    """The frozen towers, for pictures that are normalised already (mean 0, deviation 1)."""
    model = open_clip.CLIP(**CONFIG)
    load_into(model, state(), "golden")
    return VLP("golden", model, open_clip.SimpleTokenizer(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).freeze()
