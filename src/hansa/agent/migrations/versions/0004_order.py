"""The order at which a budget is filled, which stays when the budget moves."""

from alembic import op

from hansa.database import columns

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Give budgets an order; those that have none keep it when they are next said."""
    op.add_column("budget", *columns({}, order=int | None))
