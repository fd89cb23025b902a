"""Text of strangers, before it reaches a terminal."""

_BREAKS = "\t\n\r"
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in _BREAKS}
# Overrides of the writing direction: a name could read as another one.
_SHOWN = {**_CONTROLS, 0x0D: " ", **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)))}


def without_controls(text: str) -> str:
    """``text`` without what only a terminal would obey.

    Tabs and line breaks stay: a column's header may hold them, and is looked up as it is."""
    return text.translate(_CONTROLS)


def legible(text: str) -> str:
    """``text`` for a terminal: nothing in it moves the cursor back, nor turns the writing around."""
    return text.translate(_SHOWN)
