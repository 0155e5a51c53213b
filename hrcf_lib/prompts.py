r"""Hybrid prompt learning, HPL (Sec. III-D, Eqs. 18-19): from label names to label embeddings.

$$P_k = [v_1, \ldots, v_M, \text{there is a}, name_k, \text{.}], \qquad t_k = \mathrm{TextTower}(P_k)$$

The M vectors are learnt and shared by all labels; the template stays as it is, which is what keeps unseen labels in
place. Table III compares four kinds:

``fixed``      "A photo for multi-label classification, there is a {name}.", nothing learnt
``learnable``  the M vectors and the template's own four tokens are learnt: (M + 4) x C numbers
``hybrid``     the M vectors are learnt, the template is fixed: M x C numbers (the paper's choice)
``tuning``     MKT's: "There is a {name} in the scene", the token table is learnt, the rows that spell names are not

The counts are for a text tower of width 512 and its 49,408 tokens: 0, 6,144, 4,096 and 25,296,896.

Source: Sec. III-D and IV-D2 of HRCF (Ma et al., IEEE TMM 2025); ``tuning`` follows MKT's public code.
"""

import torch
from torch import Tensor, nn

from hrcf_lib.labels import check_names
from hrcf_lib.vlp import VLP, check_length, encode_tokens

START = "A photo for multi-label classification,"  # exactly 8 tokens: where the M vectors start from
TEMPLATE = ("there is a", ".")
TUNING_TEMPLATE = ("There is a", "in the scene")
KINDS = ("fixed", "learnable", "hybrid", "tuning")


class PromptLearner(nn.Module):
    r"""Label names -> embeddings (K, D), with the learnt part as parameters.

    Args:
        vlp: the frozen text tower (not kept: it is passed to ``forward``).
        kind: ``fixed``, ``learnable``, ``hybrid`` or ``tuning``.
        M: number of prompt vectors. They start from the token embeddings of ``START``, cut off or repeated to length.
            The kinds ``fixed`` and ``tuning`` have none and take no notice of it.

    Raises:
        ValueError: unknown kind, M below 1, or a text tower that never saw the words of ``START`` or the template.
    """

    def __init__(self, vlp: VLP, kind: str = "hybrid", M: int = 8):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"prompt {kind!r}: choose one of {', '.join(KINDS)}")
        if M < 1:
            raise ValueError(f"{M} prompt vectors: choose at least 1, or the kind 'fixed'")
        self.kind = kind
        table = vlp.model.token_embedding.weight.detach()
        ids = [] if kind == "tuning" else vlp.token_ids(START)
        if kind in ("learnable", "hybrid"):
            ids = [ids[m % len(ids)] for m in range(M)]
        before, after = (vlp.token_ids(part) for part in (TUNING_TEMPLATE if kind == "tuning" else TEMPLATE))
        self.n_before, self.n_after = len(before), len(after)
        self.register_buffer("start_ids", torch.tensor(ids, dtype=torch.long), persistent=False)
        self.register_buffer("template_ids", torch.tensor(before + after), persistent=False)
        if kind in ("learnable", "hybrid"):
            self.vectors = nn.Parameter(table[ids].clone())  # (M, C)  v_1 .. v_M of Eq. 18
        if kind == "learnable":
            self.template = nn.Parameter(table[before + after].clone())  # (4, C)
        if kind == "tuning":
            self.table = nn.Parameter(table.clone())  # (vocabulary, C)

    def forward(self, vlp: VLP, names) -> Tensor:
        r"""Embeddings t_k of ``names``: -> (K, D), not of unit length (Eq. 19).

        A name is spelt by itself, as Eq. 18 has it: where it ends in punctuation, "crane (bird)", the full stop of the
        template stays a token of its own, while a tokenizer that reads the whole sentence makes one token of ").".

        Raises ``ValueError`` for an empty list, empty or duplicate names, a name too long for the text tower, or a name
        with a token that this text tower never saw.
        """
        names = check_names(names)
        tokenizer, table = vlp.tokenizer, vlp.model.token_embedding.weight
        learnt = self.table if self.kind == "tuning" else table
        prefix = self.vectors if hasattr(self, "vectors") else learnt[self.start_ids]  # (M, C)
        template = self.template if hasattr(self, "template") else learnt[self.template_ids]  # (n_before + n_after, C)
        before, after = template.split([self.n_before, self.n_after])
        start, end = learnt[[tokenizer.sot_token_id]], learnt[[tokenizer.eot_token_id]]  # (1, C)
        rows = []
        for name in names:
            spelling = table[vlp.token_ids(name)]  # the rows that spell a name are never learnt
            rows.append(torch.cat([start, prefix, before, spelling, after, end]))  # (L_k, C)  Eq. 18
            check_length(name, len(rows[-1]), vlp.context_length)
        last = torch.tensor([len(row) - 1 for row in rows], device=table.device)
        embeddings = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (K, L, C)
        return encode_tokens(vlp.model, embeddings, last)  # (K, D)  Eq. 19
