"""The core: tokens to loss, tokens to z. Single-device code; knows no files, ranks or devices."""
