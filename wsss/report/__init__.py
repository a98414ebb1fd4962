"""One page of what runs have found: gathered from their folders, beside the published numbers."""
