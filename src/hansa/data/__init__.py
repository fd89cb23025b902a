"""Tables: where they come from, what they must be, how they become features and parts."""
