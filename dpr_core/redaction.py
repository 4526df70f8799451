"""Redaction: keys and passwords are taken out of error texts and logs, and addresses are shown without them.

What a run keeps, such as the replies of a judge, is never changed.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

SHORTEST_KEY = 12
"""Characters. A shorter one may be an ordinary word, such as the `any` that is given to an endpoint without keys."""

LONGEST_SHOWN = 40
"""Characters of a refused setting."""

MOST_BITS_SHOWN = 128

MASK, KEY_MASK = "***", "<key>"

KEY_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|AUTH_STRING)$", re.IGNORECASE)
# Repeats before the deciding part are bounded: unbounded ones take quadratic time on a long text.
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'\"<>`]+")
KEY = re.compile(
    r"\b(?:(?:(?:sk|pk|rk)-|hf_|gh[pousr]_|pn[ub]_)(?=[A-Za-z0-9_.-]{0,200}?(?=[A-Za-z]{0,15}[0-9])[A-Za-z0-9]{16})"
    r"|(?:github_pat_|glpat-|xox[abeoprs]-|AKIA|AIza|eyJ)(?=[A-Za-z_.-]{0,200}[0-9]))[A-Za-z0-9_.-]{16,}"
)
"""Keys that can be told by how they begin. What names may begin with too is a key only with sixteen letters and digits
at a stretch: `hf_llama3_8b_instruct` is a folder, and `sk-` is Slovak."""
HEADER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)

_key_variables: set[str] = set()
"""Names of the variables that keys were read from."""


def address(uri: str) -> str:
    """An address as it may be shown: without password and query, and without a user that may be a token. Those may hold
    characters that they should not, such as a slash in a password."""
    scheme, mark, rest = uri.partition("://")
    # In an address of the hub `@` stands before a revision.
    if not mark or scheme == "hf":
        return uri
    # A file has no user: nothing stands before its first slash.
    before, at, rest = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
    user, colon, _ = before.partition(":")
    is_name = colon and user.isalnum() and len(user) < SHORTEST_KEY
    who = f"{user}:{MASK}" if is_name else MASK
    place, question, _ = rest.partition("?")
    return f"{scheme}://{who + at if at else ''}{place}{question and f'?{MASK}'}"


def redact(text: str, *addresses: str) -> str:
    """An error or a line of a log, without what the environment, or one of the addresses, holds of keys."""
    known = [*addresses, *filter(ADDRESS.match, os.environ.values())]
    for uri in known:
        if (shown := address(uri)) != uri:
            text = text.replace(uri, shown)
    secrets = {secret: MASK for uri in known for secret in _parts(uri)} | dict.fromkeys(_keys(), KEY_MASK)
    for secret in sorted(secrets, key=len, reverse=True):
        for form in _forms(secret):
            text = text.replace(form, secrets[secret])
    text = ADDRESS.sub(lambda found: address(found[0]), text)
    return HEADER.sub(rf"\1 {KEY_MASK}", KEY.sub(KEY_MASK, text))


def read_key(variable: str) -> str:
    """The key in an environment variable, which no object should hold and no message show; empty where there is none.
    ValueError for one that no header can carry."""
    _key_variables.add(variable)
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"the environment variable {variable} holds characters that no API key has; set it again")
    return key


def holds_key(text: str, key: str) -> bool:
    """Whether a text repeats a key, as it is or as it stands in an address."""
    return len(key) >= SHORTEST_KEY and any(form in text for form in _forms(key))


def places_of_keys(values: Mapping[str, Any]) -> Iterator[str]:
    """The names, joined by dots, of settings that hold what is known to be a key or begins like one."""
    known = set(_keys())
    waiting: list[tuple[str, Any]] = list(values.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{key}", each) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{name}.{number}", each) for number, each in enumerate(value)]
        elif isinstance(value, str) and (KEY.search(value) or any(key in value for key in known)):
            yield name


def shown_value(value: Any) -> str:
    """A setting that was refused, as an error may show it: whoever pastes a key into the wrong field must not read it
    again. Only a short text, or one of letters alone, is none."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS_SHOWN:
        return "a number of many digits"
    if not isinstance(value, str):
        return repr(value) if isinstance(value, int | float | None) else f"a {type(value).__name__}"
    if len(value) < SHORTEST_KEY or (len(value) <= LONGEST_SHOWN and re.fullmatch(r"[A-Za-z _-]*", value)):
        return repr(value)
    return f"a text of {len(value)} characters"


def redact_logs() -> None:
    """From now on no record of this process's logs holds a key, whoever logs and wherever it goes."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            text = record.getMessage()
        except Exception:
            # A handler would print the arguments as they are; without them it ends nobody's work.
            text = f"{record.msg!r} (it does not fit its arguments)"
            record.msg, record.args = text, ()
        if (shown := redact(text)) != text:
            record.msg, record.args = shown, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        return record

    redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(redacted)


def _keys() -> Iterator[str]:
    for name, value in os.environ.items():
        if (name in _key_variables or KEY_VARIABLE.search(name)) and len(key := value.strip()) >= SHORTEST_KEY:
            yield key


def _parts(uri: str) -> Iterator[str]:
    """What an address holds of secrets: the user's name is none beside a password."""
    shown, rest = address(uri), uri.partition("://")[2]
    if shown == uri:
        return
    user_and_password, _, place = rest.rpartition("@")
    user, colon, password = user_and_password.partition(":")
    settings = (setting.partition("=") for setting in place.partition("?")[2].split("&"))
    query = [value if equals else name for name, equals, value in settings]
    for secret in (password if colon else user, *re.split(r"[/?#@]", password if colon else user), *query):
        yield from {each for each in (secret, unquote(secret)) if len(each) >= SHORTEST_KEY}


def _forms(secret: str) -> set[str]:
    """As it is, in an address, in JSON."""
    return {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
