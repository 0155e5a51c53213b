r"""HRCF: composes the frozen VLP, clue gathering, hybrid prompts and score aggregation, and nothing else.

pictures -> trunk (frozen) -> last block (a copy that learns) -> LN -> HCG -> head -> e_g, regions
names    -> hybrid prompt  -> text tower (frozen)             -> t_k
e_g, regions, t_k -> HSA -> scores (B, K)
"""

import copy
import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hrcf_lib import config as configs
from hrcf_lib import scores, vlp
from hrcf_lib.prompts import PromptLearner
from hrcf_lib.regions import HierarchicalClueGathering


class HRCF(nn.Module):
    r"""Open-vocabulary multi-label classifier.

    Args:
        config: see ``hrcf_lib.config``.
        pretrained: ``False`` builds the VLP with random weights and needs no network.

    With CLIP ViT-B/16 the image side has 18,316,032 trainable parameters and the hybrid prompt 4,096.
    """

    def __init__(self, config: configs.Config, pretrained: bool = True):
        super().__init__()
        self.config = config
        self.reference_labels: tuple[
            str, ...
        ] = ()  # seen labels of training: the vocabulary that user labels are scored in
        torch.manual_seed(config.seed)
        self.vlp = vlp.load(config.vlp, config.vlp_weights, pretrained)
        visual = self.vlp.model.visual
        self.block = copy.deepcopy(visual.transformer.resblocks[-1]).requires_grad_(True)
        self.ln_post = copy.deepcopy(visual.ln_post).requires_grad_(True)
        if config.hcg:
            self.gather = HierarchicalClueGathering(self.vlp.C, self.vlp.N, config.merges, config.merge_starts_at_zero)
        self.head = nn.Linear(self.vlp.C, self.vlp.D, bias=False)  # MH, shared by the global token and the regions
        with torch.no_grad():
            self.head.weight.copy_(visual.proj.T)
        self.prompt = PromptLearner(self.vlp, config.prompt, config.prompt_vectors)

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        r"""Trunk tokens (B, 1 + N^2, C) -> global embedding e_g (B, D) and regions (B, J, D). Eqs. 1-4, 6-8."""
        tokens = self.ln_post(self.block(trunk))  # (B, 1 + N*N, C)  O_L = [x_g; R_1 .. R_{N^2}]
        x_g, patches = tokens[:, 0], tokens[:, 1:]
        regions = self.gather(patches) if self.config.hcg else patches  # (B, J, C)
        return self.head(x_g), self.head(regions)

    def label_embeddings(self, names) -> Tensor:
        """(K, D) embeddings of label names (Eqs. 18-19)."""
        return self.prompt(self.vlp, names)

    def score(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, K) scores by HSA; RSS takes part in evaluation mode only, if the config has it."""
        select = self.config.rss and not self.training
        return scores.score(e_g, regions, label_embeddings, self.config, select)

    def forward(self, images: Tensor, labels) -> Tensor:
        """Pictures (B, 3, side, side) and names (or embeddings (K, D)) -> scores (B, K)."""
        t = labels if isinstance(labels, Tensor) else self.label_embeddings(labels)
        with torch.no_grad():
            trunk = self.vlp.trunk(images)
        return self.score(*self.image_embeddings(trunk), t)

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything that is not the frozen VLP."""
        return {n: v for n, v in self.state_dict().items() if not n.startswith("vlp.")}

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``model.safetensors`` (trainable parts) and ``config.json`` (with name and hash of the VLP); no pickle."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: v.contiguous() for n, v in self.trainable_state().items()}, folder / "model.safetensors.part")
        (folder / "model.safetensors.part").replace(folder / "model.safetensors")
        about = {"config": self.config.to_dict(), "vlp_hash": self.vlp.hash, "reference_labels": self.reference_labels}
        (folder / "config.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes) -> "HRCF":
        r"""The model saved in ``folder`` (or in a repository of the Hugging Face hub); ``changes`` replace config values.

        Raises ``FileNotFoundError`` naming what the folder lacks, ``ValueError`` if weights or VLP do not fit.
        """
        folder = Path(folder)
        if not folder.exists() and len(folder.parts) == 2:
            folder = Path(snapshot_download(str(folder)))
        for file in ("config.json", "model.safetensors"):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder} holds no {file}: give a folder that HRCF.save_pretrained wrote")
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = cls(configs.from_dict(about["config"]).replace(**changes))
        if model.vlp.hash != about["vlp_hash"]:
            raise ValueError(
                f"{folder} was trained on a {model.config.vlp} with hash {about['vlp_hash']}, the one here has {model.vlp.hash}: "
                "give the same VLP weights (config.vlp_weights)"
            )
        model.load_trainable(load_file(folder / "model.safetensors"), folder / "model.safetensors")
        model.reference_labels = tuple(about["reference_labels"])
        return model.eval()

    def load_trainable(self, state: dict[str, Tensor], source) -> None:
        """Load what ``trainable_state`` gave. Raises ``ValueError`` listing names and shapes that do not fit."""
        frozen = {n: v for n, v in self.state_dict().items() if n.startswith("vlp.")}
        vlp.fit(self, state | frozen, source)
