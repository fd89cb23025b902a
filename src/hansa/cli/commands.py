"""Every command by name: where its function lies, and what it does in one line.

The table is plain data, so that the start page costs no import.
``tests/cli/test_help.py`` walks it.
"""

from __future__ import annotations

from typing import NamedTuple

SUMMARY = "Federated learning for organisations that may not pool their data."


class Command(NamedTuple):
    """One command: its words, the function behind it as ``module:function``, its line of help."""

    name: str
    target: str
    summary: str


GROUPS = {
    "coordinator": "The program that moves models between the parties.",
    "party": "Who takes part, seen from the coordinator.",
    "agent": "The program that stands beside a party's data.",
    "data": "The tables that a party offers.",
}

SECTIONS = {
    "Start here": (
        Command("demo", "hansa.cli.demo:demo", "Three hospitals learn one model, on this machine"),
        Command("new", "hansa.cli.new:new", "Write a commented study to start from"),
        Command("doctor", "hansa.cli.doctor:doctor", "Check that this machine can take part"),
    ),
    "Studies": (
        Command(
            "simulate", "hansa.cli.simulate:simulate", "Run a study on one machine, from one table"
        ),
        Command("run", "hansa.cli.study:run", "Run a study with the parties of a coordinator"),
        Command("runs", "hansa.cli.study:runs", "List the runs and how they ended"),
        Command("watch", "hansa.cli.study:watch", "Follow a run, round by round"),
        Command("resume", "hansa.cli.study:resume", "Take up a run where it stopped"),
        Command("predict", "hansa.cli.predict:predict", "Apply a learnt model to a table"),
    ),
    "Between organisations": (
        Command("coordinator start", "hansa.cli.coordinator:start", "Start the coordinator"),
        Command(
            "coordinator status", "hansa.cli.coordinator:status", "Say how the coordinator is doing"
        ),
        Command("party invite", "hansa.cli.party:invite", "Make a one-time token for a new party"),
        Command("party list", "hansa.cli.party:list_", "List the parties and who is connected"),
        Command("party remove", "hansa.cli.party:remove", "Shut a party out, at once"),
        Command("agent start", "hansa.cli.agent:start", "Join with a token, offer data, serve"),
        Command("agent status", "hansa.cli.agent:status", "Say how the agent is doing"),
        Command("data add", "hansa.cli.data:add", "Offer a table under a name"),
        Command("data list", "hansa.cli.data:list_", "List the tables on offer, and for what"),
        Command("data remove", "hansa.cli.data:remove", "Take a table off the offer"),
        Command("data check", "hansa.cli.data:check", "Check a table against its contract"),
    ),
}

COMMANDS = tuple(command for section in SECTIONS.values() for command in section)
