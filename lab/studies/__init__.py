"""One file a question: its runs, its measure, its table."""
