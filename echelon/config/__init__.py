"""The run file: settings as validated models, one module per part."""
