"""BERT: attention in both directions, learned positions and token types, a head with a layer of its own."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from echelon.elsa.families.base import ConfigReader, Family, Linear, Sizes


@dataclass(frozen=True, kw_only=True)
class BertFamily(Family):
    """The family of BERT."""

    @override
    def sizes(self, config: ConfigReader, labels: int | None) -> Sizes:
        hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
        return Sizes(
            layers=config.size("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=heads,
            head_dim=hidden // heads,
            intermediate=config.size("intermediate_size"),
            vocabulary=config.size("vocab_size"),
            positions=config.size("max_position_embeddings"),
            types=config.size("type_vocab_size"),
            tied=config.tied(True),
            labels=labels,
        )

    @override
    def block(self, sizes: Sizes) -> tuple[Linear, ...]:
        h, f = sizes.hidden, sizes.intermediate
        return (
            Linear("query", h, h, True), Linear("key", h, h, True), Linear("value", h, h, True),
            Linear("dense", h, h), Linear("dense", h, f), Linear("dense", f, h),
        )  # fmt: skip

    @override
    def embedding_parameters(self, sizes: Sizes) -> int:
        return super().embedding_parameters(sizes) + 2 * sizes.hidden  # the norm

    @override
    def head_parameters(self, sizes: Sizes) -> int:
        h = sizes.hidden
        if sizes.labels is not None:
            pooler = h * h + h
            return pooler + (h + 1) * sizes.labels
        transform = h * h + 3 * h + sizes.vocabulary
        # Untied, the output layer has weights of its own, and a second bias.
        return transform + (0 if sizes.tied else sizes.vocabulary * (h + 1))

    @override
    def head_linears(self, sizes: Sizes) -> tuple[Linear, ...]:
        """The head's transform, or a classifier's pooler."""
        return (Linear("dense", sizes.hidden, sizes.hidden),)

    @override
    def activations(self, sizes: Sizes) -> int:
        """8h + 2f + n + 4: h hidden, f intermediate, n heads."""
        return 8 * sizes.hidden + 2 * sizes.intermediate + sizes.heads + 4


BERT = BertFamily(model_type="bert", causal=False, kernels=16)
