"""What embeddings and reranking have in common: bodies posted to one route of a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tenacity import Retrying

from ragtuned_pipeline.inference.backend import RequestFailed
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.limits import Backoff, retry_options
from ragtuned_pipeline.inference.openai_backend import api_key, client_options, told_by_status
from ragtuned_pipeline.settings import TeacherSettings

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

_SHOWN = 300  # characters of a server's words in an error


@dataclass(frozen=True)
class Route(Generic[T]):
    """One thing that a server does beside chat.

    Attributes:
        path: after teacher.address.
        gives: what comes back, in the plural, for errors.
        model_setting: what to check where the server refuses: "<setting> = <value>".
        read: a reply's JSON and the body that was posted, to the value. Raises ValueError,
            TypeError or LookupError where the reply holds none.
    """

    path: str
    gives: str
    model_setting: str
    read: Callable[[Any, dict[str, Any]], T]


def post_all(
    route: Route[T],
    bodies: Sequence[dict[str, Any]],
    settings: TeacherSettings,
    backoff_seconds: float,
) -> list[T]:
    """Return what the server makes of each body, in order, teacher.concurrency at once.

    Lost requests are tried again up to teacher.max_attempts in all, after as long as the server
    says, else after twice as long each time.

    Args:
        backoff_seconds: the first wait before another attempt.

    Raises:
        SettingsError: the key holds characters that no header may.
        TeacherStopped: the server cannot be reached, refuses, or sends what cannot be read.
    """
    import httpx2

    if not bodies:
        return []
    key = api_key(settings)
    retrying = Retrying(**retry_options(settings.max_attempts, Backoff(backoff_seconds)))
    with (
        httpx2.Client(**client_options(settings, key), timeout=settings.timeout_seconds) as client,
        ThreadPoolExecutor(min(settings.concurrency, len(bodies))) as pool,
    ):
        sent = [pool.submit(retrying, _post, client, route, settings, key, body) for body in bodies]
        try:
            return [each.result() for each in sent]
        except RequestFailed as failed:
            pool.shutdown(wait=False, cancel_futures=True)
            reason = failed.reason.replace(key, "***") if key else failed.reason
            raise TeacherStopped(f"no {route.gives}: {reason}") from None


def _post(
    client: httpx2.Client,
    route: Route[T],
    settings: TeacherSettings,
    key: str,
    body: dict[str, Any],
) -> T:
    import httpx2

    try:
        response = client.post(f"{settings.address.rstrip('/')}/{route.path}", json=body)
    except httpx2.HTTPError as error:
        raise RequestFailed(
            f"{settings.address}: {type(error).__name__}: {error}", again=True
        ) from None
    if response.status_code != 200:
        raise _failure(response, route, settings, key)
    try:
        return route.read(response.json(), body)
    except (ValueError, TypeError, LookupError) as error:
        raise RequestFailed(
            f"{settings.address} sent no {route.gives} ({error!r}): {response.text[:_SHOWN]!r}",
            again=True,
        ) from None


def _failure(
    response: httpx2.Response, route: Route[T], settings: TeacherSettings, key: str
) -> RequestFailed:
    status = response.status_code
    said = f"{settings.address} answered {status}: {response.text.strip()[:_SHOWN]}"
    return told_by_status(settings, key, status, response.headers, said) or RequestFailed(
        f"{said}; check {route.model_setting} and teacher.address = {settings.address!r}",
        again=False,
    )
