"""What happened to a protected population, what it costs, and the noise that a claim rests on."""
