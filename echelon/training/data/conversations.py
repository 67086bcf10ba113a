"""Conversations of rows: whose turns they have, in the forms in which such data is found.

Taken are lists of messages as transformers' chat templates take them (`role`, `content`, and further fields such as
`tool_calls` or `reasoning_content`, which are handed to the template as they are), ShareGPT's `from` and `value`,
Alpaca's `instruction`, `input` and `output`, and TRL's `prompt` and `completion`, which are two texts or two lists of
messages. An answer whose `weight` is 0 is read and not learned, as in OpenAI's files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from echelon.config.training import DataSettings
from echelon.errors import ConfigError

MAX_TURNS = 1024
ASSISTANT = "assistant"
ROLES = frozenset({"system", "developer", "user", ASSISTANT, "tool", "function", "ipython"})
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "function_call": ASSISTANT,
    "observation": "tool",
    "function_response": "tool",
}
"""ShareGPT's names of roles; all others are as in `ROLES`."""
CONVERSATION_FIELDS = ("messages", "conversations")
ALPACA_FIELDS = ("instruction", "input", "output")
COMPLETION_FIELDS = ("prompt", "completion")
TOOLS_FIELD = "tools"
TEMPLATE_FIELD = "chat_template_kwargs"
"""A row's own values for variables of the chat template, as TRL has them."""
WEIGHT = "weight"
"""A message's field, 0 or 1, that says whether an answer is learned, as OpenAI's files for fine-tuning have it."""
PREFERENCE_FIELDS = ("chosen", "rejected")
MAX_NAME = 40
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type(None), "null"),
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "a text"),
    ((bytes, bytearray), "bytes"),
    ((list, tuple), "a list"),
    (Mapping, "an object with fields"),
)


class NoConversation(Exception):
    """A row has nothing to train on.

    Attributes:
        reason: why, the same words for all rows of one kind.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: who speaks.
        content: what is said; None where the message is a tool call alone.
        fields: all other fields of the message, for the chat template.
    """

    role: str
    content: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_learned(self) -> bool:
        """Whether it is an answer that counts: the assistant's, unless its weight is 0."""
        return self.role == ASSISTANT and self.fields.get(WEIGHT, 1) != 0

    def message(self) -> dict[str, Any]:
        """The message as a chat template takes it."""
        return {**self.fields, "role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Completion:
    """A text whose end is to be learned: no template, one text in the model's eyes.

    Attributes:
        prompt: what is given; its tokens do not count.
        text: how it goes on.
        whole: whether the prompt counts, too.
    """

    prompt: str
    text: str
    whole: bool = False

    def mended(self, mend: Callable[[str], str]) -> Completion:
        """The same with both texts replaced by what `mend` makes of them."""
        return Completion(mend(self.prompt), mend(self.text), self.whole)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in their order.

    Attributes:
        turns: who says what.
        tools: what is offered to the assistant; None: nothing.
        first: number of the first turn whose answer counts, from 0; what is before it is a prompt.
        whole: whether everything that is said counts, and not the answers alone.
        variables: further variables of the chat template.
    """

    turns: tuple[Turn, ...]
    tools: Any = None
    first: int = 0
    whole: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    def answered(self) -> Conversation:
        """The conversation up to its last answer: what follows it is nothing to learn, unless everything is."""
        if self.whole:
            return self
        last = max((index for index, turn in enumerate(self.turns) if turn.role == ASSISTANT), default=-1)
        return replace(self, turns=self.turns[: last + 1])

    @property
    def skips_answers(self) -> bool:
        """Whether some answers are not learned."""
        return self.first > 0 or any(turn.role == ASSISTANT and not turn.is_learned for turn in self.turns)

    @property
    def is_plain(self) -> bool:
        """Whether its turns say all of it."""
        return self == Conversation(self.turns)

    def mended(self, mend: Callable[[str], str]) -> Conversation:
        """The conversation with every text replaced by what `mend` makes of it."""

        def walk(value: Any) -> Any:
            if isinstance(value, str):
                return mend(value)
            if isinstance(value, Mapping):
                return {walk(key): walk(one) for key, one in value.items()}
            return [walk(one) for one in value] if isinstance(value, list | tuple) else value

        turns = tuple(Turn(turn.role, walk(turn.content), walk(turn.fields)) for turn in self.turns)
        return replace(self, turns=turns, tools=walk(self.tools), variables=walk(self.variables))


def kind_of(value: object) -> str:
    """What a row's value is, in words that name no type of a program."""
    for types, word in _KINDS:
        if isinstance(value, types):
            return word
    return "no text"


def named_fields(settings: DataSettings, there: Collection[str]) -> set[str]:
    """The fields of a row that are read.

    Args:
        settings: which fields the run file names.
        there: names that rows have.
    """
    names = (
        settings.text_field,
        settings.messages_field,
        settings.prompt_field,
        settings.answer_field,
        settings.label_field,
        settings.domain_field,
    )
    wanted = {name for name in names if name is not None}
    return wanted | {TOOLS_FIELD, TEMPLATE_FIELD, *_found_by_name(settings, there)}


def _found_by_name(settings: DataSettings, there: Collection[str]) -> tuple[str, ...]:
    """Fields of a conversation that the run file does not name and whose names say what they are."""
    named = settings.is_chat or settings.label_field is not None or settings.text_field in there
    if named or settings.text_field != DataSettings.model_fields["text_field"].default:
        return ()
    for name in CONVERSATION_FIELDS:
        if name in there:
            return (name,)
    if set(there).issuperset(COMPLETION_FIELDS):
        return COMPLETION_FIELDS
    return ALPACA_FIELDS if {"instruction", "output"} <= set(there) else ()


def conversation_of(
    settings: DataSettings, row: Mapping[str, Any], where: str
) -> Conversation | Completion | None:
    """The conversation of a row, or its text of two parts; None if it is a text.

    Args:
        settings: which fields are read.
        row: its fields.
        where: the row's place, for messages.

    Raises:
        NoConversation: nobody answers in it, or somebody unknown speaks.
        ConfigError: it has not the form of a conversation.
    """
    found = _conversation(settings, row, where)
    if found is None:
        return None
    whole = settings.loss == "all"
    if isinstance(found, Completion):
        return replace(found, whole=whole)
    variables = row.get(TEMPLATE_FIELD) or {}
    if not isinstance(variables, Mapping):
        raise ConfigError(
            f"{where}: field {TEMPLATE_FIELD!r} is {type(variables).__name__}, expected an object"
        )
    found = replace(found, tools=row.get(TOOLS_FIELD) or None, whole=whole, variables=dict(variables))
    if not whole:
        _check_answered(found.turns[found.first :])
    return found


def field_of(row: Mapping[str, Any], name: str, where: str) -> Any:
    """A row's value of a field.

    Args:
        row: its fields.
        name: of the field.
        where: the row's place, for messages.

    Raises:
        ConfigError: it has none; the message says what it has, and which settings name fields.
    """
    if name in row:
        return row[name]
    there = ", ".join(sorted(map(str, row))[:10])
    if set(PREFERENCE_FIELDS) <= set(row):
        raise ConfigError(
            f"{where} has no field {name!r}, but a chosen and a rejected answer: preferences are not trained on. Keep "
            "the chosen answers, as `prompt` and `completion`, or as `messages`"
        )
    raise ConfigError(
        f"{where} has no field {name!r}; it has: {there}. Name what is read: data.text_field, or data.messages_field, "
        "or data.prompt_field and data.answer_field"
    )


def _conversation(
    settings: DataSettings, row: Mapping[str, Any], where: str
) -> Conversation | Completion | None:
    if settings.prompt_field is not None and settings.answer_field is not None:
        return _asked_and_answered(row, settings.prompt_field, settings.answer_field, where)
    name = settings.messages_field
    if name is None:
        by_name = _found_by_name(settings, row)
        if by_name == ALPACA_FIELDS:
            return _asked_and_answered(row, "instruction", "output", where, more="input")
        if by_name == COMPLETION_FIELDS:
            return _completed(row, where)
        if not by_name:
            return None
        (name,) = by_name
    return Conversation(_turns(field_of(row, name, where), where))


def _turns(value: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_TURNS:
        raise ConfigError(f"{where}: a conversation is a list of at most {MAX_TURNS} messages")
    return tuple(_turn(message, where) for message in value)


def _completed(row: Mapping[str, Any], where: str) -> Conversation | Completion:
    """A prompt and how it goes on: texts, or lists of messages."""
    parts = [row[name] for name in COMPLETION_FIELDS]
    if all(isinstance(part, str) for part in parts):
        if not parts[1].strip():
            raise NoConversation("a completion without text")
        return Completion(*parts)
    if not all(isinstance(part, list | tuple) for part in parts):
        raise ConfigError(
            f"{where}: prompt is {type(parts[0]).__name__} and completion {type(parts[1]).__name__}, expected two "
            "texts or two lists of messages"
        )
    asked, said = (_turns(part, where) for part in parts)
    return Conversation((*asked, *said), first=len(asked))


def _asked_and_answered(
    row: Mapping[str, Any], prompt: str, answer: str, where: str, *, more: str = ""
) -> Conversation:
    texts = {}
    for name in (prompt, answer):
        if not isinstance(text := field_of(row, name, where), str):
            raise ConfigError(f"{where}: field {name!r} is {kind_of(text)}, expected text")
        texts[name] = text
    also = row.get(more) if more else None
    asked = f"{texts[prompt]}\n\n{also}" if isinstance(also, str) and also.strip() else texts[prompt]
    return Conversation((Turn("user", asked), Turn(ASSISTANT, texts[answer])))


def _check_answered(turns: tuple[Turn, ...]) -> None:
    answers = [turn for turn in turns if turn.role == ASSISTANT]
    if not answers:
        raise NoConversation("no turn of an assistant")
    if not any((turn.content or "").strip() or turn.fields for turn in answers):
        raise NoConversation("no turn of an assistant that has text")
    if not any(turn.is_learned for turn in answers):
        raise NoConversation("no turn of an assistant whose weight is not 0")


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise ConfigError(f"{where}: a message is an object with `role` and `content`")
    sharegpt = "from" in message and "role" not in message
    role = message.get("from" if sharegpt else "role")
    content = message.get("value" if sharegpt else "content")
    if not isinstance(role, str):
        raise ConfigError(
            f"{where}: a message has no `role`; it has: {', '.join(sorted(map(str, message))[:10])}"
        )
    role = SHAREGPT_ROLES.get(role, role) if sharegpt else role
    if role not in ROLES:
        raise NoConversation(f"unknown role {role[:MAX_NAME]!r} (known: {', '.join(sorted(ROLES))})")
    known = ("from", "value") if sharegpt else ("role", "content")
    # Readers of columns give every row every field; one that is None is not there.
    fields = {name: value for name, value in message.items() if name not in known and value is not None}
    if fields.get(WEIGHT, 1) not in (0, 1):
        raise ConfigError(f"{where}: a message's weight is {fields[WEIGHT]!r:.40}, expected 0 or 1")
    if content is None and not fields:
        raise NoConversation("a message without content")
    return Turn(role, _joined(content, where), fields)


def _joined(content: Any, where: str) -> str | None:
    """Content as text; parts of a list are joined, as templates that know of parts do."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ConfigError(
            f"{where}: a message's content is {type(content).__name__}, expected text or a list of parts"
        )
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise NoConversation(f"a part of a message that is no text ({str(kind)[:MAX_NAME]})")
        texts.append(text)
    return "".join(texts)
