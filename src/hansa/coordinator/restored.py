"""A coordinator that came back from a backup: what it does not remember, parties may have answered.

So no number of a run comes twice: what had not finished goes on from its checkpoint under a new name, ``RUN~V-CHANCE``,
with noise, secure sums and charges of its own. V is the exchange that comes next: by that a party knows whether what it
remembers of RUN is what the run remembers of it."""

import secrets
from contextlib import suppress
from pathlib import Path

import structlog

from hansa.coordinator.live import ANY
from hansa.coordinator.store import CoordinatorStore
from hansa.database import Drop, Put
from hansa.errors import HansaError
from hansa.run import now


def come_back(store: CoordinatorStore, folder: Path) -> None:
    """Take over from a backup, if this folder was made from one and has not been used since; a database on a server may
    have been, too."""
    marker = folder / "restored"
    if not marker.exists():
        return
    changes: list[Put | Drop] = [Put("token", {**row, "used": True}) for row in store.rows("token")]
    changes += [Put("party", {**row, "serial": f"{row['serial']} {ANY}"}) for row in store.rows("party")]
    for row in store.rows("run"):
        old, over = row["id"], row["status"] in ("finished", "stopped")
        with suppress(HansaError):  # a damaged one is given up as after any restart
            changes += [] if over else _renamed(store, old, row, marker.read_text(encoding="utf-8"))
    store.apply(changes)
    marker.unlink()


def _renamed(store: CoordinatorStore, old: str, row: dict[str, object], made: str) -> list[Put | Drop]:
    *_, last = (kept["version"] for kept in store.rows("blob", "version", run=old, name="checkpoint"))
    new = f"{old}~{last}-{secrets.token_hex(3)}"
    structlog.get_logger("hansa.coordinator").warning("a run goes on from a backup", run=new, parent=old, made=made)
    events, body = store.rows("event", "seq", run=old), {"parent": old, "run": new, "backup": made}
    said = {"seq": len(events) + 1, "at": now(), "kind": "restored", "body": body}
    reason = f"the coordinator came back from a backup of {made}; it goes on as {new}"
    stopped = {**said, "run": old, "kind": "stopped", "body": {"reason": reason, "round": row["round"]}}
    return [
        *(Put("event", {**event, "run": new}) for event in [*events, said]),
        store.blob(new, last, "checkpoint", store.read_blob(old, last, "checkpoint")),
        Put("run", {**row, "id": new}),
        Put("event", stopped),
        Put("run", {"id": old, "status": "stopped", "reason": reason}),
    ]
