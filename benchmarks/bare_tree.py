"""The tree of Hansa's commands in bare cyclopts, to compare ``--help`` with."""

from cyclopts import App

from hansa.cli.commands import COMMANDS, GROUPS, SUMMARY

app = App(name="hansa", help=SUMMARY)
groups = {name: App(name=name, help=summary) for name, summary in GROUPS.items()}
for group in groups.values():
    app.command(group)
for command in COMMANDS:
    group_name, _, name = command.name.rpartition(" ")
    groups.get(group_name, app).command(command.target, name=name, help=command.summary)

if __name__ == "__main__":
    app()
