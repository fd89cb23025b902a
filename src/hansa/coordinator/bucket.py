"""Large blobs on storage that speaks S3."""

import datetime as dt
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from hansa.errors import StoreError
from hansa.files import writing

LOG = structlog.get_logger("hansa.coordinator")


class Bucket:
    """``s3://BUCKET/PREFIX``; credentials, region and endpoint are in the usual variables, AWS_*.

    A blob has a file, too; the last three parts of its path are its name here. While nobody answers, whoever calls
    waits, and says so, until ``wait`` says that it is over; StoreError if the bucket is missing or refuses."""

    def __init__(self, url: str, wait: Callable[[float], bool]) -> None:
        try:
            from obstore.store import S3Store
        except ImportError:
            raise StoreError(f"{url} needs the package 'obstore'", remedy="pip install 'hansa[s3]'") from None
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:")
        brief: Any = {"max_retries": 2, "retry_timeout": dt.timedelta(seconds=10)}
        self._store = S3Store.from_url(url, client_options={"allow_http": plain}, retry_config=brief)
        self._url, self._wait = url, wait

    def put(self, path: Path) -> None:
        """Copy a file there; it is there when this returns."""
        self._patiently(lambda: self._store.put("/".join(path.parts[-3:]), path))

    def get(self, path: Path) -> None:
        """Copy it back."""

        def copy() -> None:
            with writing(path, private=True) as file:
                file.writelines(self._store.get("/".join(path.parts[-3:])).stream())

        self._patiently(copy)

    def drop(self, under: str) -> None:
        """Remove the blobs whose names begin so, with a slash behind."""
        self._patiently(lambda: self._store.delete([o["path"] for page in self._store.list(under) for o in page]))

    def _patiently(self, call: Callable[[], Any]) -> Any:
        pause = 0.5
        while True:
            try:
                return call()
            except Exception as error:
                what = f"{self._url} cannot be used: {str(error).splitlines()[0]}"
                remedy = "Does it exist, and fit to AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and its secret?"
                refused = type(error).__name__ != "GenericError" or re.search("status code: 4(?!08|29)", what)
                if refused or self._wait(pause):
                    raise StoreError(what, remedy=remedy) from error
                LOG.error("waiting for the large blobs", reason=what, remedy=remedy)
                pause = min(2 * pause, 15.0)
