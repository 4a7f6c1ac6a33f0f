"""Images in files: folders, tar shards, data sets of the Hugging Face hub."""
