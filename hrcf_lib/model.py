r"""HRCF: composes the frozen VLP, clue gathering, hybrid prompts and score aggregation, and nothing else.

pictures -> trunk (frozen) -> last block (a copy that learns) -> LN -> HCG -> head -> e_g, regions
names    -> hybrid prompt  -> text tower (frozen)             -> t_k
e_g, regions, t_k -> HSA -> scores (B, K)

B pictures, N side of the patch grid, J regions, K labels, C width of the ViT, D embedding width.
Source: Sec. III and Fig. 2 of HRCF (Ma et al., IEEE TMM 2025), which has no public code.
"""

import copy
import json
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from hrcf_lib import config as configs
from hrcf_lib import devices, scores, vlp, weights
from hrcf_lib.prompts import PromptLearner
from hrcf_lib.regions import HierarchicalClueGathering

FILES = ("config.json", "model.safetensors")  # what ``save_pretrained`` writes
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name on the Hugging Face hub; no path from . or /


class HRCF(nn.Module):
    r"""Open-vocabulary multi-label classifier.

    Args:
        config: see ``hrcf_lib.config``.
        pretrained: ``False`` builds the VLP with random weights and needs no network.

    Attributes: ``vlp`` frozen; ``block``, ``ln_post``, ``gather``, ``head`` the image side; ``prompt`` the text side;
    ``reference_labels`` the seen labels of training, the vocabulary that a user's own labels are scored in.

    Raises what ``vlp.load`` raises, and ``ValueError`` for more merges than the VLP's grid can take.

    With CLIP ViT-B/16 the image side has 18,316,032 trainable parameters and the hybrid prompt 4,096. Whatever is drawn
    at random depends on ``config.seed`` alone, and the global random state stays as it was.
    """

    def __init__(self, config: configs.Config, pretrained: bool = True):
        super().__init__()
        self.config = config
        self.reference_labels: tuple[str, ...] = ()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.vlp = vlp.load(config.vlp, config.vlp_weights, pretrained)
            visual = self.vlp.model.visual
            self.block = copy.deepcopy(visual.transformer.resblocks[-1]).requires_grad_(True)
            self.ln_post = copy.deepcopy(visual.ln_post).requires_grad_(True)
            if config.hcg:
                how = (config.merges, config.merge_starts_at_zero, config.levels, config.shared_merges)
                self.gather = HierarchicalClueGathering(self.vlp.C, self.vlp.N, *how)
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
        r"""(K, D) embeddings of label names (Eqs. 18-19). Raises ``ValueError`` for names that it cannot take."""
        return self.prompt(self.vlp, names)

    def score(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        r"""(B, D), (B, J, D), (K, D) -> (B, K) by HSA; RSS takes part in evaluation mode only, if the config has it."""
        select = self.config.rss and not self.training
        return scores.score(e_g, regions, label_embeddings, self.config, select)

    def forward(self, images: Tensor, labels) -> Tensor:
        r"""Pictures (B, 3, side, side), uint8 or float in 0..1, and names (or embeddings (K, D)) -> scores (B, K).

        They rank the labels of a picture against each other; with ``config.normalize_fusion`` they are in -1..1.
        """
        t = labels if isinstance(labels, Tensor) else self.label_embeddings(labels)
        with torch.no_grad():
            trunk = self.vlp.trunk(images)
        return self.score(*self.image_embeddings(trunk), t)

    @torch.no_grad()
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, side, side) -> e_g (B, D) and regions (B, J, D), float32, without gradient, in ``autocast``.

        What inference calls; ``forward`` computes in the precision that its caller chooses.
        """
        with self.autocast():
            e_g, regions = self.image_embeddings(self.vlp.trunk(images))
        return e_g.float(), regions.float()

    def autocast(self) -> torch.autocast:
        """What trunk and image side run in: bfloat16 if ``config.bf16`` and the device has it."""
        return devices.autocast(self.head.weight.device, self.config.bf16)

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything that is not the frozen VLP."""
        return {n: v for n, v in self.state_dict().items() if not n.startswith("vlp.")}

    def load_trainable(self, state: dict[str, Tensor], source) -> None:
        """Load what ``trainable_state`` gave. Raises ``ValueError`` listing names and shapes that do not fit."""
        frozen = {n: v for n, v in self.state_dict().items() if n.startswith("vlp.")}
        weights.fit(self, state | frozen, source)

    def save_pretrained(self, folder: str | Path) -> Path:
        r"""Write ``model.safetensors`` (trainable parts) and ``config.json`` (config, hash of the VLP, seen labels).

        The VLP itself is not written. Returns the folder, which is made if need be.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights.write(self.trainable_state(), folder / "model.safetensors")
        about = {"config": self.config.to_dict(), "vlp_hash": self.vlp.hash, "reference_labels": self.reference_labels}
        (folder / "config.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes) -> "HRCF":
        r"""The model saved in ``folder``, in evaluation mode; ``changes`` replace config values.

        ``folder`` may also name a repository ``owner/name`` of the Hugging Face hub. Raises ``FileNotFoundError`` that
        says what is missing, ``ValueError`` if config, weights or VLP do not fit, and what ``vlp.load`` raises.
        """
        folder = _folder(folder)
        try:
            about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config, expected, seen = configs.from_dict(about["config"]), about["vlp_hash"], about["reference_labels"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'config.json'} is not a config of HRCF.save_pretrained: {error!r}") from error
        model = cls(config.replace(**changes))
        if model.vlp.hash != expected:
            raise ValueError(
                f"{folder} was trained on {config.vlp} with hash {expected}, the {model.vlp.name} here has "
                f"{model.vlp.hash}: give the same VLP (vlp, vlp_weights)"
            )
        model.load_trainable(weights.read(folder / "model.safetensors"), folder / "model.safetensors")
        model.reference_labels = tuple(seen)
        return model.eval()


def _folder(source: str | Path) -> Path:
    """A folder of ``save_pretrained`` on this machine, fetched from the hub first where the name is of that kind."""
    folder = Path(source)
    if not folder.exists() and REPOSITORY.fullmatch(str(source)):
        try:
            cached_only = not weights.online()
            folder = Path(snapshot_download(str(source), allow_patterns=FILES, local_files_only=cached_only))
        except Exception as error:  # no such repository, no access, no network: every kind of its own
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(
                f"{source} is no folder here, and the hub gave none of that name: {reason}"
            ) from error
    for file in FILES:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} holds no {file}: give a folder that HRCF.save_pretrained wrote")
    return folder
