"""What of a request is made anew for each attempt: a body by a template or a renderer, and headers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from cbq_exporter import item
from cbq_exporter.config import RendererBody, RequestConfig, TemplateBody
from cbq_exporter.config.files import Files, not_usable
from cbq_exporter.delivery import headers
from cbq_exporter.delivery.render_errors import RenderError
from cbq_exporter.delivery.renderers import Renderer
from cbq_exporter.delivery.templates import Template, TemplateError
from cbq_exporter.delivery.values import OF_BODIES, OF_HEADERS, Values
from cbq_exporter.errors import CONFIGURATION, ConfigError, Problem
from cbq_exporter.model import Claimed
from cbq_exporter.rendering import Attempt, Callback

_LONGEST_HEADER = 8192  # characters

# Claimed, URL, values and the most bytes, to a body and its header lines by their names. Raises RenderError.
_Body = Callable[[Claimed, str, Values, int], tuple[bytes, Mapping[str, str]]]


@dataclass(frozen=True, slots=True)
class Rendering:
    """Of one ``request`` section. ``body`` is None where it is posted as it is in the item."""

    secrets: Mapping[str, str]
    body: _Body | None
    header_templates: Mapping[str, Template]
    item_headers: Collection[str]

    def headers(
        self,
        fields: dict[str, msgspec.Raw],
        body: bytes,
        values: Values,
        fixed: Sequence[str],
        own: Mapping[str, str],
    ) -> list[str]:
        """Lines: of the same name, one by the renderer (``own``) goes before one of the item, before a configured one.

        Raises RenderError.
        """
        made = _from_item(fields, self.item_headers) if self.item_headers else {}
        for name, template in self.header_templates.items():
            if name.lower() not in made and name.lower() not in own:
                values.add("body", body)
                made[name.lower()] = _line(name, template.render(values.of(template.names), _LONGEST_HEADER))
        made.update(own)
        if not made:
            return list(fixed)
        return [*(one for one in fixed if one.partition(":")[0].lower() not in made), *made.values()]

    def masked(self, detail: str) -> str:
        """``detail`` without any secret: what goes wrong may say with which values."""
        for secret in self.secrets.values():
            detail = detail.replace(secret, "***")
        return detail


def rendering_of(request: RequestConfig, header_templates: Mapping[str, str], files: Files, place: str) -> Rendering:
    """Raises ConfigError; ``place`` is where the section stands."""
    secrets = {name: files.secret(source, f"{place}.secrets.{name}", name) for name, source in request.secrets.items()}
    return Rendering(
        secrets,
        _body(request, files, secrets, place),
        {name: _header(name, value, secrets, place) for name, value in header_templates.items()},
        frozenset(name.lower() for name in request.item_headers),
    )


def _body(request: RequestConfig, files: Files, secrets: Mapping[str, str], place: str) -> _Body | None:
    body, place = request.body, f"{place}.body"
    if isinstance(body, TemplateBody):
        source, name = str(body.template), body.template.name
        text = files.text(source, place)
        try:
            template = Template(text, name, known=OF_BODIES, secrets=secrets, escapes=_is_json(request))
        except TemplateError as error:
            raise not_usable(source, place, str(error), "must be a template that can be used") from None
        return partial(_by_template, template)
    if isinstance(body, RendererBody):
        try:
            renderer = Renderer(body.renderer)
        except ValueError as error:
            raise not_usable(body.renderer, place, str(error), "must be package.module:function") from error
        return partial(_by_renderer, renderer, secrets)
    return None


def _header(name: str, value: str, secrets: Mapping[str, str], place: str) -> Template:
    try:
        return Template(value, f"header {name}", known=OF_HEADERS, secrets=secrets, escapes=False)
    except TemplateError as error:
        problem = Problem(CONFIGURATION, f"{place}.headers.{name}", str(error), "must be a template that can be used")
        raise ConfigError((problem,)) from None


def _is_json(request: RequestConfig) -> bool:
    types = [value for name, value in request.headers.items() if name.lower() == "content-type"]
    return not types or "json" in types[0].lower()


def _by_template(
    template: Template, claimed: Claimed, url: str, values: Values, max_bytes: int
) -> tuple[bytes, Mapping[str, str]]:
    text = template.render(values.of(template.names), max_bytes)
    try:
        return text.encode(), {}
    except UnicodeEncodeError:
        raise RenderError("half of a surrogate pair comes out, which UTF-8 cannot write: | tojson can") from None


def _by_renderer(
    renderer: Renderer, secrets: Mapping[str, str], claimed: Claimed, url: str, values: Values, max_bytes: int
) -> tuple[bytes, Mapping[str, str]]:
    return renderer.render(
        Callback(values.webhook_id, url, claimed.payload, secrets),
        Attempt(claimed.attempts + 1, claimed.first_claimed_ms / 1000, values.now),
    )


def _from_item(fields: dict[str, msgspec.Raw], allowed: Collection[str]) -> dict[str, str]:
    """Lines of what the item gives in ``headers`` and may, by names in lower case. Raises RenderError."""
    given = item.value(fields, "headers")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise RenderError("the item's headers are no object")
    return {name.lower(): _line(name, value) for name, value in given.items() if name.lower() in allowed}


def _line(name: str, value: object) -> str:
    try:
        return headers.line(name, value)
    except ValueError as error:
        raise RenderError(str(error)) from None
