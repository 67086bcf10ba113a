"""Conversations are one text: its tokens are trained, and those of the answers count, end marks included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from echelon.errors import ConfigError
from echelon.training.data.conversations import Completion, Conversation, Turn
from echelon.training.data.encode import encode
from echelon.training.data.packing import pack_training
from echelon.training.data.sources import RawDocument

MARKS = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
WORDS = [
    "The pump is open",
    "open the valve The seal is shut",
    "answer: Yes No open shut pump\n",
    "Hello there",
] * 20
TALK = (
    Turn("user", "open the valve"),
    Turn("assistant", "The pump is open"),
    Turn("user", "open the seal"),
    Turn("assistant", "Yes"),
)
HEAD = "<|{{m['role']}}|>\n{{ m['content'] }}"
ASK = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
ENDED = (
    "{% for m in messages %}" + HEAD + "{% if m['role']=='assistant' %}</s>{% endif %}\n{% endfor %}" + ASK
)
BY_NEXT_TURN = (
    "{% for m in messages %}{% if not loop.first %}<|end|>{% endif %}"
    + HEAD
    + "{% endfor %}"
    + ("{% if add_generation_prompt %}<|end|><|assistant|>\n{% endif %}")
)
BY_NEXT_ROLE = "{% for m in messages %}" + HEAD + "{% endfor %}" + ASK
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + ENDED
LAST_DIFFERS = (
    "{% for m in messages %}"
    + HEAD
    + "{% if loop.last and m['role']=='assistant' %}!{% endif %}</s>{% endfor %}"
    + ASK
)
MARKED = (
    "{% for m in messages %}<|{{m['role']}}|>\n{% if m['role']=='assistant' %}{% generation %}{{ m['content'] }}</s>"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}" + ASK
)
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{m['role']}}|>\n{% if m.tool_calls %}"
    "{{ m.tool_calls | tojson }}{% else %}{{ m['content'] }}{% endif %}</s>\n{% endfor %}" + ASK
)


def tokenizer(pieces: str, template: str | None) -> PreTrainedTokenizerFast:
    """A small byte-pair tokenizer: with Metaspace, as Llama 2 and Mistral have, or of bytes, as GPT-2 has."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    if pieces == "bytes":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=pieces, split=True)
        core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=pieces)
        alphabet = list("abcdefghijklmnopqrstuvwxyz<|>/:!.\n▁{}[]\",'_0123456789")
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=MARKS, show_progress=False, initial_alphabet=alphabet
    )
    core.train_from_iterator(WORDS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|end|>"],
    )
    made.chat_template = template
    return made


def encoded(made: PreTrainedTokenizerFast, *turns: Turn, tools: Any = None) -> Any:
    [document] = encode([RawDocument("c", "c", Conversation(turns, tools))], made)
    return document


def counted(made: PreTrainedTokenizerFast, document: Any) -> str:
    return str(made.decode(document.tokens[document.counted].tolist()))


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("pieces", ["first", "always", "never", "bytes"])
@pytest.mark.parametrize("template", [ENDED, BY_NEXT_TURN, BY_NEXT_ROLE, LAST_DIFFERS, MARKED])
def test_what_is_trained_are_the_tokens_of_the_whole_rendering(pieces: str, template: str) -> None:
    made = tokenizer(pieces, template)
    document = encoded(made, *TALK)
    messages = [turn.message() for turn in TALK]
    text = made.apply_chat_template(messages, tokenize=False)
    assert document.tokens.tolist() == made(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("pieces", ["first", "always", "bytes"])
@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (ENDED, "The pump is open</s>Yes</s>"),
        (BY_NEXT_TURN, "The pump is open<|end|>Yes"),
        (BY_NEXT_ROLE, "The pump is open<|user|>Yes"),
        (MARKED, "The pump is open</s>Yes</s>"),
        (None, "The pump is open</s>Yes</s>"),
    ],
)
def test_answers_count_with_what_ends_them(pieces: str, template: str | None, answers: str) -> None:
    made = tokenizer(pieces, template)
    assert squeezed(counted(made, encoded(made, *TALK))) == squeezed(answers)


@pytest.mark.parametrize("pieces", ["first", "always", "never", "bytes"])
def test_of_a_prompt_and_its_completion_the_latter_counts(pieces: str) -> None:
    made = tokenizer(pieces, ENDED)
    content = Completion("open the valve", " The pump is open")
    [document] = encode([RawDocument("c", "c", content)], made)
    together = made("open the valve The pump is open", add_special_tokens=False)["input_ids"]
    assert document.tokens.tolist() == together  # one text, and no template
    assert counted(made, document).strip() == "The pump is open"
    assert document.open_ended
    [whole] = encode([RawDocument("c", "c", replace(content, whole=True))], made)
    assert whole.counted.all()


@pytest.mark.parametrize("template", [ENDED, MARKED])
def test_answers_within_a_prompt_do_not_count(template: str) -> None:
    made = tokenizer("bytes", template)
    [document] = encode([RawDocument("c", "c", Conversation(TALK, first=3))], made)
    assert squeezed(counted(made, document)) == "Yes</s>"


@pytest.mark.parametrize(("template", "open_ended"), [(ENDED, False), (MARKED, False), (BY_NEXT_ROLE, True)])
def test_everything_counts_where_the_data_says_so(template: str, open_ended: bool) -> None:
    made = tokenizer("bytes", template)
    for talk in (TALK[:3], TALK):
        [document] = encode([RawDocument("c", "c", Conversation(talk, whole=True))], made)
        assert document.counted.all()
        text = made.apply_chat_template([turn.message() for turn in talk], tokenize=False)
        assert made.decode(document.tokens.tolist()) == text
    assert document.open_ended is open_ended


def test_variables_of_a_row_reach_the_template() -> None:
    made = tokenizer("bytes", "{{ mood | default('calm') }}" + ENDED)
    [document] = encode([RawDocument("c", "c", Conversation(TALK, variables={"mood": "shut"}))], made)
    assert str(made.decode(document.tokens.tolist())).startswith("shut<|user|>")


def test_where_nothing_ends_the_last_answer_the_end_of_sequence_counts() -> None:
    for template, open_ended in ((ENDED, False), (BY_NEXT_TURN, True), (BY_NEXT_ROLE, True)):
        made = tokenizer("bytes", template)
        document = encoded(made, *TALK)
        assert document.open_ended is open_ended
        blocks = pack_training([document], 256, made.eos_token_id)
        last = blocks.lengths[0] - 1  # the target behind the document: the mark between documents
        assert bool(blocks.counted[0, last]) is open_ended


@pytest.mark.parametrize("template", [ENDED, BY_NEXT_TURN, MARKED, None])
def test_an_assistant_may_speak_first(template: str | None) -> None:
    made = tokenizer("bytes", template)
    document = encoded(made, Turn("assistant", "Hello there"), Turn("user", "open"), Turn("assistant", "Yes"))
    assert "Hello there" in counted(made, document)
    assert "user" not in counted(made, document).replace("<|user|>", "")


def test_a_template_that_wants_a_user_first_says_so() -> None:
    made = tokenizer("bytes", STRICT)
    assert "The pump is open" in counted(made, encoded(made, *TALK))
    with pytest.raises(
        ConfigError, match="c: the tokenizer's chat template refused the conversation: user first"
    ):
        encoded(made, *TALK[1:])


def test_the_same_words_from_another_role_are_not_taken_for_the_answer() -> None:
    made = tokenizer("bytes", "{{ messages | length }}" + ENDED)  # no prefix of the whole is ever rendered
    document = encoded(
        made, Turn("user", "Yes"), Turn("assistant", "Yes"), Turn("user", "open"), Turn("assistant", "open")
    )
    assert counted(made, document) == "Yes</s>open</s>"
    before = made("4<|user|>\nYes\n<|assistant|>", add_special_tokens=False)["input_ids"]
    assert document.counted.nonzero()[0][0] >= len(before)


def test_tool_calls_count_and_tools_are_offered() -> None:
    made = tokenizer("bytes", TOOLS)
    call = Turn("assistant", None, {"tool_calls": [{"name": "look"}]})
    document = encoded(made, TALK[0], call, Turn("tool", "open"), TALK[3], tools=[{"name": "look"}])
    assert squeezed(counted(made, document)) == '[{"name":"look"}]</s>Yes</s>'
    assert made.decode(document.tokens.tolist()).startswith('[{"name": "look"}]<|user|>')
    with pytest.raises(ConfigError, match="has no form for tool calls"):
        encoded(tokenizer("bytes", None), TALK[0], call)


def test_what_follows_the_last_answer_is_not_read() -> None:
    for template in (ENDED, MARKED):
        made = tokenizer("bytes", template)
        document = encoded(made, *TALK, Turn("user", "shut"))
        assert "shut" not in made.decode(document.tokens.tolist())


WEIGHED = (
    Turn("user", "open the valve"),
    Turn("assistant", "The pump is open", {"weight": 0}),
    Turn("user", "open the seal"),
    Turn("assistant", "Yes", {"weight": 1}),
    Turn("user", "shut"),
    Turn("assistant", "No", {"weight": 0}),
)


@pytest.mark.parametrize("pieces", ["first", "bytes"])
@pytest.mark.parametrize("template", [ENDED, LAST_DIFFERS, MARKED, None])
def test_answers_of_weight_0_are_read_and_not_learned(pieces: str, template: str | None) -> None:
    made = tokenizer(pieces, template)
    document = encoded(made, *WEIGHED)
    assert squeezed(counted(made, document)) == "Yes</s>"
    assert squeezed("The pump is open") in squeezed(str(made.decode(document.tokens.tolist())))
    assert not document.open_ended
