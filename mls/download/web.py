"""What every download is made of: a session that retries, reasons in words, threads that stop when told to.

    with Crew(4, work) as crew:     # four threads that call work(crew)
        crew.wait(tick)             # tick() about five times a second; raises what a thread raised

``requests`` and urllib3's ``Retry`` see to whatever goes wrong before a body begins (no connection, 429, 5xx,
Retry-After); what goes wrong within one is `Torn`, and for the caller to mend.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import requests
from requests import exceptions
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, IncompleteRead, NameResolutionError, ReadTimeoutError
from urllib3.util import Retry

RETRIES = 3
"""Times that one thing is tried again at one address."""
BACKOFF_S = 1.0
"""First pause between two tries, seconds; each next one is twice as long."""
PATIENCE_S = 30
"""Longest pause, seconds, also where Retry-After asks for more."""
TIMEOUT_S = (10.0, 30.0)
"""For a connection, and between any two pieces of an answer; seconds."""
CHUNK = 256 << 10
"""Bytes read at once."""
TICK_S = 0.2
BUSY = (429, 500, 502, 503, 504)
"""Answers that may be others soon."""


class Refused(Exception):
    """This address will not do; says why. Another may."""


class Torn(Exception):
    """An answer that broke off, or was not what was asked for; says how. Trying again may help."""


class Stopped(Exception):
    """The crew was told to stop."""


def new_session() -> requests.Session:
    """A session for one thread: verifies certificates, takes bytes as they lie on the server, retries."""
    retry = Retry(
        RETRIES,
        status_forcelist=BUSY,
        backoff_factor=BACKOFF_S,
        backoff_max=PATIENCE_S,
        retry_after_max=PATIENCE_S,
        raise_on_status=False,
    )
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line a retry; what matters is in our errors
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "mls (data set download)"})
    return session


class Crew:
    """Daemon threads that one event stops: an exit never waits for a server that says nothing."""

    def __init__(self, count: int, work: Callable[[Crew], None]) -> None:
        """Make (not yet start) ``count`` threads that call ``work(crew)``."""
        self.stop = threading.Event()
        self._work = work
        self._changed = threading.Event()
        self._errors: list[BaseException] = []
        self._answers: set[requests.Response] = set()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop.set()
        for answer in list(self._answers):  # wakes threads that wait for a body
            with suppress(ValueError, RuntimeError, OSError):
                answer.raw.shutdown()
        until = time.monotonic() + TICK_S  # for all of them: who waits for an answer to begin can't be woken
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def wait(self, tick: Callable[[], None]) -> None:
        """Return when all threads have ended; call ``tick`` meanwhile, and once after.

        Raises:
            BaseException: the first that a thread raised, or ``tick``.
        """
        alive = True
        while alive:
            self._changed.wait(TICK_S)
            self._changed.clear()
            alive = any(thread.is_alive() for thread in self._threads)
            tick()
            if self._errors:
                raise self._errors[0]

    def _run(self) -> None:
        try:
            self._work(self)
        except Stopped:
            pass
        except BaseException as error:
            self._errors.append(error)
            self.stop.set()
        self._changed.set()

    def pause(self, failures: int) -> None:
        """Wait before the next try, after so many failures in a row.

        Raises:
            Stopped: it was told to stop.
        """
        if self.stop.wait(min(PATIENCE_S, BACKOFF_S * 2 ** (failures - 1))):
            raise Stopped

    @contextmanager
    def get(
        self, session: requests.Session, url: str, headers: dict[str, str] | None = None
    ) -> Iterator[requests.Response]:
        """Ask for ``url``; its body is not read yet.

        Raises:
            Refused: no answer, or one of 400 and above (but 416, which a range can mend).
            Stopped: it was told to stop.
        """
        if self.stop.is_set():
            raise Stopped
        try:
            answer = session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)
        except exceptions.RequestException as error:
            raise Refused(in_words(error)) from error
        with answer:
            self._answers.add(answer)
            try:
                if self.stop.is_set():
                    raise Stopped
                if answer.status_code >= 400 and answer.status_code != 416:
                    again = f", {RETRIES + 1} times" if answer.status_code in BUSY else ""
                    raise Refused(f"answers {answer.status_code} {answer.reason}{again}")
                yield answer
            finally:
                self._answers.discard(answer)


def body(answer: requests.Response) -> Iterator[bytes]:
    """An answer's bytes as they were sent, never decoded.

    Raises:
        Torn: it broke off.
    """
    try:
        yield from answer.raw.stream(CHUNK, decode_content=False)
    except (HTTPError, exceptions.RequestException) as error:
        raise Torn(in_words(error)) from error


def content_length(answer: requests.Response) -> int | None:
    """Length of an answer's body as it is announced, bytes."""
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def is_web_page(answer: requests.Response) -> bool:
    """Whether an answer is HTML: what servers send with 200 to say that a file is not to be had."""
    return answer.headers.get("Content-Type", "").strip().lower().startswith("text/html")


def in_words(error: BaseException) -> str:
    """Why a request failed, for people."""
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        inner = getattr(error, "reason", None) or next((a for a in error.args if isinstance(a, BaseException)), None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__ or error
    for one in chain:
        if isinstance(one, exceptions.SSLError):
            return (
                f"its certificate can't be verified ({chain[-1]}); is the clock of this machine right, "
                "and does a proxy need REQUESTS_CA_BUNDLE?"
            )
        if isinstance(one, NameResolutionError):
            return "its name is not known; is there a network?"
        if isinstance(one, IncompleteRead):
            return f"broke off after {one.partial:,} bytes, {one.expected or 0:,} before the end"
        if isinstance(one, exceptions.Timeout | ReadTimeoutError):
            return f"said nothing for {TIMEOUT_S[1]:g} s (or {TIMEOUT_S[0]:g} s while connecting)"
        if isinstance(one, exceptions.InvalidSchema | exceptions.InvalidURL | exceptions.MissingSchema):
            return f"leads to an address that is not http or https ({one})"
        if isinstance(one, exceptions.TooManyRedirects):
            return "sends from one address to the next without end"
    return f"can't be reached or broke off ({chain[-1] or type(chain[-1]).__name__})"
