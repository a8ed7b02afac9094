"""Generated from protos/tokenfleet/v1; never edited by hand."""
