"""The coordinator: asks, collects, aggregates, and remembers."""
