"""An honest look at a generator: prediction, prompt, copies, diversity, guidance."""
