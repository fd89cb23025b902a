"""All that an agent of the first release keeps."""

from alembic import op

from hansa.database import columns

revision = "0003"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    answer = columns({"run": str, "version": int}, attempt=int, round=int, weight=float, body=bytes, memory=bytes)
    op.create_table("answer", *answer)
    op.create_table("offer", *columns({"dataset": str}, source=dict, allow=list))
    op.create_table("latest", *columns({"run": str}, federation=str, version=int, digest=str))
    op.create_table("memory", *columns({"run": str}, body=bytes))
    op.create_table("charge", *columns({"number": int}, run=str, version=int, attempt=int, at=str, event=dict))
    op.create_table("budget", *columns({"unit": str}, epsilon=float, delta=float))
    op.create_table("seat", *columns({"run": str, "attempt": int}, body=bytes, rules=bytes))
    op.create_table("member", *columns({"name": str}, identity=bytes | None, words=str | None))
    op.create_table("rule", *columns({"name": str}, value=int))
