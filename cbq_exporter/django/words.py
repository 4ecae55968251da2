"""What the services say to an operator, in the language of the project.

They speak English, to logs and the audit too. What is said where a plan is refused, or no longer fits, is found by its
form; anything else, such as an error of Redis, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from django.utils.translation import gettext as _

from cbq_exporter.django.settings import names_a_file

_KNOWN: tuple[tuple[str, Callable[[], str]], ...] = (
    (
        r"several queues are configured: say which is meant \((?P<known>.*)\)",
        lambda: _("several queues are configured: say which is meant (%(known)s)"),
    ),
    (
        r"no queue (?P<name>.+) is configured: there is (?P<known>.*)",
        lambda: _("no queue %(name)s is configured: there is %(known)s"),
    ),
    (
        r"no reset (?P<id>.+) of (?P<queue>\S+) is in the trash: there is nothing",
        lambda: _("no reset %(id)s of %(queue)s is in the trash: there is nothing"),
    ),
    (
        r"no reset (?P<id>.+) of (?P<queue>\S+) is in the trash: there is (?P<known>.+)",
        lambda: _("no reset %(id)s of %(queue)s is in the trash: there is %(known)s"),
    ),
    (
        r"(?P<most>\d+) resets of (?P<queue>\S+) are kept already: undo one, or wait until one expires",
        lambda: _("%(most)s resets of %(queue)s are kept already: undo one, or wait until one expires"),
    ),
    (
        r"nothing was changed: the lock is not as it was planned \(held by (?P<holder>.*)\); look again with status",
        lambda: _("nothing was changed: the lock is not as it was planned (held by %(holder)s); look at --status"),
    ),
    (
        r"nothing was changed: (?P<planned>\S+) callbacks? to \w+ were planned, now it is (?P<now>\S+); look again",
        lambda: _("nothing was changed: %(planned)s callbacks were planned, now it is %(now)s; look at --status"),
    ),
    (
        r"nothing was changed: there is nothing left to move",
        lambda: _("nothing was changed: there is nothing left to move"),
    ),
)


# Where the daemon and the commands have their server from.
_OF_A_FILE = re.compile(r"redis\.url, or CBQ_REDIS_URL, which goes before it")


def translated(said: str) -> str:
    if not names_a_file():
        said = _OF_A_FILE.sub("CACHES or CBQ_EXPORTER in the settings", said)
    for form, words in _KNOWN:
        if found := re.fullmatch(form, said, re.DOTALL):
            return words() % found.groupdict()
    return said
