"""The commands of a conversation, such as ``/retry``: one small function each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pyrllama.chat.conversation import ChatSettings
from pyrllama.chat.files import load_messages, save_messages
from pyrllama.cli.terminal import note, print_error
from pyrllama.core import Sampling
from pyrllama.errors import MessageError, SettingError
from pyrllama.sampling_ranges import SAMPLING_RANGES
from pyrllama.sampling_settings import SamplingSettings, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cli.chat_session import ChatSession

OFF = "off"
_CHAT_SETTINGS = ("max_tokens", "context_shift")
"""Fields of ``ChatSettings`` that ``/set`` knows beside those of ``Sampling``."""
_TRUTH = {"on": True, "true": True, "yes": True, OFF: False, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class Command:
    """What a command is called with, what it does, and how."""

    argument: str
    help: str
    run: Callable[[ChatSession, str], None]


def run_command(session: ChatSession, line: str) -> None:
    """Run a line such as ``/set temperature 0.7``; one that is not known is said to be none."""
    name, _, argument = line[1:].partition(" ")
    command = COMMANDS.get(name.strip().lower())
    if command is None:
        close = get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean /{close[0]}? " if close else ""
        print_error(
            f"there is no command /{name}; {meant}/help lists them, and a space before the / "
            f"makes it a message"
        )
        return
    command.run(session, argument.strip())


def _help(_: ChatSession, __: str) -> None:
    rows = [(f"/{name} {command.argument}", command.help) for name, command in COMMANDS.items()]
    rows += [
        ('Alt-Enter, \\ or """', 'another line; """ ends what it began'),
        ("Ctrl-C", "stop an answer and keep what came; throw a line away"),
        ("Ctrl-D", "leave"),
    ]
    width = max(len(left) for left, _ in rows)
    for left, right in rows:
        note(f"{left:{width}}  {right}")


def _system(session: ChatSession, text: str) -> None:
    conversation = session.conversation
    if text:
        conversation.system = None if text == OFF else text
    note(f"system prompt: {conversation.system or 'none'}")


def _retry(session: ChatSession, _: str) -> None:
    session.show_answer(session.conversation.retry)


def _undo(session: ChatSession, _: str) -> None:
    question = session.conversation.undo()
    note(f"taken back: {_shortened(question)}")


def _edit(session: ChatSession, text: str) -> None:
    question = session.conversation.undo()
    if text:
        session.show_answer(lambda: session.conversation.ask(text))
    else:
        session.draft = question


def _save(session: ChatSession, name: str) -> None:
    path = Path(name).expanduser() if name else session.saved_to
    if path is None:
        raise MessageError("say where: /save FILE")
    save_messages(path, session.conversation.messages)
    session.saved_to = path
    note(f"saved {_counted(len(session.conversation.messages))} to {path}")


def _load(session: ChatSession, name: str) -> None:
    if not name:
        raise MessageError("say what: /load FILE")
    path = Path(name).expanduser()
    session.conversation.replace(load_messages(path))
    session.saved_to = path
    note(f"loaded {_counted(len(session.conversation.messages))} from {path}")


def _set(session: ChatSession, text: str) -> None:
    conversation = session.conversation
    name, _, value = text.partition(" ")
    name = name.replace("-", "_")
    if name:
        conversation.settings = changed(conversation.settings, name, value.strip())
    settings = conversation.settings
    shown = {
        **dataclasses.asdict(session.sampling),
        **{field: getattr(settings, field) for field in _CHAT_SETTINGS},
    }
    chosen = {name: shown[name]} if name else shown
    note(", ".join(f"{field} {_spelled(value)}" for field, value in chosen.items()))


def _stats(session: ChatSession, _: str) -> None:
    state = session.conversation.state
    note(f"context {state.tokens} of {state.limit} tokens, {_turns(session)}")
    note(session.figures() or "no answer yet")


def _clear(session: ChatSession, _: str) -> None:
    session.conversation.clear()
    note("a new conversation; the system prompt stays")


def _quit(session: ChatSession, _: str) -> None:
    session.over = True


COMMANDS = {
    "help": Command("", "this list", _help),
    "system": Command(
        "[TEXT]", "show or set the system prompt; /system off takes it away", _system
    ),
    "retry": Command("", "answer the last message again", _retry),
    "undo": Command("", "take the last message and its answer back", _undo),
    "edit": Command("[TEXT]", "edit the last message, or put TEXT in its place", _edit),
    "save": Command("FILE", "save the conversation", _save),
    "load": Command("FILE", "go on with a saved conversation", _load),
    "set": Command("[NAME VALUE]", "show the settings, or change one: temperature 0.7", _set),
    "stats": Command("", "figures of the last answer, and how full the context is", _stats),
    "clear": Command("", "forget the conversation", _clear),
    "quit": Command("", "leave", _quit),
}


def changed(settings: ChatSettings, name: str, text: str) -> ChatSettings:
    """Return settings with one changed; raises ``SettingError`` for a name or value that is wrong.

    ``none`` is the value of what can be left open, ``on`` and ``off`` are truth values.
    """
    if name in _CHAT_SETTINGS:
        value = _parsed(name, _type_of(ChatSettings, name), text)
        if name == "max_tokens" and value is not None and value < 1:
            raise SettingError(name, value, "a whole number from 1 upwards")
        return dataclasses.replace(settings, **{name: value})
    names = [field.name for field in dataclasses.fields(Sampling)]
    if name not in names:
        allowed = ", ".join([*names, *_CHAT_SETTINGS])
        raise SettingError("the name of the setting", name, f"one of {allowed}")
    writing = {**settings.writing, name: _parsed(name, _type_of(Sampling, name), text)}
    new = dataclasses.replace(settings, writing=writing)
    resolve(request=sampler_settings(new))  # raises what is to be raised
    return new


def sampler_settings(settings: ChatSettings) -> SamplingSettings:
    """Return what is set of the sampler, without the answer's form."""
    given = {name: value for name, value in settings.writing.items() if name in SAMPLING_RANGES}
    return cast("SamplingSettings", given)


def _type_of(kind: type[ChatSettings | Sampling], name: str) -> str:
    """Return a field's type as it is written."""
    return next(str(field.type) for field in dataclasses.fields(kind) if field.name == name)


def _parsed(name: str, kind: str, text: str) -> Any:
    """Return the value of a text for a field whose type is written so."""
    optional = kind.endswith(" | None")
    kind = kind.removesuffix(" | None")
    if optional and text.lower() == "none":
        return None
    try:
        if kind == "bool":
            return _TRUTH[text.lower()]
        if kind in {"int", "float"}:
            return int(text) if kind == "int" else float(text)
    except (KeyError, ValueError):
        allowed = {"bool": "on or off", "int": "a whole number", "float": "a number"}[kind]
        raise SettingError(name, text, allowed + (" or none" if optional else "")) from None
    raise SettingError(name, text, "set when the program is started; see rllama chat --help")


def _spelled(value: object) -> str:
    match value:
        case bool():
            return "on" if value else OFF
        case None:
            return "none"
        case float():
            return f"{value:g}"
    return str(value)


def _turns(session: ChatSession) -> str:
    questions = sum(message["role"] == "user" for message in session.conversation.messages)
    dropped = session.conversation.dropped
    turns = "1 turn" if questions == 1 else f"{questions} turns"
    return f"{turns}, {dropped} of them dropped" if dropped else turns


def _counted(messages: int) -> str:
    return "1 message" if messages == 1 else f"{messages} messages"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
