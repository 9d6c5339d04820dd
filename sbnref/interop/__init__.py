"""Other libraries' models: converting their batch norms to ours and back, and our name in their registries."""
