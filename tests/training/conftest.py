"""Small models of three families, saved to disk, and a learner on two boundaries of text files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from echelon.training.learner import LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads

EOS = "<|end|>"


def pytest_configure() -> None:
    limit_threads()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the cat sat on the mat and the dog ran"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=EOS)


@pytest.fixture(scope="session")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Callable[[str], Path]:
    """Folder of a tiny model by family: llama, qwen2 or gpt2."""
    root = tmp_path_factory.mktemp("models")
    common = {"vocab_size": 300, "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None}
    width = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }

    def build(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            torch.manual_seed(3)
            if family == "llama":
                model = LlamaForCausalLM(LlamaConfig(**common, **width, tie_word_embeddings=True))
            elif family == "qwen2":
                model = Qwen2ForCausalLM(Qwen2Config(**common, **width, tie_word_embeddings=False))
            else:
                # GPT-2 comes with dropout in its configuration; adaptation must switch it off.
                model = GPT2LMHeadModel(GPT2Config(**common, n_embd=16, n_layer=2, n_head=2, n_positions=64))
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve text files in two folders of different content."""
    root = tmp_path_factory.mktemp("corpus")
    for folder, words in (("cats", "the cat sat on the mat "), ("dogs", "and a dog ran off again ")):
        (root / folder).mkdir()
        for number in range(6):
            (root / folder / f"{number}.txt").write_text(words * (20 + 5 * number) + str(number))
    return root


@pytest.fixture(scope="session")
def make_spec(model_folder: Callable[[str], Path], corpus: Path) -> Callable[..., LearnerSpec]:
    """A spec on the tiny models; keyword arguments go to its parts."""

    def make(
        family: str = "llama",
        *,
        model: dict[str, object] | None = None,
        adapter: dict[str, object] | None = None,
        train: dict[str, object] | None = None,
        seed: int = 0,
        base_seed: int = 0,
    ) -> LearnerSpec:
        return LearnerSpec.model_validate(
            {
                "model": {"model": str(model_folder(family)), **(model or {})},
                "adapter": {"rank": 2, "alpha": 4, **(adapter or {})},
                "train": {"batch_size": 2, "sequence_length": 16, **(train or {})},
                "boundaries": (
                    {
                        "name": "a",
                        "devices": ("a0", "a1"),
                        "data": {"source": f"text:{corpus}/cats/*.txt", "validation_fraction": 0.3},
                    },
                    {
                        "name": "b",
                        "devices": ("b0", "b1"),
                        "data": {"source": f"text:{corpus}/dogs/*.txt", "validation_fraction": 0.3},
                    },
                ),
                "seed": seed,
                "base_seed": base_seed,
            }
        )

    return make


@pytest.fixture(scope="session")
def learner(make_spec: Callable[..., LearnerSpec]) -> TorchLearner:
    """A learner on the tiny Llama, shared: a task leaves nothing behind that the next could see."""
    return TorchLearner(make_spec())
