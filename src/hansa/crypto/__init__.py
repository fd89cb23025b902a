"""Keys, certificates and tokens; knows nothing of learning."""
