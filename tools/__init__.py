"""What the Makefile and the tests need besides the project itself."""
