"""A judge behind an OpenAI-compatible server (chat completions): vLLM on another machine, or a paid one.

The judge explains itself and ends with `[[A]]` or `[[B]]`; only its reply is parsed, so a response that
contains `[[A]]` is a text like any other. The prompt asks for the final verdict after the explanation, so of
several verdicts in a reply the last one counts: those before it may be quotations. (`tpo_lite.judges.gguf` says
why its explain mode takes the first.) A reply without a verdict, or cut off by the token limit, has none. The key
comes from the environment variable OPENAI_API_KEY and goes nowhere but into the request's header.
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
"""Seconds before a request is sent again; doubled each time, unless the server names a longer time."""
LONGEST_DELAY = 120.0
"""Seconds: the most that a server may make a run wait."""
TIMEOUT = httpx.Timeout(600.0, connect=20.0)
"""Seconds that a reply may take: a small server works requests off one by one."""

_KEPT = "Everything judged so far is kept; run the same command again to go on."
_FORM = "Its form is https://host/v1; GET base_url/models lists the models there."
_TOO_LONG = re.compile(
    "context[ _](length|size|window)|maximum context|prompt is too long|too many tokens", re.IGNORECASE
)


class CallBudget:
    """How many requests may still be sent: `most` in all (None: any number).

    The count is kept in the file `path`, so that it spans the processes of a run; None keeps it in memory. It
    is written before a request is sent: whatever happens, no more than `most` are.
    """

    def __init__(self, most: int | None, path: Path | None = None):
        self.most, self._path = most, path
        self._lock = threading.Lock()
        self._sent = 0
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8").strip()
            if not text.isdecimal():
                raise InputError(f"{path} is damaged. Write the number of requests sent to the judge there.")
            self._sent = int(text)

    def check(self, count: int) -> None:
        """Raises `TpoError` unless `count` more requests may be sent."""
        if self.most is not None and self._sent + count > self.most:
            remedy = "Raise it."
            if self._path is not None:
                remedy = f"Delete {self._path}, which counts them, to allow as many again. {_KEPT}"
            raise TpoError(
                f"judge.max_calls: {self._sent} of {self.most} requests are sent, and {count} more would be needed. "
                f"{remedy}"
            )

    def spend(self) -> None:
        """Counts one request; raises `TpoError` if it may not be sent."""
        if self.most is None:
            return
        with self._lock:
            self.check(1)
            self._sent += 1
            if self._path is not None:
                write_atomically(self._path, f"{self._sent}\n")


class OpenAiJudge:
    """Compares responses through `base_url`/chat/completions; implements `tpo_lite.judges.protocol.Judge`.

    `template` is a judge prompt with {instruction}, {response_a} and {response_b} (None: the Self-Taught
    Evaluator's with explanation). A reply has at most `max_tokens`; `in_flight` requests wait at a time.
    Requests that the server puts off (429), fails at (5xx) or leaves unanswered are sent again; one that was
    answered never is, nor one whose verdict is among `paid`.

    Raises `InputError` for what only the user can mend (address, key, model), `TpoError` where the server
    keeps failing or the budget is used up. A request beyond the server's context is labelled "overlong".
    """

    pointwise = False

    def __init__(
        self,
        model: str,
        base_url: str,
        template: str | None = None,
        max_tokens: int = 512,
        in_flight: int = 8,
        budget: CallBudget | None = None,
        paid: PaidVerdicts | None = None,
    ):
        self._model, self._url = model, base_url.rstrip("/")
        self._template = check_template(template or EXPLAIN_TEMPLATE)
        self._max_tokens, self._in_flight = max_tokens, in_flight
        self._budget, self._paid = budget or CallBudget(None), paid or PaidVerdicts()
        self._kept = "" if self._paid.path is None else f" {_KEPT}"
        self._key = _key()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=in_flight)
        try:
            self._client = httpx.Client(base_url=self._url, headers=headers, timeout=TIMEOUT, limits=limits)
        except httpx.InvalidURL as error:
            raise InputError(f"judge.base_url: {self._url!r} is no address ({error}). {_FORM}") from error
        self._reached = False
        """Whether the server has answered at all."""
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.tokens_decoded = 0
        """Tokens read and written by the server, by its own count."""
        self.max_tokens = None
        """A server does not say how many it takes."""

    def check(self) -> None:
        """Raises what a request would: whether the server is there and takes the key. Costs nothing."""
        try:
            response = self._send("GET", "/models")
        except httpx.RequestError as error:
            raise InputError(
                f"judge.base_url: {self._url} does not answer ({type(error).__name__}). Mend the address. {_FORM}"
            ) from error
        # Not every server has this page: only what concerns every page counts.
        if response.status_code in (401, 403):
            raise self._refusal(response)

    def compare(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """One verdict a request, in the same order; see `tpo_lite.judges.protocol.Judge`.

        Equal requests are sent once. Raises `TpoError` before anything is sent if the budget does not suffice
        for all that are not paid for.
        """
        keys = [self._key_of(request) for request in requests]
        given = {key: verdict for key in keys if (verdict := self._paid.get(key)) is not None}
        asked = {key: request for key, request in zip(keys, requests, strict=True) if key not in given}
        self._budget.check(len(asked))
        self._stopping.clear()
        pool = ThreadPoolExecutor(self._in_flight)
        try:
            given |= zip(asked, pool.map(self._judge, asked, asked.values()))
            return [given[key] for key in keys]
        finally:
            # After an error or Ctrl-C: nothing more is sent, and nobody waits out a delay.
            self._stopping.set()
            pool.shutdown(cancel_futures=True)

    def _body(self, request: JudgeRequest) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": fill(self._template, dataclasses.asdict(request))}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }

    def _key_of(self, request: JudgeRequest) -> str:
        """What one answer belongs to: the server and all that is sent."""
        return hashlib.sha256(json.dumps([self._url, self._body(request)]).encode()).hexdigest()

    def _judge(self, key: str, request: JudgeRequest) -> Verdict:
        response = self._answered(self._body(request))
        if response.status_code == 400 and _TOO_LONG.search(response.text):
            # Not kept: it costs nothing, and the server may have a larger context the next time.
            return Verdict(0.5, "overlong")
        if response.status_code != 200:
            raise self._refusal(response, f" about {request.instruction[:60]!r}")
        verdict = self._parsed(response)
        self._paid.add(key, verdict)
        return verdict

    def _parsed(self, response: httpx.Response) -> Verdict:
        try:
            data = response.json()
            choice = data["choices"][0]
            text = well_formed(choice["message"]["content"] or "")
            cut_off = choice.get("finish_reason") == "length"
            tokens = int((data.get("usage") or {}).get("total_tokens") or 0)
            label = None if cut_off else VERDICTS.get(final_label(text))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise InputError(
                f"judge.base_url: {self._url} answers with something else than a chat completion: "
                f"{self._said(response)!r}. {_FORM}"
            ) from error
        with self._lock:
            self.tokens_decoded += tokens
        if label not in ("A", "B"):
            return Verdict(0.5, "unparsed", text)
        return Verdict(1.0 if label == "A" else 0.0, label, text)

    def _answered(self, body: dict[str, Any]) -> httpx.Response:
        """The server's answer, once it is one that another try would not change."""
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
                problem = f"answers {response.status_code} ({self._said(response)})"
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
                raise  # it restarts
            raise InputError(
                f"judge.base_url: no server at {self._url} ({error}). Start it, or mend the address. {_FORM}"
            ) from error

    def _refusal(self, response: httpx.Response, about: str = "") -> InputError:
        said = self._said(response)
        if response.status_code in (401, 403):
            had = "is not accepted" if self._key else "is needed"
            return InputError(f"judge.base_url: {self._url}: a key {had} ({said}). Set the environment variable {KEY}.")
        if response.status_code == 404:
            return InputError(
                f"judge.model: {self._url} has no model {self._model!r} or no chat completions ({said}). {_FORM}"
            )
        return InputError(
            f"judge.base_url: {self._url} refuses the request{about} with {response.status_code} ({said}). Mend the "
            f"judge's settings, or take that instruction out.{self._kept}"
        )

    def _said(self, response: httpx.Response) -> str:
        """What the server said, in one short line; servers quote the key that they refuse."""
        text = response.text.replace(self._key, "***") if self._key else response.text
        return " ".join(text.split())[:200]


def _key() -> str:
    """The key, or nothing. An error would quote a header that cannot be sent, so it is looked at first."""
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"The environment variable {KEY} holds characters that no key has. Set it again.")
    return key


def _retry_after(response: httpx.Response) -> float:
    """Seconds to wait, by the header Retry-After: a number or a date (RFC 9110, section 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return min(LONGEST_DELAY, float(text))
    try:
        return min(LONGEST_DELAY, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
