"""A judge behind an OpenAI-compatible server (chat completions): vLLM on another machine, or a paid service.

The judge explains itself and ends with `[[A]]` or `[[B]]`. Only its reply is parsed, so `[[A]]` in a response is a text
like any other. The prompt asks for the final verdict after the explanation, so the last verdict in a reply counts:
those before it may be quotations. (`tpo_lite.judges.gguf` says why its explain mode takes the first.) A reply without a
verdict, or cut off by the token limit, is "unparsed". The key comes from the environment variable OPENAI_API_KEY and is
used only in the request's header.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from tpo_lite.errors import InputError, TpoError
from tpo_lite.files import well_formed, write_atomically
from tpo_lite.judges.paid_verdicts import PaidVerdicts
from tpo_lite.judges.prompts import EXPLAIN_TEMPLATE, check_template, fill
from tpo_lite.judges.protocol import JudgeRequest, Verdict
from tpo_lite.judges.verdicts import VERDICTS, final_label

KEY = "OPENAI_API_KEY"
TRIES = 6
"""How often a request is sent before the judge gives up."""
FIRST_DELAY = 1.0
"""Seconds before a request is sent again; doubled each time, unless the server asks for a longer time."""
LONGEST_DELAY = 120.0
"""The most seconds that a server can make a run wait."""
TIMEOUT = httpx.Timeout(600.0, connect=20.0)
"""Seconds that a reply may take: a small server answers requests one by one."""

_KEPT = "Everything judged so far is kept; run the same command again to continue."
_FORM = "Its form is https://host/v1; GET base_url/models lists the models there."
_TOO_LONG = re.compile(
    "context[ _](length|size|window)|maximum context|prompt is too long|too many tokens", re.IGNORECASE
)


class CallBudget:
    """Limits the number of requests: `most` in total (None: no limit).

    The count is kept in the file `path`, so that it covers all processes of a run, or in memory if that is None. It is
    written before a request is sent, so never more than `most` are sent, whatever happens.
    """

    def __init__(self, most: int | None, path: Path | None = None):
        self.most, self._path = most, path
        self._lock = threading.Lock()
        self._sent = 0
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8").strip()
            if not text.isdecimal():
                raise InputError(f"{path} is damaged. Write the number of requests sent to the judge into it.")
            self._sent = int(text)

    def check(self, count: int) -> None:
        """Raise `TpoError` unless `count` more requests may be sent."""
        if self.most is not None and self._sent + count > self.most:
            remedy = "Raise it."
            if self._path is not None:
                remedy = f"Delete {self._path}, which counts them, to allow that many again. {_KEPT}"
            raise TpoError(
                f"judge.max_calls: {self._sent} of {self.most} allowed requests were sent; {count} more "
                f"{'is' if count == 1 else 'are'} needed. {remedy}"
            )

    def spend(self) -> None:
        """Count one request. Raises `TpoError` if it may not be sent."""
        if self.most is None:
            return
        with self._lock:
            self.check(1)
            self._sent += 1
            if self._path is not None:
                write_atomically(self._path, f"{self._sent}\n")


class OpenAiJudge:
    """Compares responses through `base_url`/chat/completions; implements `tpo_lite.judges.protocol.Judge`.

    `template` is a judge prompt with {instruction}, {response_a} and {response_b} (None: the seed's with explanation),
    `system` an optional system message. A reply has at most `max_tokens`, and at most `in_flight` requests wait at a
    time. Requests that the server defers (429), fails to serve (5xx) or leaves unanswered are sent again. A request
    that was answered is never sent again, nor is one whose verdict is among `paid`.

    Raises `InputError` for what only the user can fix (address, key, model), and `TpoError` if the server keeps failing
    or the budget is used up. A request that exceeds the server's context is labelled "overlong".
    """

    pointwise = False

    def __init__(
        self,
        model: str,
        base_url: str,
        template: str | None = None,
        system: str | None = None,
        max_tokens: int = 512,
        in_flight: int = 8,
        budget: CallBudget | None = None,
        paid: PaidVerdicts | None = None,
    ):
        self._model, self._url = model, base_url.rstrip("/")
        self._template = check_template(template or EXPLAIN_TEMPLATE)
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._max_tokens, self._in_flight = max_tokens, in_flight
        self._budget, self._paid = budget or CallBudget(None), paid or PaidVerdicts()
        self._kept = "" if self._paid.path is None else f" {_KEPT}"
        self._key = _key()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=in_flight)
        try:
            self._client = httpx.Client(base_url=self._url, headers=headers, timeout=TIMEOUT, limits=limits)
        except httpx.InvalidURL as error:
            raise InputError(f"judge.base_url: {self._url!r} is not an address ({error}). {_FORM}") from error
        self._reached = False
        """Whether the server has answered at all."""
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.tokens_decoded = 0
        """Tokens read and written by the server, by its own count."""
        self.max_tokens: int | None = None
        """None: a server does not say how long a prompt may be."""

    def check(self) -> None:
        """Raise what a request would if the server does not answer or refuses the key. This costs nothing."""
        try:
            response = self._send("GET", "/models")
        except httpx.RequestError as error:
            raise InputError(
                f"judge.base_url: {self._url} does not answer ({type(error).__name__}). Check the address. {_FORM}"
            ) from error
        # Not every server has this page, so only errors that concern all pages count.
        if response.status_code in (401, 403):
            raise self._refusal(response)

    def compare(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return one verdict per request, in the same order; see `tpo_lite.judges.protocol.Judge`.

        Equal requests are sent once. Raises `TpoError` before anything is sent if the budget is too small for all
        requests that are not paid for yet.
        """
        keys = [self._key_of(request) for request in requests]
        given = {key: verdict for key in keys if (verdict := self._paid.get(key)) is not None}
        asked = {key: request for key, request in zip(keys, requests, strict=True) if key not in given}
        self._budget.check(len(asked))
        self._stopping.clear()
        pool = ThreadPoolExecutor(self._in_flight)
        try:
            given |= zip(asked, pool.map(self._judge, asked, asked.values()), strict=True)
            return [given[key] for key in keys]
        finally:
            # After an error or Ctrl-C, nothing more is sent and no thread waits for a delay to end.
            self._stopping.set()
            pool.shutdown(cancel_futures=True)

    def _body(self, request: JudgeRequest) -> dict[str, Any]:
        """Return the JSON object that is sent for a request."""
        return {
            "model": self._model,
            "messages": [*self._system, {"role": "user", "content": fill(self._template, dataclasses.asdict(request))}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }

    def _key_of(self, request: JudgeRequest) -> str:
        """Return a hash of the server's address and of everything that is sent."""
        return hashlib.sha256(json.dumps([self._url, self._body(request)]).encode()).hexdigest()

    def _judge(self, key: str, request: JudgeRequest) -> Verdict:
        """Ask the server about one request, and save its verdict under `key`."""
        response = self._answered(self._body(request))
        if response.status_code == 400 and _TOO_LONG.search(response.text):
            # Not saved: it costs nothing, and the server may have a larger context next time.
            return Verdict(0.5, "overlong")
        if response.status_code != 200:
            raise self._refusal(response, f" about {request.instruction[:60]!r}")
        verdict = self._parsed(response)
        self._paid.add(key, verdict)
        return verdict

    def _parsed(self, response: httpx.Response) -> Verdict:
        """Return the verdict in a server's answer, and count its tokens."""
        try:
            data = response.json()
            choice = data["choices"][0]
            text = well_formed(choice["message"]["content"] or "")
            cut_off = choice.get("finish_reason") == "length"
            tokens = int((data.get("usage") or {}).get("total_tokens") or 0)
            label = None if cut_off else VERDICTS.get(final_label(text) or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise InputError(
                f"judge.base_url: {self._url} answers with something other than a chat completion: "
                f"{self._excerpt(response)!r}. {_FORM}"
            ) from error
        with self._lock:
            self.tokens_decoded += tokens
        if label not in ("A", "B"):
            return Verdict(0.5, "unparsed", text)
        return Verdict(1.0 if label == "A" else 0.0, label, text)

    def _answered(self, body: dict[str, Any]) -> httpx.Response:
        """Send a request until the server's answer is one that another try would not change, and return it."""
        for attempt in range(TRIES):
            self._budget.spend()
            try:
                response = self._send("POST", "/chat/completions", json=body)
            except httpx.RequestError as error:
                delay, problem = 0.0, f"does not answer ({type(error).__name__})"
            else:
                if response.status_code not in (408, 429) and response.status_code < 500:
                    return response
                delay = _retry_after(response)
                problem = f"answers {response.status_code} ({self._excerpt(response)})"
            if attempt + 1 < TRIES and self._stopping.wait(max(delay, FIRST_DELAY * 2**attempt)):
                break
        raise TpoError(f"judge.base_url: after {TRIES} tries {self._url} still {problem}.{self._kept}")

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **options)
            self._reached = True
            return response
        except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
            if self._reached:
                raise  # the server restarts
            raise InputError(
                f"judge.base_url: no server at {self._url} ({error}). Start it, or check the address. {_FORM}"
            ) from error

    def _refusal(self, response: httpx.Response, about: str = "") -> InputError:
        """Return the error for an answer that another try would not change."""
        excerpt = self._excerpt(response)
        if response.status_code in (401, 403):
            problem = "does not accept the key" if self._key else "needs a key"
            return InputError(f"judge.base_url: {self._url} {problem} ({excerpt}). Set the environment variable {KEY}.")
        if response.status_code == 404:
            return InputError(
                f"judge.model: {self._url} has no model {self._model!r} or no chat completions ({excerpt}). {_FORM}"
            )
        return InputError(
            f"judge.base_url: {self._url} refuses the request{about} with {response.status_code} ({excerpt}). Change "
            f"the judge's settings, or remove that instruction.{self._kept}"
        )

    def _excerpt(self, response: httpx.Response) -> str:
        """Return the server's answer in one short line, without the key: servers quote a key that they refuse."""
        text = response.text.replace(self._key, "***") if self._key else response.text
        return " ".join(text.split())[:200]


def _key() -> str:
    """Return the key, or "" without one.

    Raises `InputError` for a key that cannot be sent in a header, because httpx would quote it in its own error.
    """
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"The environment variable {KEY} has characters that no key contains. Set it again.")
    return key


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds to wait, by the header Retry-After: a number or a date (RFC 9110, section 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return min(LONGEST_DELAY, float(text))
    try:
        return min(LONGEST_DELAY, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
