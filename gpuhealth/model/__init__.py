"""Nouns and pure logic: readings, findings, verdicts. Reads and writes nothing."""
