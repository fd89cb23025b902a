"""How an operator's commands find their coordinator: its folder holds address, key and authority."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from hansa.crypto.keys import split_pem
from hansa.errors import UnreachableError


class OperatorKeys(NamedTuple):
    """What a command needs to talk to a coordinator as its operator."""

    address: str
    key_pem: bytes
    certificate_pem: bytes
    root_pem: bytes

    @classmethod
    def read(cls, folder: Path) -> OperatorKeys:
        """Read a coordinator's folder; raises UnreachableError if no coordinator was ever started there."""
        try:
            body = json.loads((folder / "address.json").read_bytes())
            own = split_pem((folder / "operator.pem").read_bytes())
            root = (folder / "authority.pem").read_bytes()
        except (OSError, ValueError):
            remedy = "`hansa coordinator start` starts one; --home names another folder"
            raise UnreachableError(f"no coordinator was started in {folder}", remedy=remedy) from None
        return cls(body["local"], *own, root)
