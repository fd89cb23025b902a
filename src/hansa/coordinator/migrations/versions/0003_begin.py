"""All that a coordinator of the first release keeps."""

from alembic import op

from hansa.database import columns

revision = "0003"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    text, number, of = str | None, int | None, {"run": str, "version": int}
    party = columns({"name": str}, state=str, serial=str, expires=str, offers=list, identity=bytes | None)
    kept = columns({"id": str}, federation=bytes | None, setup=dict | None, status=text, reason=text, created=text)
    given = columns({**of, "party": str}, attempt=number, digest=text, weight=float | None, size=number, reason=text)
    op.create_table("party", *party)
    op.create_table("token", *columns({"hash": str}, party=str, expires=float, used=bool))
    op.create_table("run", *kept, *columns({}, round=number))
    op.create_table("event", *columns({"run": str, "seq": int}, at=str, kind=str, body=dict))
    op.create_table("ask", *columns(of, attempt=number, digest=text))
    op.create_table("answer", *given, *columns({}, taken=bool | None))
    op.create_table("blob", *columns({**of, "name": str}, digest=str, body=bytes | None))
    op.create_table("epoch", *columns({"address": str}, number=number, holder=text, keys=text))
