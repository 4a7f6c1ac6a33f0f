"""Images that come in packages of public registries: emoji, photographs, other domains."""
