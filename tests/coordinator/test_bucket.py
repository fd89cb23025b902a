"""Large blobs on storage that speaks S3: moto's server, over HTTP."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

import hansa as hs
from hansa.coordinator import bucket
from hansa.coordinator.service import Coordinator
from hansa.coordinator.store import INLINE, CoordinatorStore
from hansa.database import Drop
from hansa.errors import StoreError, UsageError

BODY = bytes(range(256)) * (INLINE // 128)
URL = "s3://blobs/hansa"
WHO = ("one", "one.example:8443", "keys")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with the bucket, and its address in the usual variables."""
    pytest.importorskip("obstore", reason="obstore is not installed: pip install 'hansa[s3]'")
    pytest.importorskip("flask_cors", reason="moto's server is not installed: pip install 'moto[s3]' flask-cors")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    given = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    urlopen(Request(f"{address}/moto-api/reset", method="POST"), timeout=10).close()
    urlopen(Request(f"{address}/blobs", method="PUT"), timeout=10).close()
    yield address
    server.stop()


def listed(address: str) -> str:
    """What the bucket holds, as S3 says it."""
    with urlopen(f"{address}/blobs?list-type=2", timeout=10) as found:
        return str(found.read(), "utf-8")


def test_a_large_blob_is_there_once_and_read_from_another_folder(s3: str, tmp_path: Path) -> None:
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    first = CoordinatorStore(tmp_path / "one", shared, URL)
    assert first.take(*WHO)
    first.apply(
        [first.blob("r", 1, "answer 诊所", BODY), first.blob("r", 2, "ask", BODY), first.blob("r", 1, "x", b"small")]
    )
    assert listed(s3).count("<Key>hansa/r/") == 2
    assert bytes(first.read_blob("r", 1, "answer 诊所")) == BODY
    second = CoordinatorStore(tmp_path / "two", shared, URL)
    assert second.take(*WHO)
    assert bytes(second.read_blob("r", 1, "answer 诊所")) == BODY
    second.apply([Drop("blob", {"run": "r", "version": 1})])
    second.sweep("r", 1)
    assert listed(s3).count("<Key>hansa/r/2/") == listed(s3).count("<Key>") == 1
    first.close()
    second.close()


def test_a_blob_that_was_damaged_there_is_never_used(s3: str, tmp_path: Path) -> None:
    store = CoordinatorStore(tmp_path, "", URL)
    store.apply([store.blob("r", 1, "ask", BODY)])
    [path] = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert store._bucket is not None
    store._bucket._store.put("/".join(path.parts[-3:]), BODY[:-1] + b"!")
    shutil.rmtree(tmp_path / "blobs")
    with pytest.raises(StoreError, match=f"{path.name} is damaged"):
        store.read_blob("r", 1, "ask")
    store.close()


def test_while_nobody_answers_it_waits_says_so_and_goes_on(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, said = CoordinatorStore(tmp_path, "", URL), list[dict[str, str]]()
    assert store.take(*WHO)
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        waiting = CoordinatorStore(tmp_path / "other", "", URL)

    class Log:
        def error(self, _: str, **facts: str) -> None:
            said.append(facts)
            waiting._bucket._store = store._bucket._store  # it is back

    monkeypatch.setattr(bucket, "LOG", Log())
    row = waiting.blob("r", 1, "ask", BODY)
    assert listed(s3).count("<Key>") == 1
    waiting.apply([row])
    assert bytes(waiting.read_blob("r", 1, "ask")) == BODY
    [facts] = said
    assert facts["reason"].startswith("s3://blobs/hansa cannot be used")
    assert "AWS_ENDPOINT_URL" in facts["remedy"]
    store.close()
    waiting.close()


def test_who_waits_stops_when_told_and_nothing_is_recorded(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = CoordinatorStore(tmp_path, "", URL)
    threading.Timer(0.5, store.stopping.set).start()
    with pytest.raises(StoreError, match=r"s3://blobs/hansa cannot be used"):
        store.apply([store.blob("r", 1, "ask", BODY)])
    assert store.rows("blob") == []
    store.close()


def test_a_missing_bucket_is_refused_before_an_epoch_is_taken(s3: str, tmp_path: Path) -> None:
    store = CoordinatorStore(tmp_path, "", "s3://another/hansa")
    with pytest.raises(StoreError, match=r"s3://another/hansa cannot be used: .*404.*AWS_ACCESS_KEY_ID"):
        store.take(*WHO)
    assert store.rows("epoch") == []
    store.close()


def test_a_coordinator_that_looks_elsewhere_for_large_blobs_is_refused(s3: str, tmp_path: Path) -> None:
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    first = CoordinatorStore(tmp_path / "one", shared, URL)
    first.apply([first.blob("r", 1, "ask", BODY)])
    second = CoordinatorStore(tmp_path / "two", shared, f"file://{tmp_path / 'empty'}")
    with pytest.raises(StoreError, match=r"cannot be read: .*the same --blobs"):
        second.take(*WHO)
    first.close()
    second.close()


def test_a_shared_folder_serves_both(tmp_path: Path) -> None:
    shared, blobs = f"sqlite:///{tmp_path / 'shared.db'}", f"file://{tmp_path / 'shared'}"
    first, second = (CoordinatorStore(tmp_path / name, shared, blobs) for name in ("one", "two"))
    first.apply([first.blob("r", 1, "ask", BODY)])
    assert bytes(second.read_blob("r", 1, "ask")) == BODY
    first.close()
    second.close()


async def test_a_run_goes_on_from_the_bucket_alone_with_the_simulated_bits(
    s3: str,
    town: Any,
    harvests: dict[str, hs.Table],
    study: Callable[..., hs.Federation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hansa.coordinator.store.INLINE", -1)  # every blob is a large one
    await town.settle(harvests)
    home, port = town.running.home, town.port

    async def opened() -> None:
        await town.kill()
        shutil.rmtree(home.folder / "blobs", ignore_errors=True)
        town.coordinator = Coordinator(home, "127.0.0.1", "", URL)
        await town.coordinator.start("127.0.0.1", port)
        await town.present(*harvests)

    await opened()
    federation = study(rounds=6)
    run = await town.submit(federation)
    await town.until(lambda: town.running.driver.commits > 6)
    await opened()
    ended = await town.watch(run)
    assert ended.parameters.tobytes() == federation.run(hs.Local(harvests)).parameters.tobytes()
    assert f"<Key>hansa/{run}/" in listed(s3)


@pytest.mark.parametrize("blobs", ["s3://", "file://folder", "gs://bucket", "/folder"])
def test_a_place_that_is_none_is_refused(blobs: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Write s3://BUCKET/PREFIX or file:///FOLDER"):
        CoordinatorStore(tmp_path, "", blobs)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"needs the package 'obstore'.*pip install 'hansa\[s3\]'"):
        CoordinatorStore(tmp_path, "", URL)
