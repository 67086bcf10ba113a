"""GPT-2: layer norms, learned positions, one layer for queries, keys and values, biases throughout."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from echelon.elsa.families.base import ConfigReader, Family, Linear, Sizes


@dataclass(frozen=True, kw_only=True)
class Gpt2Family(Family):
    """The family of GPT-2."""

    @override
    def sizes(self, config: ConfigReader, labels: int | None) -> Sizes:
        hidden, heads = config.size("n_embd"), config.size("n_head")
        return Sizes(
            layers=config.size("n_layer"),
            hidden=hidden,
            heads=heads,
            kv_heads=heads,
            head_dim=hidden // heads,
            intermediate=config.size("n_inner", 4 * hidden),
            vocabulary=config.size("vocab_size"),
            positions=config.size("n_positions"),
            types=0,
            tied=config.tied(True),
            labels=labels,
        )

    @override
    def block(self, sizes: Sizes) -> tuple[Linear, ...]:
        h, f = sizes.hidden, sizes.intermediate
        return (
            Linear("c_attn", h, 3 * h, True),
            Linear("c_proj", h, h),
            Linear("c_fc", h, f),
            Linear("c_proj", f, h),
        )

    @override
    def head_parameters(self, sizes: Sizes) -> int:
        norm = 2 * sizes.hidden
        if sizes.labels is not None:
            return norm + sizes.hidden * sizes.labels
        return norm + (0 if sizes.tied else sizes.vocabulary * sizes.hidden)

    @override
    def activations(self, sizes: Sizes) -> int:
        """10h + 5f + n + 4: h hidden, f intermediate, n heads. Its GELU is several operations."""
        return 10 * sizes.hidden + 5 * sizes.intermediate + sizes.heads + 4


GPT2 = Gpt2Family(model_type="gpt2", kernels=22)
