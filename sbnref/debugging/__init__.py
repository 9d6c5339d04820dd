"""Finding what is wrong: comparing implementations, watching layers, agreeing between ranks, counting traffic."""
