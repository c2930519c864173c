"""What the tests share: tiny models, made data, stand-ins for servers."""
