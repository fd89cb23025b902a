"""The agent's folder: who this party is, and to which coordinator it belongs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hansa.agent.store import AgentStore
from hansa.crypto import keys, pki
from hansa.crypto.agreement import Identity
from hansa.crypto.token import Token, secret_hash
from hansa.crypto.vault import Vault, kept_key
from hansa.errors import StoreError, TrustError
from hansa.files import write_whole
from hansa.wire import messages as m
from hansa.wire.channel import client_channel
from hansa.wire.client import Client, Record
from hansa.wire.rpcs import JOIN, PROTOCOL


@dataclass(frozen=True)
class AgentHome:
    """A party that has joined.

    Args:
        folder: where it keeps everything.
        party: its name.
        federation: the coordinator's name.
        address: ``host:port`` of the coordinator.
        key_pem, certificate_pem: its own.
        root_pem: the coordinator's authority.
        joined_with: hash of the token that it joined with.
        others: where else to look for the coordinator, or for one that took over."""

    folder: Path
    party: str
    federation: str
    address: str
    key_pem: bytes
    certificate_pem: bytes
    root_pem: bytes
    joined_with: str = ""
    others: tuple[str, ...] = ()

    @classmethod
    def require_free(cls, folder: Path) -> None:
        """Refuse a coordinator's folder: both keep an ``authority.pem``, and it must not lose its own. Raises
        StoreError if a coordinator lives there."""
        if (folder / "authority.key").exists():
            remedy = "Give the agent a folder of its own with --home"
            raise StoreError(f"the folder {folder} is a coordinator's", remedy=remedy)

    @classmethod
    def joined(cls, folder: Path) -> bool:
        """Whether a party joined in this folder."""
        return (folder / "party.json").exists()

    @classmethod
    def open(cls, folder: Path) -> AgentHome:
        """Read the folder of a party that joined. Raises TrustError if none did; StoreError if it cannot be read, or is
        a coordinator's."""
        cls.require_free(folder)
        if not cls.joined(folder):
            remedy = "Give the token that the coordinator's operator sent: --token T"
            raise TrustError(f"no party has joined in {folder}", remedy=remedy)
        try:
            body = json.loads((folder / "party.json").read_bytes())
            own = keys.split_pem(Vault.of(folder).read(folder / "party.pem"))
            root = (folder / "authority.pem").read_bytes()
            who = body["party"], body["federation"], body["address"]
            return cls(folder, *who, *own, root, body.get("token", ""), tuple(body.get("others", ())))
        except (OSError, ValueError, KeyError) as error:
            remedy = "Restore it from a backup, or join anew in another folder with --home"
            raise StoreError(f"the agent's folder {folder} is damaged: {error}", remedy=remedy) from error

    @classmethod
    async def join(cls, folder: Path, token: Token, record: Record) -> AgentHome:
        """Make a key here, and exchange the operator's token for a certificate. ``record`` is told of every message
        that leaves. Raises TrustError if the coordinator is not the token's, or does not accept it; UnreachableError if
        it is not there; StoreError if the folder is a coordinator's; the token is still good then."""
        cls.require_free(folder)
        knocking, key = keys.new_key(), keys.new_key()
        leaf = pki.lobby_leaf(token.lobby_seed, knocking)
        anchor = pki.trust_anchor(keys.public_key(token.authority_key))
        knock = keys.key_to_pem(knocking), leaf, anchor
        async with client_channel(token.address, *knock) as channel:
            request = m.JoinRequest(secret=token.secret, csr=keys.request(key), protocol=PROTOCOL)
            reply = await Client(channel, record=record).unary(JOIN, request)
        pki.identify(reply.certificate, pki.pinned_authority(reply.authority, token.authority_key))
        who = reply.party, reply.federation, token.address
        own = keys.key_to_pem(key), reply.certificate
        home = cls(folder, *who, *own, reply.authority, secret_hash(token.secret).hex())
        home.save()
        return home

    @property
    def identity(self) -> Identity:
        """Who it is to the other parties; the coordinator does not vouch for that. Raises StoreError: it was lost."""
        path = self.folder / "identity.key"
        if self.joined(self.folder) and not path.exists():
            remedy = "Restore the folder from a backup, `hansa agent restore`, or join anew in another with --home"
            raise StoreError(f"{path} is missing, by which the others know this party", remedy=remedy)
        return Identity(kept_key(path))

    def save(self) -> None:
        """Write everything; the last file makes it a party that joined, which has a ledger and an identity. Raises
        StoreError if the folder is a coordinator's."""
        self.require_free(self.folder)
        if not self.joined(self.folder):
            AgentStore(self.folder).close()
            kept_key(self.folder / "identity.key")
        write_whole(self.folder / "authority.pem", self.root_pem, private=True)
        Vault.of(self.folder).write(self.folder / "party.pem", self.key_pem + self.certificate_pem)
        who = {name: getattr(self, name) for name in ("party", "federation", "address")}
        said = json.dumps({**who, "token": self.joined_with, "others": self.others}, ensure_ascii=False).encode()
        write_whole(self.folder / "party.json", said, private=True)
