"""What several tests need. Import as `from helpers.x import y`."""
