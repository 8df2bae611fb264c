"""Pure decisions. No input or output, and no clock: time comes in as an argument. May import api only."""
