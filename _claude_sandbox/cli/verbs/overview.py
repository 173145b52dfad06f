"""The verbs that only look: status, list, info."""

from __future__ import annotations

from _claude_sandbox.cli import render
from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.sandbox import summary
from _claude_sandbox.vm.origin import DEFAULT_TEMPLATE


def status(call: Invocation) -> int:
    from _claude_sandbox.voice import grants as voice_grants

    config = call.lenient_config()
    vms = summary.sandboxes(call.ctx)
    value = {
        "base_vm": summary.base_name(call.ctx, config),
        "template": config.template or DEFAULT_TEMPLATE,
        "hooks_server": "Running" if daemon_client.running() else "Not running",
        "audio_server": voice_grants.status(),
        "vms": vms,
        "sessions": hooks_client.session_dicts({each.name: each.status for each in vms}),
    }
    return call.answer(value, render.status(value))


def list_sandboxes(call: Invocation) -> int:
    found = summary.sandboxes(call.ctx)
    sessions = hooks_client.session_dicts({each.name: each.status for each in found})
    of = {each.name: [s for s in sessions if s["sandbox"] == each.name] for each in found}
    value = [{**render.data(each), "sessions": of[each.name]} for each in found]
    return call.answer(value, render.table(found, sessions))


def info(call: Invocation) -> int:
    value = summary.info(call.ctx, call.project)
    return call.answer(value, render.info(value))
