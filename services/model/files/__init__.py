"""Local files of models: folders, checksums, inspection."""
