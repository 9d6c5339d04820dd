"""Find out what is wrong: compare implementations, monitor layers, check agreement between ranks."""
