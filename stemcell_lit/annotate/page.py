"""The page in the browser, one key a class, served to this machine alone."""

from __future__ import annotations

import hmac
import io
import json
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from stemcell_lit.annotate.session import RESERVED, Session
from stemcell_lit.annotate.sources import SURROUNDINGS, _Surroundings, open_session
from stemcell_lit.base.pages import render
from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import UserError
from stemcell_lit.patches.groups import told
from stemcell_lit.patches.labels import UNSURE
from stemcell_lit.settings.patch_keys import AnnotateCommand

HOST = "127.0.0.1"  # never another: the page shows unpublished data and takes no password


LONGEST_PAUSE_S = 60.0  # longer ones are a coffee, and say nothing about the rate


RATE_OVER = 30  # answers


def class_keys(classes: Sequence[str]) -> list[str]:
    """A letter per class: the first of its name that no class before it and no command has."""
    taken = set(RESERVED)
    keys = []
    for name in classes:
        letters = (c for c in name.lower() if c.isascii() and c.isalpha() and c not in taken)
        key = next(letters, "")
        taken.add(key)
        keys.append(key)
    return keys


class Page:
    """The WSGI application: one page, its pictures, and the answers.

    Other web sites open in the same browser can send requests here, and a name that they own can be
    made to point here. So every request must name this very address as its host, come from this page,
    and know the token of this run.
    """

    def __init__(self, session: Session, surroundings: _Surroundings, token: str):
        self.session, self.surroundings, self.token = session, surroundings, token
        self.port = 0  # set once bound
        self._lock = threading.Lock()  # answers come one by one; frames are read by one thread
        self._times: list[float] = []
        self._urls = Map(
            [
                Rule("/", endpoint="page", methods=["GET"]),
                Rule("/patch/<int:index>.png", endpoint="patch", methods=["GET"]),
                Rule("/around/<int:index>.png", endpoint="around", methods=["GET"]),
                Rule("/state", endpoint="state", methods=["GET"]),
                Rule("/answer", endpoint="answer", methods=["POST"]),
                Rule("/undo", endpoint="undo", methods=["POST"]),
            ]
        )

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Answers a request (PEP 3333)."""
        request = Request(environ)
        request.max_content_length = 10_000
        try:
            response = self._refusal(request) or self._respond(request)
        except HTTPException as error:
            response = Response(f"{error.code} {error.name}\n", error.code or 400)
        except (UserError, OSError) as error:  # such as a full disk: the page must say so
            response = Response(f"{error}\n", 500)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"  # the token is in the address
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers.setdefault("Cache-Control", "no-store")
        return response(environ, start_response)

    def _refusal(self, request: Request) -> Response | None:
        hosts = {f"{HOST}:{self.port}", f"localhost:{self.port}"}
        origin = request.headers.get("Origin")
        site = request.headers.get("Sec-Fetch-Site", "none")
        given = request.headers.get("X-Token") or (
            request.args.get("token", "") if request.method == "GET" else ""
        )
        if request.headers.get("Host") not in hosts:
            return Response(f"403: expected the host {HOST}:{self.port}\n", 403)
        if origin is not None and (
            urlsplit(origin).netloc not in hosts or urlsplit(origin).scheme != "http"
        ):
            return Response("403: requests from other pages are refused\n", 403)
        if site not in ("same-origin", "none"):
            # a link on another page may not even open this one
            return Response("403: requests from other pages are refused\n", 403)
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return Response(
                "403: open the address that the command printed; each start has a new one\n", 403
            )
        return None

    def _respond(self, request: Request) -> Response:
        endpoint, values = self._urls.bind_to_environ(request.environ).match()
        if endpoint == "page":
            return self._page()
        if endpoint in ("patch", "around"):
            return self._picture(endpoint, values["index"])
        with self._lock:
            if endpoint == "answer":
                return self._answer(request)
            if endpoint == "undo":
                undone = self.session.undo()
                if self._times:
                    self._times.pop()
                return self._state(undone=undone)
            return self._state()

    def _page(self) -> Response:
        nonce = secrets.token_urlsafe(16)
        page = render(Path(__file__).with_name("annotate.html"), nonce=nonce)
        response = Response(page, mimetype="text/html")
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return response

    def _picture(self, kind: str, index: int) -> Response:
        if index >= len(self.session.items):
            raise NotFound
        if kind == "patch":
            data = (self.session.folder / self.session.items[index]["path"]).read_bytes()
        else:
            if index not in self.surroundings:
                raise NotFound
            stream = io.BytesIO()
            with self._lock:
                view = self.surroundings.cut(index)
            Image.fromarray(view).save(stream, "PNG")
            data = stream.getvalue()
        # kept by the browser, so that the next patch is there when it is asked for
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(data, mimetype="image/png", headers=headers)

    def _answer(self, request: Request) -> Response:
        given = request.get_json(silent=True)
        given = given if isinstance(given, dict) else {}
        label, asked = given.get("label"), len(self.session.answers)
        if label not in (*self.session.classes, UNSURE):
            return Response(f"400: {label!r} is not a class\n", 400)
        if given.get("index") != asked or asked == len(self.session.items):
            # a second window, or a key pressed twice: the answer is for a patch no longer asked
            return self._state(409)
        self.session.answer(label)
        self._times.append(time.monotonic())
        return self._state()

    def _state(self, status: int = 200, **more: Any) -> Response:
        session, done = self.session, len(self.session.answers)
        total = len(session.items)
        counts = session.counts()
        keys = class_keys(session.classes)
        named = zip(session.classes, keys, strict=True)
        state = {
            "done": done,
            "total": total,
            "classes": [{"name": n, "letter": k, "count": counts[n]} for n, k in named],
            "unsure": counts[UNSURE],
            "last": session.answers[-1] if done else None,
            "around": [i in self.surroundings for i in range(done, min(done + 2, total))],
            "share": 1 / SURROUNDINGS,
            "import": session.import_command(),
            **self._rate(total - done),
            **more,
        }
        return Response(json.dumps(state), status, mimetype="application/json")

    def _rate(self, left: int) -> dict[str, float | None]:
        """Answers a minute in this run, and the minutes left at it; pauses are left out."""
        gaps = np.diff(self._times[-RATE_OVER - 1 :])
        gaps = gaps[gaps < LONGEST_PAUSE_S]
        if len(gaps) < 3 or not gaps.sum():
            return {"per_minute": None, "minutes_left": None}
        rate = 60 * len(gaps) / float(gaps.sum())
        return {"per_minute": rate, "minutes_left": left / rate}


class _Quiet(WSGIRequestHandler):
    """A line per request would hide the address that was printed, and hold its token."""

    def log(self, type: str, message: str, *args: Any) -> None:
        if type == "error":
            super().log(type, message, *args)


def annotate(config: AnnotateCommand) -> None:
    """Serves the page until Ctrl-C, then says how to go on.

    Raises:
        UserError: the source or the session cannot be used, or the port is taken.
    """
    with open_session(config) as session:
        surroundings = _Surroundings(session, config)
        try:
            _serve(Page(session, surroundings, secrets.token_urlsafe(24)), config.port)
        finally:
            surroundings.close()


def _serve(page: Page, port: int) -> None:
    try:
        bound = socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(
            f"port={port}: cannot be bound on {HOST} ({error.strerror}); give another, or 0 for a free one"
        ) from error
    with bound:
        server = make_server(
            HOST, port, page, threaded=True, request_handler=_Quiet, fd=bound.fileno()
        )
    assert isinstance(server, socketserver.ThreadingMixIn)
    server.daemon_threads = True  # an open browser window must not hold Ctrl-C back
    page.port = server.port
    session = page.session
    print(
        f"{len(session.items)} patches, {len(session.answers)} answered, in {printable(session.folder)}"
    )
    groups = [item["group"] for item in session.items]
    if all(groups):
        print(f"a split keeps together: {told(groups)}")
    print(f"open http://{HOST}:{server.port}/?token={page.token}")
    print("every answer is saved at once; Ctrl-C stops, and the same command continues", flush=True)
    server.serve_forever()  # returns on Ctrl-C, its socket closed
    counts = ", ".join(f"{name} {n}" for name, n in session.counts().items())
    print(f"\n{len(session.answers)} of {len(session.items)} answered: {printable(counts)}")
    if session.import_command():
        print(f"next: {session.import_command()}")
