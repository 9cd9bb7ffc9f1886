"""Many trials that answer a question: `reproduce` and `judge`."""
