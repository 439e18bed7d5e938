"""Files of other frameworks, read without them; nothing in them is executed."""
