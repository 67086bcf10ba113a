"""A conversation as one text, and which parts of it the assistant said.

The whole conversation is rendered once by the tokenizer's chat template and tokenized as one text: pieces that are
tokenized by themselves may get other tokens. Where the assistant speaks is a span of characters. Templates do not say
where that is, unless they have `{% generation %}`; so the conversation is also rendered up to each answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from echelon.errors import ConfigError
from echelon.training.data.conversations import ASSISTANT, Completion, Conversation, Turn

Render = Callable[[Sequence[Turn], bool], str]
"""Turns as text, and whether the header of the assistant's next answer is added; raises what a template raises."""
THOUGHT_ENDS = "</think>"


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as text.

    Attributes:
        text: the whole of it.
        spans: characters [start, end) that the assistant said, in order, end marks included.
        open_ended: whether no end mark follows the last answer.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    open_ended: bool


def has_marks(template: Any) -> bool:
    """Whether a chat template marks by itself what the assistant says."""
    return isinstance(template, str) and "endgeneration" in template


def renderer(conversation: Conversation, tokenizer: Any) -> Render:
    """How a conversation's turns become text: by the tokenizer's template, or plainly where it has none."""

    def by_template(turns: Sequence[Turn], prompt: bool) -> str:
        options = dict(conversation.variables)
        if conversation.tools is not None:
            options["tools"] = conversation.tools
        messages = [turn.message() for turn in turns]
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **options)
        )

    def plainly(turns: Sequence[Turn], prompt: bool) -> str:
        end = tokenizer.eos_token
        parts = []
        for turn in turns:
            if turn.content is None or conversation.tools is not None:
                raise ConfigError(
                    "it has no chat template, so it has no form for tool calls; set one in its files"
                )
            parts.append(f"### {turn.role}\n{turn.content}{end if turn.role == ASSISTANT else ''}\n\n")
        return "".join(parts) + ("### assistant\n" if prompt else "")

    return plainly if tokenizer.chat_template is None else by_template


def completed(completion: Completion) -> Rendering:
    """A text of two parts as one text; its end is ended as any text's is."""
    text = completion.prompt + completion.text
    start = 0 if completion.whole else len(completion.prompt)
    return Rendering(text, ((start, len(text)),), True)


def render(conversation: Conversation, tokenizer: Any, where: str) -> Rendering:
    """The conversation as text, with the spans of its answers.

    Args:
        conversation: its turns and tools.
        tokenizer: whose chat template renders it, and whose special tokens are end marks.
        where: the document's name, for messages.

    Raises:
        ConfigError: the template refuses the conversation, or changes an answer so that it cannot be found.
    """
    turns, rendered = conversation.answered().turns, renderer(conversation, tokenizer)
    try:
        whole = rendered(turns, False)
    except Exception as error:  # a template is a program and may raise anything, for example on a role
        raise ConfigError(
            f"{where}: the tokenizer's chat template refused the conversation: {error}"
        ) from error
    marks = sorted({str(one) for one in tokenizer.all_special_tokens if one}, key=len, reverse=True)
    if conversation.whole:
        return Rendering(whole, ((0, len(whole)),), not whole.rstrip().endswith(tuple(marks)))
    spans: list[tuple[int, int]] = []
    ended, place = True, 0
    for index, turn in enumerate(turns):
        if turn.role != ASSISTANT:
            place = _behind(whole, turn, place)
            continue
        span = _by_prefix(whole, turns, index, rendered) or _by_content(whole, turn, place)
        if span is None:
            raise ConfigError(
                f"{where}: the tokenizer's chat template changes what turn {index + 1} says, so the answer cannot be "
                "told from the rest; leave the conversation out, or use another template"
            )
        start, end = span
        end, ended = _with_end_mark(whole, start, end, marks)
        ended = ended or not turn.is_learned
        if start < end and index >= conversation.first and turn.is_learned:
            spans.append((start, end))
        place = max(place, end)
    return Rendering(whole, tuple(spans), not ended)


def _attempt(rendered: Render, turns: Sequence[Turn], prompt: bool) -> str | None:
    """A part of a conversation as text; None if the template refuses it, as some do where a user's turn is missing."""
    try:
        return rendered(turns, prompt)
    except Exception:  # the whole was rendered; a part that cannot be is looked for by its content instead
        return None


def _by_prefix(whole: str, turns: Sequence[Turn], index: int, rendered: Render) -> tuple[int, int] | None:
    """The span of an answer where the text up to it, and up to its end, begins the whole text."""
    after = _attempt(rendered, turns[: index + 1], False)
    before = _attempt(rendered, turns[:index], False)
    asked = _attempt(rendered, turns[:index], True)
    if after is None or before is None or asked is None or not whole.startswith(after):
        return None
    start = _common(asked, after)  # the header may announce a thought that this answer lacks
    if not after.startswith(before) or start < len(before):
        return None
    if asked == before:  # a template without a header to ask with: the answer begins with its words
        start = max(start, whole.find((turns[index].content or "").strip(), start, len(after)))
    return start, len(after)


def _common(one: str, other: str) -> int:
    """With how many equal characters two texts begin."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def _by_content(whole: str, turn: Turn, place: int) -> tuple[int, int] | None:
    """The span of an answer by its words, behind everything that was said before it."""
    content = turn.content or ""
    for text in (content, content.strip(), content.rpartition(THOUGHT_ENDS)[2].strip()):
        start = whole.find(text, place) if text else -1
        if start >= 0:
            return start, start + len(text)
    return None if content.strip() else (place, place)


def _behind(whole: str, turn: Turn, place: int) -> int:
    """The place behind what somebody else says, so that the same words in an answer are not taken for these."""
    text = (turn.content or "").strip()
    start = whole.find(text, place)
    return start + len(text) if text and start >= 0 else place


def _with_end_mark(whole: str, start: int, end: int, marks: Sequence[str]) -> tuple[int, bool]:
    """The end of an answer with the special token that ends it, and whether there is one.

    Some templates write it with the answer, others with the turn that follows, or leave it to the next role's header:
    in each case it is the first special token behind the answer, and what the model has to say to end it.
    """
    if any(whole[start:end].rstrip().endswith(mark) for mark in marks):
        return end, True
    rest = whole[end:]
    bare = rest.lstrip()
    for mark in marks:
        if bare.startswith(mark):
            return end + len(rest) - len(bare) + len(mark), True
    return end, False
