"""``manage.py callback_queue_tools``: look at the queue, release its lock, recover, reset."""

from __future__ import annotations

import time
from argparse import SUPPRESS
from datetime import UTC, datetime
from typing import Any

from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from cbq_exporter.config.kinds import write_duration
from cbq_exporter.django.tools import QueueStatus, get_queue_status, open_desk
from cbq_exporter.django.words import translated
from cbq_exporter.errors import CbqError, RefusedError
from cbq_exporter.logs import printable
from cbq_exporter.phrases import age
from cbq_exporter.services.operations import Plan, Recover, Reset, Undo, Unlock

_YES = ("yes", "y", "是")
_NEWEST = ""  # --undo without an id


class Command(BaseCommand):
    """Steps are taken in the order status, unlock, recover, reset, undo, whatever the order of the options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = _("Look at the callback queue, release its lock, recover what is stuck in it, or reset it.")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--status", action="store_true", help=_("Show what the queue holds, and its lock."))
        parser.add_argument("--unlock", action="store_true", help=_("Release the send lock, whoever holds it."))
        parser.add_argument(
            "--recover", action="store_true", help=_("Put what is in processing back to the head of pending.")
        )
        parser.add_argument(
            "--reset", action="store_true", help=_("Move everything of the queue to the trash. Asks before.")
        )
        parser.add_argument(
            "--undo", nargs="?", const=_NEWEST, metavar="ID", help=_("Put back what a reset has moved.")
        )
        parser.add_argument("--noinput", "--no-input", action="store_false", dest="interactive", help=_("Do not ask."))
        parser.add_argument("--queue", help=_("Which queue, where several are configured."))
        parser.add_argument("--why", default="", metavar="TEXT", help=_("The reason, for the audit."))
        parser.add_argument("--reason", dest="why", default=SUPPRESS, help=SUPPRESS)  # what people write first

    def handle(self, *args: Any, **options: Any) -> None:
        queue, why = options["queue"], options["why"]
        if options["undo"] is None and not any(options[step] for step in ("status", "unlock", "recover", "reset")):
            self.print_help("manage.py", "callback_queue_tools")
            return
        try:
            if options["status"]:
                self._show(get_queue_status(queue))
            if options["unlock"]:
                async_to_sync(self._unlock)(queue, why)
            if options["recover"]:
                async_to_sync(self._recover)(queue, why)
            if options["reset"]:
                self._reset(queue, why, ask=options["interactive"])
            if options["undo"] is not None:
                async_to_sync(self._undo)(options["undo"] or None, queue, why)
        except CbqError as error:
            raise CommandError(printable(translated(str(error)), 2000), returncode=error.exit_code) from error

    def _show(self, status: QueueStatus) -> None:
        lock = pgettext("the send lock", "free")
        if status["lock_status"] == "locked":
            lock = _("held by %(holder)s") % {"holder": printable(status["lock_value"] or "")}
        last = _("not in the last minute")
        if status["last_send_time"] is not None:
            at = timezone.localtime(datetime.fromtimestamp(status["last_send_time"], UTC))
            ago = age(time.time() - status["last_send_time"])
            last = _("%(time)s, %(age)s ago") % {"time": f"{at:%Y-%m-%d %H:%M:%S}", "age": ago}
        self.stdout.write(self.style.MIGRATE_HEADING(_("The callback queue")))
        self.stdout.write(_("  pending:    %(count)d") % {"count": status["pending_count"]})
        self.stdout.write(_("  processing: %(count)d") % {"count": status["processing_count"]})
        self.stdout.write(_("  send lock:  %(lock)s") % {"lock": lock})
        self.stdout.write(_("  last send:  %(last)s") % {"last": last})

    async def _unlock(self, queue: str | None, why: str) -> None:
        async with open_desk(queue, reason=why) as desk:
            plan = await desk.plan(lambda name: Unlock(name, force=True))
            await desk.execute(plan)
        if plan.lock is None:
            self.stdout.write(_("There is no lock to release."))
        else:
            self._done(_("Released the send lock of %(holder)s.") % {"holder": printable(plan.lock.shown)})

    async def _recover(self, queue: str | None, why: str) -> None:
        async with open_desk(queue, reason=why) as desk:
            executed = await desk.execute(await desk.plan(Recover))
        count = executed.counts["callbacks"]
        self._done(
            ngettext("Put %(count)d callback back to pending.", "Put %(count)d callbacks back to pending.", count)
            % {"count": count}
        )

    def _reset(self, queue: str | None, why: str, *, ask: bool) -> None:
        plan, keep = async_to_sync(self._plan_reset)(queue)
        if plan.nothing_to_do:
            self.stdout.write(_("There is nothing to reset."))
            return
        if ask and not self._agrees_to_reset(plan, keep):
            async_to_sync(self._decline_reset)(plan, queue, why)
            raise CommandError(_("The reset was cancelled: nothing was changed."), returncode=RefusedError.exit_code)
        async_to_sync(self._execute_reset)(plan, queue, why)

    async def _plan_reset(self, queue: str | None) -> tuple[Plan, float]:
        """And the seconds for which what it moves is kept."""
        async with open_desk(queue) as desk:
            return await desk.plan(lambda name: Reset(name, force=True)), desk.queue.trash.keep

    def _agrees_to_reset(self, plan: Plan, keep: float) -> bool:
        self.stdout.write(
            _(
                "The reset moves to the trash: %(pending)d pending, %(processing)d in processing, %(retry)d to be "
                "retried, %(dead)d dead letters, the statistics and the send lock. They are kept for %(keep)s; --undo "
                "puts them back."
            )
            % {**plan.counts, "keep": write_duration(keep)}
        )
        if plan.lock is not None:
            holder = printable(plan.lock.shown)
            self.stdout.write(
                self.style.WARNING(_("%(holder)s holds the send lock and may be sending now.") % {"holder": holder})
            )
        try:
            answer = input(_("Reset the callback queue? [yes/no] "))
        except (EOFError, KeyboardInterrupt):
            self.stdout.write("")
            return False
        return answer.strip().lower() in _YES

    async def _decline_reset(self, plan: Plan, queue: str | None, why: str) -> None:
        async with open_desk(queue, reason=why) as desk:
            await desk.decline(plan, "aborted: nothing was changed")

    async def _execute_reset(self, plan: Plan, queue: str | None, why: str) -> None:
        async with open_desk(queue, reason=why) as desk:
            executed = await desk.execute(plan)
        count = sum(executed.counts.values())
        self._done(
            ngettext("Moved %(count)d callback to the trash.", "Moved %(count)d callbacks to the trash.", count)
            % {"count": count}
        )
        undo = executed.undo if queue is None else f"{executed.undo} --queue {queue}"
        self.stdout.write(_("The way back: manage.py callback_queue_tools --undo %(id)s") % {"id": undo})

    async def _undo(self, trash_id: str | None, queue: str | None, why: str) -> None:
        async with open_desk(queue, reason=why) as desk:
            plan = await desk.plan(lambda name: Undo(name, trash_id))
            executed = await desk.execute(plan)
        if plan.nothing_to_do:
            self.stdout.write(_("There is no reset to undo."))
            return
        count = executed.counts["callbacks"]
        self._done(ngettext("Put %(count)d callback back.", "Put %(count)d callbacks back.", count) % {"count": count})

    def _done(self, line: str) -> None:
        self.stdout.write(self.style.SUCCESS(line))
