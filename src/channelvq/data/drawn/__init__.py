"""Images that code draws: scenes with captions, and waves."""
