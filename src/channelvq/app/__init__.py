"""The page of `cvq app`: pictures as tokens, pictures from text, the codebook. Only `page` needs gradio."""
