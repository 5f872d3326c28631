"""Pictures and videos: from a file or an address to patches."""
