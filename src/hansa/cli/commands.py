"""Every command by name: where its function lies, and what it does in one line.

The table is plain data, so that the start page costs no import. ``tests/cli/test_help.py`` walks it."""

from typing import NamedTuple

SUMMARY = "Federated learning for organisations that may not pool their data."


class Command(NamedTuple):
    """One command: its words, the function behind it in `hansa.cli`, its line of help."""

    name: str
    target: str
    summary: str


GROUPS = {
    "coordinator": "The program that moves models between the parties.",
    "party": "Who takes part, seen from the coordinator.",
    "agent": "The program that stands beside a party's data.",
    "data": "The tables that a party offers.",
    "audit": "What the promises of a study are worth.",
}

SECTIONS = {
    "Start here": (
        Command("demo", "demo:demo", "Three hospitals learn one model, on this machine"),
        Command("new", "new:new", "Write a commented study to start from"),
        Command("doctor", "doctor:doctor", "Check that this machine can take part"),
    ),
    "Studies": (
        Command("simulate", "simulate:simulate", "Run a study on one machine, from one table"),
        Command("audit privacy", "audit:privacy", "Attack a study's protection on your own rows"),
        Command("run", "study:run", "Run a study with the parties of a coordinator"),
        Command("runs", "study:runs", "List the runs and how they ended"),
        Command("watch", "study:watch", "Follow a run, round by round"),
        Command("resume", "study:resume", "Take up a run where it stopped"),
        Command("predict", "predict:predict", "Apply a learnt model to a table"),
    ),
    "Between organisations": (
        Command("coordinator start", "coordinator:start", "Start the coordinator"),
        Command("coordinator status", "coordinator:status", "Say how the coordinator is doing"),
        Command("coordinator backup", "kept:coordinator_backup", "Copy what it keeps into one file"),
        Command("coordinator restore", "kept:coordinator_restore", "Make its folder from a backup"),
        Command("coordinator rekey", "kept:coordinator_rekey", "Encrypt what it keeps under a key"),
        Command("party invite", "party:invite", "Make a one-time token for a new party"),
        Command("party list", "party:list_", "List the parties and who is connected"),
        Command("party remove", "party:remove", "Shut a party out, at once"),
        Command("agent start", "agent:start", "Join with a token, offer data, serve"),
        Command("agent status", "agent:status", "Say how the agent is doing"),
        Command("agent confirm", "agent:confirm", "Confirm another party's identity"),
        Command("agent backup", "kept:agent_backup", "Copy what it keeps into one file"),
        Command("agent restore", "kept:agent_restore", "Make its folder from a backup"),
        Command("agent rekey", "kept:agent_rekey", "Encrypt what it keeps under a key"),
        Command("data add", "data:add", "Offer a table under a name"),
        Command("data list", "data:list_", "List the tables on offer, and for what"),
        Command("data remove", "data:remove", "Take a table off the offer"),
        Command("data check", "data:check", "Check a table against its contract"),
    ),
}

COMMANDS = tuple(command for section in SECTIONS.values() for command in section)
