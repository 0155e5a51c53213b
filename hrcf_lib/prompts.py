r"""Hybrid prompt learning, HPL (Sec. III-E, Eqs. 18-19): from label names to label embeddings.

$$P_k = [v_1, \ldots, v_M, \text{there is a}, name_k, \text{.}], \qquad t_k = \mathrm{TextTower}(P_k)$$

The M vectors are learnt and shared by all labels; the template stays as it is, which is what keeps unseen labels in
place. Table III compares four kinds; one of them, "learnable", has two readings:

``fixed``      "A photo for multi-label classification, there is a {name}.", nothing learnt
``learnable``  P_l and P_m are learnt, as the text says: the M vectors and the template's own four tokens, (M + 4) x C
``coop``       CoOp's plain prompt [v_1 .. v_M {name}], without a template: M x C, the 0.004 M that the table prints
``hybrid``     the M vectors are learnt, the template is fixed: M x C numbers (the paper's choice)
``tuning``     as in MKT: the token table is learnt, except the rows that spell names

The counts are for a text tower of width 512 and its 49,408 tokens: 0, 6,144, 4,096, 4,096 and 25,296,896. ``tuning``
has MKT's template by default, "There is a {name} in the scene". The paper does not say which it had: with
``template="hrcf"`` it is that of ``fixed``, so that tuning alone differs.

The text tower is causal and all prompts begin alike, so the keys and values of [SOS, v_1 .. v_M, there is a] are
computed once, and every name runs through the tower with its own few tokens only (``encode_after``). Names of one
length run together, ``chunks.NAMES`` at a time, without padding. Embeddings and gradients are those of whole sentences.

Source: Secs. III-E and IV-D2 of HRCF (Ma et al., IEEE TMM 2025); ``tuning`` follows MKT's public code.
"""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib.engine import chunks
from hrcf_lib.labels import check_names
from hrcf_lib.vlp import VLP, check_length

START = "A photo for multi-label classification,"  # exactly 8 tokens: where the M vectors start from
TEMPLATE = ("there is a", ".")
TUNING_TEMPLATE = ("There is a", "in the scene")
KINDS = ("fixed", "learnable", "coop", "hybrid", "tuning")
VECTORS = ("learnable", "coop", "hybrid")  # kinds that learn v_1 .. v_M


class PromptLearner(nn.Module):
    r"""Label names -> embeddings (K, D), with the learnt part as parameters.

    Args:
        vlp: the frozen text tower (not kept: it is passed to ``forward``).
        kind: ``fixed``, ``learnable``, ``coop``, ``hybrid`` or ``tuning``.
        M: number of prompt vectors. They start from the token embeddings of ``START``, cut off or repeated to length.
            The kinds ``fixed`` and ``tuning`` have none and ignore it.
        template: of the kind ``tuning`` alone: ``mkt`` or ``hrcf``.

    Raises:
        ValueError: unknown kind or template, M below 1, or a text tower that never saw the words of ``START`` or
            the template.
    """

    def __init__(self, vlp: VLP, kind: str = "hybrid", M: int = 8, template: str = "mkt"):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"prompt {kind!r}: choose one of {', '.join(KINDS)}")
        if template not in ("mkt", "hrcf"):
            raise ValueError(f"template {template!r} of the prompt 'tuning': choose 'mkt' or 'hrcf'")
        if M < 1:
            raise ValueError(f"{M} prompt vectors: choose at least 1, or the kind 'fixed'")
        self.kind = kind
        table = vlp.model.token_embedding.weight.detach()
        start, words = START, TEMPLATE
        if kind == "tuning" and template == "mkt":
            start, words = "", TUNING_TEMPLATE
        elif kind == "coop":
            words = ("", "")
        ids = vlp.token_ids(start)
        if kind in VECTORS:
            ids = [ids[m % len(ids)] for m in range(M)]
        before, after = map(vlp.token_ids, words)
        self.n_before, self.n_after = len(before), len(after)
        self.register_buffer("start_ids", torch.tensor(ids, dtype=torch.long), persistent=False)
        self.register_buffer("template_ids", torch.tensor(before + after, dtype=torch.long), persistent=False)
        if kind in VECTORS:
            self.vectors = nn.Parameter(table[ids].clone())  # (M, C)  v_1 .. v_M of Eq. 18
        if kind == "learnable":
            self.template = nn.Parameter(table[before + after].clone())  # (4, C)
        if kind == "tuning":
            self.table = nn.Parameter(table.clone())  # (vocabulary, C)

    def forward(self, vlp: VLP, names) -> Tensor:
        r"""Embeddings t_k of ``names``: -> (K, D), not of unit length (Eq. 19).

        A name is spelt by itself, as Eq. 19 has it: where it ends in punctuation, "crane (bird)", the full stop of the
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
        head, tail = torch.cat([start, prefix, before]), torch.cat([after, end])  # (P, C), (T, C)  Eqs. 18-19
        spelt = vlp.spelt(names)
        for name, ids in zip(names, spelt):
            check_length(name, len(head) + len(ids) + len(tail), vlp.context_length)
        return encode_names(vlp.model, spelt, tail, keys_and_values(vlp.model, head))  # (K, D)  t_k of P = [P_l, P_m]


def encode_names(model, spelt: list[list[int]], tail: Tensor, past=(), head: Tensor | None = None) -> Tensor:
    r"""Embeddings (K, D) of texts that differ in the name, in the order of ``spelt``.

    Names of one length run through the tower together, ``chunks.NAMES`` or ``chunks.TOKENS`` numbers at a time; with
    more than ``chunks.TEXT`` in all blocks together, the backward pass computes each of these chunks a second time.

    Args:
        spelt: token ids of each name, whose embeddings are the tower's own.
        tail: (T, C), token embeddings behind each name.
        past: what ``keys_and_values`` returned for the tokens that all texts begin with.
        head: (K, P, C), token embeddings before each name; None for none.
    """
    table = model.token_embedding.weight

    def encode(ids: Tensor, before: Tensor | None) -> Tensor:
        tokens = torch.cat([table[ids], tail.expand(len(ids), -1, -1)], dim=1)  # (n, L + T, C)
        return encode_after(model, past, tokens if before is None else torch.cat([before, tokens], dim=1))  # (n, D)

    around = len(tail) + (0 if head is None else head.shape[1])  # tokens of each text beside its name
    most = chunks.fitting(chunks.TOKENS, table.shape[1])  # tokens at a time
    number = sum(map(len, spelt)) + len(spelt) * around  # of tokens
    large = torch.is_grad_enabled() and number * table.shape[1] * len(model.transformer.resblocks) > chunks.TEXT
    order, parts = [], []
    for _, same in groupby(sorted(range(len(spelt)), key=lambda k: len(spelt[k])), lambda k: len(spelt[k])):
        same = list(same)
        size = min(chunks.NAMES, chunks.fitting(most, len(spelt[same[0]]) + around))
        for part in torch.tensor(same).split(size):
            ids = torch.tensor([spelt[k] for k in part.tolist()], device=table.device)  # (n, L)
            before = None if head is None else head[part.to(head.device)]
            parts.append(chunks.recomputed(encode, ids, before, again=large))
            order.append(part)
    back = torch.cat(order).argsort().to(table.device)
    return torch.cat(parts)[back]  # (K, D)


def keys_and_values(model, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Token embeddings (P, C) that all texts begin with -> of each block, keys and values (1, heads, P, C / heads)."""
    return _walk(model, tokens[None], ())[1]


def encode_after(model, past: list[tuple[Tensor, Tensor]], tokens: Tensor) -> Tensor:
    r"""Embeddings of texts that begin with what ``keys_and_values`` was given: the rest (n, S, C) -> (n, D).

    The last token of each row is its end. Equal to ``encode_tokens`` of the whole texts, up to rounding.
    """
    x, _ = _walk(model, tokens, past, ends=not past)
    return model.ln_final(x[:, -1]) @ model.text_projection  # (n, D)


def _walk(model, x: Tensor, past, ends: bool = False) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Tokens (n, S, C) through the text tower's blocks, behind the P tokens of ``past``: outputs, keys and values.

    With ``ends`` the last block computes the output of each row's last token alone, (n, 1, C): no other is needed.
    """
    n, S, _ = x.shape
    P = past[0][0].shape[2] if past else 0
    x = x + model.positional_embedding[P : P + S]
    mask = model.attn_mask[P : P + S, : P + S]
    present = []
    for l, block in enumerate(model.transformer.resblocks):
        attn = block.attn
        qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)  # (n, S, 3 C)
        q, k, v = qkv.view(n, S, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # (n, heads, S, C / heads) each
        if past:
            k, v = (torch.cat([old.expand(n, -1, -1, -1), new], dim=2) for old, new in zip(past[l], (k, v)))
        present.append((k, v))
        if ends and l + 1 == len(model.transformer.resblocks):
            x, q, mask = x[:, -1:], q[:, :, -1:], mask[-1:]  # (n, 1, C), (n, heads, 1, C / heads), (1, S)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (n, heads, S or 1, C / heads)
        x = x + block.ls_1(attn.out_proj(seen.transpose(1, 2).flatten(2)))  # (n, S or 1, C)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x, present
