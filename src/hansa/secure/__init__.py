"""Secure aggregation without I/O: the sum of the parties' vectors, and nothing else about them.

Two roles, ``party`` and ``coordinator``, exchange envelopes. Their states are frozen and become bytes, their
steps are pure: randomness is handed in. Who calls them makes a state durable before its answer leaves."""
