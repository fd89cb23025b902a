"""Parties, tokens, runs, events, asks, answers, blobs."""

from alembic import op

from hansa.database import columns

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table("party", *columns({"name": str}, state=str, serial=str, expires=str, offers=list))
    op.create_table("token", *columns({"hash": str}, party=str, expires=float, used=bool))
    op.create_table(
        "run",
        *columns(
            {"id": str},
            federation=bytes | None,
            setup=dict | None,
            status=str | None,
            reason=str | None,
            created=str | None,
            round=int | None,
        ),
    )
    op.create_table("event", *columns({"run": str, "seq": int}, at=str, kind=str, body=dict))
    op.create_table("ask", *columns({"run": str, "version": int}, attempt=int | None, digest=str | None))
    op.create_table(
        "answer",
        *columns(
            {"run": str, "version": int, "party": str},
            attempt=int | None,
            digest=str | None,
            weight=float | None,
            size=int | None,
            taken=bool | None,
            reason=str | None,
        ),
    )
    op.create_table("blob", *columns({"run": str, "version": int, "name": str}, digest=str, body=bytes | None))
