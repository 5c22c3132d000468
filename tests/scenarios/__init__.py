"""The decision core against transcripts of whole stories, in a world of small models."""
