#!/usr/bin/env python3
"""Stub of the Anthropic Messages API for driving the real Claude Code CLI offline.

    stub_api.py [--port 8765] [--script FILE] [--log FILE] [--tls CERT KEY]

Point the CLI at it:  ANTHROPIC_BASE_URL=http://127.0.0.1:8765 ANTHROPIC_API_KEY=sk-ant-x claude -p hi

What to answer ("replies") is a list; element N answers the request that has N assistant
turns after the last real user prompt, so the stub keeps no state between requests.
A reply is an object with any of
    {"thinking": "…"}  {"text": "…"}  {"tool": "Bash", "input": {…}}   (or "blocks": [those…])
    {"error": 529, "type": "overloaded_error", "message": "…"}         an API error
    {"delay": 2.5}   seconds before the answer     {"chunk_delay": 0.1}   between deltas
    {"hangup": true} close the socket without answering
    {"stop_reason": "max_tokens"}  {"usage": {…}}  {"headers": {"retry-after": "1"}}
Where the replies come from, first that matches:
  1. the prompt itself:  claude -p 'anything STUB:[{"tool":"Bash","input":{"command":"ls"}},{"text":"done"}]'
  2. the script file / POST /_script:  {"rules": [{"match": "<regex on the prompt>", "replies": […]}], "default": […]}
  3. [{"text": "stub reply"}].
Requests without tools are side jobs of the CLI (titles, summaries): answered with "side" from
the script, else with {"title": "Stub title"} — they never use up replies.
GET /_log returns the requests so far (JSON list, bodies included), POST /_reset forgets them.
POST …/oauth/token answers with new stub tokens; every other path answers 200 {}.
"""

import argparse
import json
import pathlib
import re
import ssl
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATE = {"script": {}, "log": [], "logfile": None, "lock": threading.Lock()}
DEFAULT_USAGE = {
    "input_tokens": 100,
    "output_tokens": 10,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
}


def text_of(content):
    if isinstance(content, str):
        return content
    return "\n".join(b.get("text", "") for b in content if b.get("type") == "text")


def strip_reminders(text):
    return re.sub(r"<system-reminder>.*?</system-reminder>", "", text, flags=re.DOTALL)


def only_tool_results(content):
    """A turn of tool results (the CLI may add reminders to it) rather than a new prompt."""
    return (
        isinstance(content, list)
        and any(b.get("type") == "tool_result" for b in content)
        and not strip_reminders(text_of(content)).strip()
    )


def turn_and_prompt(messages):
    """(assistant turns since the last real prompt, that prompt's text)."""
    turns = 0
    for m in reversed(messages):
        if m["role"] == "assistant":
            turns += 1
        elif m["role"] == "user" and not only_tool_results(m["content"]):
            return turns, text_of(m["content"])
    return turns, ""


def choose_reply(body):
    script = STATE["script"]
    if not body.get("tools"):
        side = script.get("side")
        return side[0] if side else {"text": '{"title": "Stub title"}'}
    turn, prompt = turn_and_prompt(body.get("messages", []))
    prompt = strip_reminders(prompt)
    replies = None
    inline = re.search(r"STUB:(\[.*)", prompt, flags=re.DOTALL)
    if inline:
        replies = json.JSONDecoder().raw_decode(inline.group(1))[0]
    else:
        for rule in script.get("rules", []):
            if re.search(rule["match"], prompt, flags=re.DOTALL):
                replies = rule["replies"]
                break
    replies = replies or script.get("default") or [{"text": "stub reply"}]
    return replies[min(turn, len(replies) - 1)]


def blocks_of(reply):
    out = []
    for b in reply.get("blocks", [reply]):
        if b.get("thinking") is not None:
            out.append({"type": "thinking", "thinking": b["thinking"], "signature": "c3R1Yi1zaWduYXR1cmU="})
        if b.get("text") is not None:
            out.append({"type": "text", "text": b["text"]})
        if b.get("tool"):
            out.append(
                {
                    "type": "tool_use",
                    "id": "toolu_" + uuid.uuid4().hex[:24],
                    "name": b["tool"],
                    "input": b.get("input", {}),
                }
            )
    return out or [{"type": "text", "text": "stub reply"}]


def message_for(reply, model):
    blocks = blocks_of(reply)
    stop = reply.get("stop_reason") or (
        "tool_use" if any(b["type"] == "tool_use" for b in blocks) else "end_turn"
    )
    return {
        "id": "msg_" + uuid.uuid4().hex[:24],
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {**DEFAULT_USAGE, **reply.get("usage", {})},
    }


def sse_events(msg):
    """The streaming events that carry one message, as (event name, data)."""
    start = {**msg, "content": [], "stop_reason": None}
    yield "message_start", {"message": start}
    for i, b in enumerate(msg["content"]):
        if b["type"] == "text":
            empty, deltas = (
                {"type": "text", "text": ""},
                [
                    {"type": "text_delta", "text": p}
                    for p in re.findall(r".{1,20}", b["text"], flags=re.DOTALL)
                ],
            )
        elif b["type"] == "thinking":
            empty, deltas = (
                {"type": "thinking", "thinking": "", "signature": ""},
                [
                    {"type": "thinking_delta", "thinking": b["thinking"]},
                    {"type": "signature_delta", "signature": b["signature"]},
                ],
            )
        else:
            empty = {**b, "input": {}}
            deltas = [
                {"type": "input_json_delta", "partial_json": p}
                for p in re.findall(r".{1,40}", json.dumps(b["input"]), flags=re.DOTALL)
            ]
        yield "content_block_start", {"index": i, "content_block": empty}
        for d in deltas:
            yield "content_block_delta", {"index": i, "delta": d}
        yield "content_block_stop", {"index": i}
    yield (
        "message_delta",
        {"delta": {"stop_reason": msg["stop_reason"], "stop_sequence": None}, "usage": msg["usage"]},
    )
    yield "message_stop", {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def record(self, body):
        entry = {
            "t": time.time(),
            "method": self.command,
            "path": self.path,
            "headers": dict(self.headers.items()),
            "body": body,
        }
        with STATE["lock"]:
            STATE["log"].append(entry)
            if STATE["logfile"]:
                STATE["logfile"].write(json.dumps(entry) + "\n")
                STATE["logfile"].flush()

    def send_json(self, obj, status=200, headers=None):
        data = json.dumps(obj).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("request-id", "req_" + uuid.uuid4().hex[:20])
        for k, v in (headers or {}).items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_stream(self, msg, chunk_delay):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("cache-control", "no-cache")
        self.send_header("request-id", "req_" + uuid.uuid4().hex[:20])
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for name, data in sse_events(msg):
            payload = json.dumps({"type": name, **data})
            self.wfile.write(f"event: {name}\ndata: {payload}\n\n".encode())
            self.wfile.flush()
            if chunk_delay:
                time.sleep(chunk_delay)

    def messages(self, body):
        reply = choose_reply(body)
        if reply.get("delay"):
            time.sleep(reply["delay"])
        if reply.get("hangup"):
            self.close_connection = True
            return
        if reply.get("error"):
            err = {"type": reply.get("type", "api_error"), "message": reply.get("message", "stub error")}
            self.send_json({"type": "error", "error": err}, reply["error"], reply.get("headers"))
            return
        msg = message_for(reply, body.get("model", "stub-model"))
        if body.get("stream"):
            self.send_stream(msg, reply.get("chunk_delay", 0))
        else:
            self.send_json(msg, headers=reply.get("headers"))

    def handle_any(self):
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = {"_raw": raw[:200].decode("latin-1")}
        path = self.path.split("?")[0]
        if path == "/_log":
            return self.send_json(STATE["log"])
        if path == "/_reset":
            STATE["log"].clear()
            return self.send_json({"ok": True})
        if path == "/_script":
            STATE["script"] = body or {}
            return self.send_json({"ok": True})
        self.record(body)
        if path.endswith("/v1/messages/count_tokens"):
            return self.send_json({"input_tokens": max(1, len(raw) // 4)})
        if path.endswith("/v1/messages") and self.command == "POST":
            return self.messages(body or {})
        if path.endswith("/oauth/token"):
            return self.send_json(
                {
                    "access_token": "sk-ant-oat01-stub-new",
                    "refresh_token": "sk-ant-ort01-stub-new",
                    "expires_in": 28800,
                    "token_type": "Bearer",
                    "scope": "user:inference user:profile user:sessions:claude_code",
                }
            )
        if path.endswith("/v1/models"):
            return self.send_json({"data": [], "has_more": False, "first_id": None, "last_id": None})
        return self.send_json({})

    def do_GET(self):
        try:
            self.handle_any()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET  # noqa: N815


def serve(port, script=None, log=None, tls=None, host="127.0.0.1"):
    STATE["script"] = script or {}
    STATE["logfile"] = open(log, "a") if log else None  # noqa: SIM115
    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    if tls:
        ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ctx.load_cert_chain(*tls)
        server.socket = ctx.wrap_socket(server.socket, server_side=True)
    return server


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description="stub of the Anthropic Messages API")
    ap.add_argument("--port", type=int, default=8765)
    ap.add_argument("--script", help="JSON file with rules / default / side")
    ap.add_argument("--log", help="append one JSON line per request")
    ap.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    a = ap.parse_args()
    s = serve(a.port, json.loads(pathlib.Path(a.script).read_text()) if a.script else None, a.log, a.tls)
    print(f"stub on {'https' if a.tls else 'http'}://127.0.0.1:{s.server_address[1]}", flush=True)
    s.serve_forever()
