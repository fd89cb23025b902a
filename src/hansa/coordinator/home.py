"""The coordinator's folder: its authority, its lobby, its operator's key, its address."""

from __future__ import annotations

import datetime as dt
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from hansa.crypto import keys, pki
from hansa.crypto.token import Token
from hansa.crypto.vault import Vault
from hansa.errors import StoreError
from hansa.files import write_whole

OPERATOR_LIFETIME = dt.timedelta(days=30)


@dataclass(frozen=True)
class CoordinatorHome:
    """Who a coordinator is."""

    folder: Path  # where it keeps everything
    name: str  # of the federation
    authority: pki.Authority  # its CA
    lobby_seed: bytes  # 16 bytes from which the lobby's key is derived

    @classmethod
    def open(cls, folder: Path, name: str) -> CoordinatorHome:
        """Read the folder; initialise it the first time. Raises StoreError if it is there and cannot be read, or is an
        agent's."""
        if (folder / "party.json").exists():
            remedy = "Give the coordinator a folder of its own with --home"
            raise StoreError(f"the folder {folder} is an agent's", remedy=remedy)
        seed = folder / "lobby.seed"
        # The key comes last, and the database after it: without both, nobody can have joined. A folder
        # that lost its key alone is never given another authority.
        if not (folder / "authority.key").exists() and not (folder / "coordinator.db").exists():
            folder.mkdir(0o700, parents=True, exist_ok=True)
            Vault.of(folder).write(seed, secrets.token_bytes(16))
            write_whole(folder / "name", name.encode(), private=True)
            pki.Authority.create(name).save(folder)
        try:
            kept = (folder / "name").read_text(encoding="utf-8")
            return cls(folder, kept, pki.Authority.load(folder), Vault.of(folder).read(seed))
        except (OSError, UnicodeDecodeError) as error:
            why = error if isinstance(error, OSError) else f"{folder / 'name'} is damaged: it is not UTF-8"
            what = f"the coordinator's folder {folder} is incomplete: {why}"
            remedy = "Restore it from a backup, `hansa coordinator restore`, or begin a new one with --home"
            raise StoreError(what, remedy=remedy) from error

    @property
    def roots_pem(self) -> bytes:
        """What the server trusts: the authority, and the lobby for those who join."""
        return self.authority.certificate_pem + self.lobby.certificate_pem

    @property
    def lobby(self) -> pki.Authority:
        """The lobby's authority."""
        return pki.lobby_authority(self.lobby_seed)

    def token(self, address: str) -> Token:
        """A token with a fresh secret."""
        return Token.new(address, authority_key=keys.point(self.authority.public_key), lobby_seed=self.lobby_seed)

    def renew_operator(self) -> None:
        """A fresh key and certificate for the operator, if the present one is due."""
        try:
            due = pki.renewal_due((self.folder / "operator.pem").read_bytes())
        except OSError:
            due = True
        if due:
            self.write_operator()

    def write_operator(self) -> None:
        """A fresh key and certificate for whoever can read this folder."""
        key = keys.new_key()
        leaf = self.authority.issue(keys.request(key), role=pki.OPERATOR, name="operator", lifetime=OPERATOR_LIFETIME)
        write_whole(self.folder / "operator.pem", keys.key_to_pem(key) + leaf, private=True)

    def write_address(self, address: str, local: str) -> None:
        """Where this coordinator is reached: by parties, and from this machine."""
        body = {"address": address, "local": local}
        write_whole(self.folder / "address.json", json.dumps(body).encode(), private=True)
