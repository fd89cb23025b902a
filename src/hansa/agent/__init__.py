"""A party's agent: it sits beside the data, asks its owner's rules, works, and remembers what left."""
