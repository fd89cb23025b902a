"""``hansa coordinator`` and ``hansa agent``: ``backup``, ``restore`` and ``rekey``, the same for both."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hansa import __version__
from hansa.cli.home import KeyFile, agent_home, coordinator_home
from hansa.cli.output import Json, Output
from hansa.cli.serving import sole
from hansa.errors import StoreError, UsageError

Folder = Annotated[Path | None, Parameter(help="folder of the program; the one in $HANSA_HOME if not given.")]
_EXAMPLE = "\n\nFor example:\n\n    hansa"


def _begun(program: str, folder: Path) -> Path:
    """The folder; a UsageError if the program has kept nothing in it, and a StoreError if its database is gone."""
    names = {"coordinator": ("authority.key", "coordinator.db", "address.json"), "agent": ("agent.db", "party.json")}
    whose = [one for one, files in names.items() if any((folder / name).exists() for name in files)]
    if not whose:
        raise UsageError(f"nothing is kept in {folder}", remedy="Name the program's folder with --home")
    if program not in whose:
        what = f"the folder {folder} is of the {whose[0]}, and not of the {program}"
        raise UsageError(what, remedy=f"Say hansa {whose[0]} in the place of hansa {program}, or correct --home")
    file = folder / f"{program}.db"
    begun = (folder / names[program][-1]).exists()
    if begun and not file.exists() and not (program == "coordinator" and os.environ.get("HANSA_DATABASE")):
        remedy = f"`hansa {program} restore` brings it back; a coordinator's on a server is named by HANSA_DATABASE"
        raise StoreError(f"the database {file} is missing", remedy=remedy)
    return folder


def _require_new(file: Path, folder: Path) -> None:
    """A UsageError if a backup would be written over something, into a folder that is not there, or into its own."""
    why = "it is inside the folder that is backed up" if folder in file.resolve().parents else ""
    why = why if file.parent.is_dir() else f"there is no folder {file.parent}"
    if why or file.exists():
        remedy = "Name a new file, in a folder that is there and elsewhere, such as backup-$(date +%F).tar"
        raise UsageError(f"{file} cannot be written: {why or 'it exists already'}", remedy=remedy)


def _commands(program: str, home_of: Callable[[Path | None], Path]) -> tuple[Callable[..., None], ...]:
    def backup(file: Path, *, home: Folder = None, json: Json = False) -> None:
        from hansa.backup import backup as write
        from hansa.run import now

        out, folder = Output(json), _begun(program, home_of(home))
        _require_new(file, folder)
        try:
            names = write(folder, file, {"program": program, "made": now(), "version": __version__})
        except OSError as error:
            remedy = f"Both it and {folder} must be yours, with room for a copy on the disk of each"
            what = f"{folder} cannot be backed up: {error.strerror}: {error.filename or file}"
            raise UsageError(what, remedy=remedy) from None
        out.say(f"{len(names)} files of {folder} are in {file}. Keys are among them: keep it as you keep those.")
        if f"{program}.db" not in names:
            out.say("Rows in a database server are not: copy them with its own tool, such as pg_dump.")
        out.finish({"file": file, "files": names})

    def restore(file: Path, *, home: Folder = None, json: Json = False) -> None:
        from hansa.agent.store import AgentStore
        from hansa.backup import restored

        out, folder = Output(json), home_of(home)
        with restored(file, folder, program) as (part, said):
            if program == "agent":
                with contextlib.closing(AgentStore(part)) as store:
                    store.restored(said["made"])
            else:
                (part / "restored").write_text(said["made"], encoding="utf-8")
        first = "hansa agent status --confirm (before, it takes part in nothing), then " * (program == "agent")
        out.say(f"{folder} is as it was at {said['made']}. Next: {first}hansa {program} start")
        out.finish({"home": folder, "made": said["made"], "files": said["files"]})

    def rekey(*, key_file: KeyFile = None, home: Folder = None, json: Json = False) -> None:
        from hansa.agent.store import AgentStore
        from hansa.coordinator.store import CoordinatorStore
        from hansa.crypto.vault import KEYS, Vault

        out, folder = Output(json), _begun(program, home_of(home))
        with sole(folder):
            vault = Vault.of(folder, key_file, anew=True)
            if not vault:
                remedy = "Make one with `openssl rand -base64 32`, and name its file with --key-file"
                raise UsageError("there is no storage key", remedy=remedy)
            keys = [folder / name for name in KEYS if (folder / name).exists()]
            where = [os.environ.get(name, "") for name in ("HANSA_DATABASE", "HANSA_BLOBS")]
            opened = AgentStore(folder) if program == "agent" else CoordinatorStore(folder, *where)
            with contextlib.closing(opened) as store:
                store.vault.lenient = vault.lenient
                store.rekey()
            for key in keys:
                vault.write(key, vault.read(key))
            for part in folder.rglob("*.part*"):
                part.unlink()
        out.say(f"Everything in {folder} is encrypted under the first key, and needs no other.")
        out.finish({"home": folder})

    kept, file = f"what the {program} keeps", "\n\nArgs:\n    file: the archive; keys are in it, too."
    backup.__doc__ = f"Copy {kept} into one file, also while it runs.{_EXAMPLE} {program} backup monday.tar{file}"
    made = f"Make a new folder from a backup of {kept}.{_EXAMPLE} {program} restore monday.tar --home folder"
    restore.__doc__ = f"{made}{file}\n    home: the new folder."
    rekey.__doc__ = f"Encrypt {kept}, or do so under another key.{_EXAMPLE} {program} rekey --key-file keys"
    return backup, restore, rekey


coordinator_backup, coordinator_restore, coordinator_rekey = _commands("coordinator", coordinator_home)
agent_backup, agent_restore, agent_rekey = _commands("agent", agent_home)
