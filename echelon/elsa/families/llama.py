"""Llama and Qwen2: RMS norms, rotary positions, grouped keys and values, a gated feed-forward layer."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from echelon.elsa.families.base import ConfigReader, Family, Linear, Sizes


@dataclass(frozen=True, kw_only=True)
class GatedFamily(Family):
    """A family of Llama's kind.

    Attributes:
        biases: whether queries, keys and values have biases.
    """

    biases: bool

    @override
    def sizes(self, config: ConfigReader, labels: int | None) -> Sizes:
        hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
        return Sizes(
            layers=config.size("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=config.size("num_key_value_heads", heads),
            head_dim=config.size("head_dim", hidden // heads),
            intermediate=config.size("intermediate_size"),
            vocabulary=config.size("vocab_size"),
            positions=0,
            types=0,
            tied=config.tied(False),
            labels=labels,
        )

    @override
    def block(self, sizes: Sizes) -> tuple[Linear, ...]:
        h, f, q, k = sizes.hidden, sizes.intermediate, sizes.query, sizes.key
        return (
            Linear("q_proj", h, q, True), Linear("k_proj", h, k, True), Linear("v_proj", h, k, True),
            Linear("o_proj", q, h), Linear("gate_proj", h, f), Linear("up_proj", h, f), Linear("down_proj", f, h),
        )  # fmt: skip

    @override
    def block_parameters(self, sizes: Sizes) -> int:
        weights = sum(linear.size for linear in self.block(sizes))
        biases = sizes.query + 2 * sizes.key if self.biases else 0
        return weights + biases + 2 * sizes.hidden

    @override
    def head_parameters(self, sizes: Sizes) -> int:
        if sizes.labels is not None:
            return sizes.hidden + sizes.hidden * sizes.labels
        return sizes.hidden + (0 if sizes.tied else sizes.vocabulary * sizes.hidden)

    @override
    def activations(self, sizes: Sizes) -> int:
        """4h + 2q + 2k + 4f + n + 2: h hidden, q and k widths of queries and keys, f intermediate, n heads."""
        widths = 4 * sizes.hidden + 2 * sizes.query + 2 * sizes.key + 4 * sizes.intermediate
        return widths + sizes.heads + 2

    @override
    def widened(self, sizes: Sizes) -> int:
        return 2 * sizes.hidden


LLAMA = GatedFamily(model_type="llama", kernels=30, biases=False)
QWEN2 = GatedFamily(model_type="qwen2", kernels=33, biases=True)
