"""What ``manage.py check`` says of the settings. It asks no server.

cbq.E001  CBQ_EXPORTER is not what it has to be
cbq.E002  a value in it, or in the file that it names, is wrong: one for each
cbq.E003  the cache that Redis is to be taken from is none, or not in Redis
cbq.E004  the Redis of that cache cannot be used
cbq.W001  like cbq.E003, where there is no CBQ_EXPORTER
"""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - the word of Django

from cbq_exporter.django.settings import WrongSetting, configuration
from cbq_exporter.errors import ConfigError


def check_settings(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    try:
        configuration()
    except WrongSetting as wrong:
        level = Warning if wrong.id.startswith("cbq.W") else Error
        return [level(str(wrong), hint=wrong.hint, id=wrong.id)]
    except ConfigError as error:
        hint = "cbq-exporter explain configuration.md says what each key may be."
        return [Error(str(problem), hint=hint, id="cbq.E002") for problem in error.problems]
    return []
