"""An HTTP server that draws images: OpenAI's images API, with images of all requests drawn together."""
