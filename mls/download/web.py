"""HTTP for downloads: a session that retries, threads that can be stopped, and reasons in plain words.

    workers = Workers()
    workers.run(4, work, tick)      # four threads call work(workers); tick() runs about five times a second

`requests` and urllib3's ``Retry`` handle all that goes wrong before a body begins (no connection, 429, 5xx,
Retry-After). A body that breaks off raises `Torn`, and the caller resumes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import requests
from requests import exceptions
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

RETRIES = 3
"""Number of retries at one address."""
BACKOFF_S = 1.0
"""Pause before the first retry, seconds; doubled for each further one."""
PATIENCE_S = 30
"""Longest pause, seconds, also where Retry-After asks for more."""
TIMEOUT_S = (10.0, 30.0)
"""For connecting, and for the next bytes of a response; seconds."""
CHUNK = 256 << 10
"""Bytes read at once."""
TICK_S = 0.2
"""Interval of ``tick``, seconds."""
STOP_S = 1.0
"""How long stopped threads are waited for, seconds. They are daemons: one that still connects can't be woken."""

Poll = Callable[[], None]
"""Called about five times a second while waiting; what it raises (such as ``Interrupted``) stops everything."""


class Refused(Exception):
    """This address can't deliver the file, and says why; another one may."""


class Torn(Exception):
    """A response broke off or was not what was requested; another request may help."""


class Stopped(Exception):
    """The workers were asked to stop."""


def new_session() -> requests.Session:
    """Return a session for one thread: verifies certificates, retries, and asks for unencoded bytes."""
    retry = Retry(
        RETRIES,
        status_forcelist=(429, 500, 502, 503, 504),
        backoff_factor=BACKOFF_S,
        backoff_max=PATIENCE_S,
        retry_after_max=PATIENCE_S,
        raise_on_status=False,
    )
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of every retry; our errors say what matters
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "mls (data set download)"})
    return session


class Workers:
    """Daemon threads that stop together, so that a caller can leave although a server says nothing."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._errors: list[BaseException] = []
        self._responses: set[requests.Response] = set()

    def run(self, count: int, work: Callable[[Workers], None], tick: Poll) -> None:
        """Call ``work(self)`` in ``count`` threads and return when all have ended.

        Args:
            count: number of threads.
            work: the whole work of one thread.
            tick: called about five times a second, and once at the end.

        Raises:
            BaseException: the first error of ``tick`` or a thread; the others are stopped.
        """
        threads = [threading.Thread(target=self._run, args=(work,), daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            while not self._errors and (alive := [thread for thread in threads if thread.is_alive()]):
                alive[0].join(TICK_S)
                tick()
            tick()
        finally:
            self.stop.set()
            for response in list(self._responses):  # wakes threads that wait for a body
                with suppress(ValueError, RuntimeError, OSError):
                    response.raw.shutdown()
            until = time.monotonic() + STOP_S
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
        if self._errors:
            raise self._errors[0]

    def _run(self, work: Callable[[Workers], None]) -> None:
        try:
            work(self)
        except Stopped:
            pass
        except BaseException as error:
            self._errors.append(error)
            self.stop.set()

    def pause(self, failures: int) -> None:
        """Wait before the next attempt, longer after each failure in a row.

        Raises:
            Stopped: the workers were asked to stop.
        """
        if self.stop.wait(min(PATIENCE_S, BACKOFF_S * 2 ** (failures - 1))):
            raise Stopped

    @contextmanager
    def get(self, session: requests.Session, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """Request ``url`` and yield the response, whatever its status; the body is not read yet.

        Raises:
            Refused: no response came.
            Stopped: the workers were asked to stop.
        """
        try:
            response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)
        except exceptions.RequestException as error:
            raise Refused(in_words(error)) from error
        with response:
            self._responses.add(response)
            try:
                if self.stop.is_set():  # `run` may have looked through the responses before this one was added
                    raise Stopped
                yield response
            finally:
                self._responses.discard(response)

    def body(self, response: requests.Response) -> Iterator[bytes]:
        """Yield a response's bytes as sent: a ``.tgz`` marked ``Content-Encoding: gzip`` must not be decoded.

        Raises:
            Torn: the response broke off.
            Stopped: the workers were asked to stop.
        """
        try:
            for content in response.raw.stream(CHUNK, decode_content=False):
                if self.stop.is_set():
                    break
                yield content
        except (HTTPError, exceptions.RequestException) as error:
            raise Torn(in_words(error)) from error
        if self.stop.is_set():  # the shutdown may look like the end of a body without a length
            raise Stopped


def in_words(error: BaseException) -> str:
    """Say why a request failed, in words for people."""
    innermost = error
    while cause := innermost.__cause__ or innermost.__context__:
        innermost = cause
    reason = str(innermost) or type(innermost).__name__
    if isinstance(error, exceptions.SSLError):
        return f"its certificate can't be verified ({reason}); check the clock and, behind a proxy, REQUESTS_CA_BUNDLE"
    return f"can't be reached or broke off ({reason})"
