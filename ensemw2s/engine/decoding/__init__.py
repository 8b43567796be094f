"""Decoding by vote: every member says what it expects next, the vote decides, texts enter and leave between steps."""
