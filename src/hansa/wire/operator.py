"""How an operator's commands find their coordinator: its folder holds address, key and authority."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding

from hansa.crypto import pki
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
        """Read a coordinator's folder; raises UnreachableError: none was ever started there, StoreError: what it trusts
        is damaged."""
        try:
            body = json.loads((folder / "address.json").read_bytes())
            own = split_pem((folder / "operator.pem").read_bytes())
            root = pki.read_authority(folder).public_bytes(Encoding.PEM)
        except (OSError, ValueError):
            remedy = "`hansa coordinator start` starts one; --home names another folder"
            raise UnreachableError(f"no coordinator was started in {folder}", remedy=remedy) from None
        return cls(body["local"], *own, root)
